"""How fast prompts are named: chain hashing against bare SHA-256 over the same bytes.

    python loadtest/chain_hash.py --tokens 4000000 --chunk-tokens 256 16

`bare` is one hashlib.sha256 over all the bytes: what the processor can do. `per chunk` is one over each chunk's bytes,
unchained: what hashlib's cost a call leaves of it. `of bare` is chain hashing's share of the first, `of per chunk` its
share of the second. Each figure is the best of the rounds.
"""

from __future__ import annotations

import argparse
import random
import time
from array import array
from collections.abc import Callable
from functools import partial
from hashlib import sha256

from kvgate.chunk.chain import chain_hashes, root


def main() -> None:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4_000_000, help="tokens hashed a round (default: %(default)s)")
    parser.add_argument(
        "--chunk-tokens", type=int, nargs="+", default=[256, 16], help="tokens a chunk, one table row each"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts (default: %(default)s)")
    arguments = parser.parse_args()

    tokens = array("I", random.Random(0).choices(range(128_256), k=arguments.tokens))
    start = root(bytes(32), b"")
    body = memoryview(tokens).cast("B")
    bare_s = best_s(partial(sha256, body), arguments.rounds)

    print(f"{'chunk':>6} {'chain Mtok/s':>13} {'per chunk':>10} {'bare':>7} {'of per chunk':>13} {'of bare':>8}")
    for chunk_tokens in arguments.chunk_tokens:
        chain_s = best_s(partial(chain_hashes, start, tokens, chunk_tokens), arguments.rounds)
        piece_s = best_s(partial(hash_pieces, body, 4 * chunk_tokens), arguments.rounds)
        chain, piece, bare = (len(tokens) / seconds / 1e6 for seconds in (chain_s, piece_s, bare_s))
        print(
            f"{chunk_tokens:>6} {chain:>13.1f} {piece:>10.1f} {bare:>7.1f} {chain / piece:>12.0%} {chain / bare:>8.0%}"
        )


def hash_pieces(body: memoryview, nbytes: int) -> list[bytes]:
    """The SHA-256 of each whole piece of `nbytes` bytes, none chained to another."""
    return [sha256(body[at : at + nbytes]).digest() for at in range(0, len(body) - nbytes + 1, nbytes)]


def best_s(work: Callable[[], object], rounds: int) -> float:
    """Seconds that the quickest of `rounds` calls took."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
