"""`kvgate replay`: what eviction policies would make of a trace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvgate import plugins
from kvgate.cli.replays.cache import Counts, play
from kvgate.cli.replays.plot import write_plot
from kvgate.cli.replays.trace import Request, prefix_hits, read_trace
from kvgate.cli.terminal import Progress, human_size
from kvgate.config import parse_size
from kvgate.errors import ConfigError, KVGateError

DESCRIPTION = """\
Play a trace against the gateway's own eviction policies, without a gateway: how much of the prompts a cache of each
size would hold, and how much would be written to it. A trace has the JSON lines of Mooncake's or of `kvgate record`,
gzipped or not. Policies are those of the entry points kvgate.eviction, installed plug-ins included.
"""

EXAMPLES = """\
examples:
  kvgate replay trace.jsonl.gz                                        four policies at three sizes
  kvgate replay trace.jsonl.gz --policies all --sizes 1%,2.5%,10%     shares of the blocks in the trace
  kvgate replay trace.jsonl --sizes 64GiB,1TiB --block-size 32MiB     sizes in bytes
  kvgate replay trace.jsonl.gz --policies lru,duel --plot hits.png    a picture too
  kvgate replay trace.jsonl.gz --memory                               as in memory, where nothing is refused

Under `hits` stand the share of the blocks that were leading and there, of the tokens, and of the requests that found
something; under `writes`, blocks written for each one asked for.
"""

_POLICIES = ("lru", "s3-fifo", "second-touch", "duel")
_BAR_WIDTH = 30


@dataclass(frozen=True)
class Result:
    """One policy at one size. Shares are 0 to 1."""

    policy: str
    size: str
    capacity_blocks: int
    hit_share: float
    token_hit_share: float
    request_hit_share: float
    writes_per_reference: float
    written_nbytes: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file of JSON lines, which may be gzipped")
    parser.add_argument(
        "--policies",
        default=",".join(_POLICIES),
        metavar="NAMES",
        help="policies with commas between, or `all` (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes",
        default="1%,2.5%,10%",
        metavar="SIZES",
        help="of the cache, with commas between: shares of all blocks of the trace, or bytes (default: 1%%,2.5%%,10%%)",
    )
    parser.add_argument("--block-size", type=parse_size, metavar="SIZE", help="bytes of one block, such as 32MiB")
    parser.add_argument("--memory", action="store_true", help="write everything, as memory does, whatever the policy")
    parser.add_argument("--limit", type=int, metavar="N", help="play the first N requests only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the hits over the sizes; needs kvgate[plot]")


def run(options: argparse.Namespace) -> int:
    """Play, and print a table when all is done."""
    names = plugins.names("kvgate.eviction") if options.policies == "all" else options.policies.split(",")
    policies = {name: plugins.load("kvgate.eviction", name) for name in names}
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit: expected at least 1, got {options.limit}")
    try:
        requests = read_trace(options.trace, options.limit)
    except (OSError, EOFError) as error:
        raise KVGateError(f"{options.trace} cannot be read: {error}") from error
    blocks = len({block for request in requests for block in request.blocks})
    sizes = {size: _capacity(size, blocks, options.block_size) for size in options.sizes.split(",")}
    progress = _Bar(len(requests), len(policies) * len(sizes))
    results = []
    for name, policy in policies.items():
        for size, capacity in sizes.items():
            counts = Counts()
            for _ in play(policy(), requests, capacity, counts, ask=not options.memory):
                progress.step(f"{name} {size}")
            results.append(_result(name, size, capacity, counts, options.block_size))
    progress.end()
    best = _nothing_forgotten(requests)
    if options.json:
        trace = {"trace": options.trace.name, "requests": len(requests), "unique_blocks": blocks}
        print(json.dumps({**trace, "nothing_forgotten": best, "results": list(map(asdict, results))}, indent=1))
    else:
        _print(requests, blocks, results, best)
    if options.plot is not None:
        shares = sorted((capacity / blocks, size) for size, capacity in sizes.items())
        by_place = {(result.policy, result.size): result.token_hit_share for result in results}
        hits = {name: [by_place[name, size] for _, size in shares] for name in policies}
        write_plot(options.plot, options.trace.name, [share for share, _ in shares], hits, best["token_hit_share"])
    return 0


def _capacity(size: str, blocks: int, block_nbytes: int | None) -> int:
    """How many blocks fit into a size. Raises ConfigError."""
    if size.endswith("%"):
        try:
            share = float(size[:-1]) / 100
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ConfigError(f"--sizes: expected a share over 0% and up to 100%, got {size!r}")
        return max(1, int(blocks * share))
    try:
        nbytes = parse_size(size)
    except ValueError as error:
        raise ConfigError(f"--sizes: {error}") from error
    if not block_nbytes:
        raise ConfigError("--sizes: sizes in bytes need --block-size, the bytes of one block")
    return max(1, nbytes // block_nbytes)


def _result(policy: str, size: str, capacity: int, counts: Counts, block_nbytes: int | None) -> Result:
    references = max(1, counts.references)
    return Result(
        policy,
        size,
        capacity,
        counts.hits / references,
        counts.tokens_hit / max(1, counts.tokens),
        counts.requests_hit / max(1, counts.requests),
        counts.writes / references,
        counts.writes * block_nbytes if block_nbytes else None,
    )


def _nothing_forgotten(requests: Sequence[Request]) -> dict[str, float]:
    """The shares that a cache hits that never forgets anything."""
    found = list(prefix_hits(requests))
    tokens = sum(request.hit_tokens(hit) for request, hit in zip(requests, found, strict=True))
    return {
        "hit_share": sum(found) / max(1, sum(len(request.blocks) for request in requests)),
        "token_hit_share": tokens / max(1, sum(request.input_tokens for request in requests)),
        "request_hit_share": sum(hit > 0 for hit in found) / len(found),
    }


def _print(requests: Sequence[Request], blocks: int, results: Sequence[Result], best: dict[str, float]) -> None:
    references = sum(len(request.blocks) for request in requests)
    print(f"{len(requests):,} requests for {references:,} blocks, {blocks:,} of them different")
    print(f"{'policy':<14}{'size':>8}{'blocks':>10}{'hits':>9}{'tokens':>9}{'requests':>10}{'writes':>9}  written")
    for result in results:
        written = "" if result.written_nbytes is None else human_size(result.written_nbytes)
        print(
            f"{result.policy:<14}{result.size:>8}{result.capacity_blocks:>10,}{result.hit_share:>9.1%}"
            f"{result.token_hit_share:>9.1%}{result.request_hit_share:>10.1%}{result.writes_per_reference:>9.2f}"
            f"  {written}".rstrip()
        )
    print(
        f"{'nothing forgotten':<32}{best['hit_share']:>9.1%}{best['token_hit_share']:>9.1%}"
        f"{best['request_hit_share']:>10.1%}"
    )


class _Bar:
    """How far all runs together are."""

    def __init__(self, requests: int, runs: int) -> None:
        self._total = requests * runs
        self._done = 0
        self._progress = Progress()

    def step(self, what: str) -> None:
        self._done += 1
        if self._done % 64 == 0:
            share = self._done / self._total
            bar = "#" * int(share * _BAR_WIDTH)
            self._progress.say(f"[{bar:.<{_BAR_WIDTH}}] {share:.0%}  {what}")

    def end(self) -> None:
        self._progress.end()
