"""How fast bytes are verified: the digests in C beside those in Python, which awscrt takes.

    python loadtest/digest.py

In GB a CPU second of the thread that does it, the best of the rounds, both in turn in the same seconds; blocks are of a
MiB. `receive` is a body from a socket into memory and digested, as a PUT does it.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from types import ModuleType

from kvgate.memory import plain_digest
from kvgate.memory.digest import BLOCK_NBYTES, NATIVE_MEND
from kvgate.server.http1.transfer import Pace, Receive

try:
    from kvgate import native
except ImportError:
    print(f"kvgate.native was not built, and there is nothing to compare: {NATIVE_MEND}")
    sys.exit(0)

Work = Callable[[], object]


def main() -> None:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds, of which the best counts (default: %(default)s)"
    )
    arguments = parser.parse_args()
    peer = Peer()
    print(f"crc64nvme by {native.CRC64NVME_PATHS[0]}")
    print(f"{'':>10} {'body':>6} {'C':>8} {'Python':>8} {'ratio':>6}")
    for nbytes in (4 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20):
        body = memoryview(bytearray(Random(0).randbytes(1 << 20) * max(nbytes >> 20, 1)))[:nbytes]
        blocks = digest_of(plain_digest, body).blocks
        rows: dict[str, Callable[[ModuleType], Work]] = {
            "crc64nvme": lambda by, body=body: lambda: value_of(by, body),
            "digest": lambda by, body=body: lambda: digest_of(by, body),
            "verify": lambda by, body=body, blocks=blocks: (
                lambda: by.verify_blocks([body], 0, len(body), len(body), blocks)
            ),
            "receive": lambda by, body=body: lambda: peer.receive(by, body),
        }
        for name, work in rows.items():
            c_s, python_s = best_s(work(native), work(plain_digest), arguments.rounds)
            size = f"{nbytes >> 20}M" if nbytes >= 1 << 20 else f"{nbytes >> 10}K"
            c, python = nbytes / c_s / 1e9, nbytes / python_s / 1e9
            print(f"{name:>10} {size:>6} {c:>8.2f} {python:>8.2f} {c / python:>6.2f}")


def value_of(by: ModuleType, body: memoryview) -> int:
    value: int = by.crc64nvme(body) if by is native else by.extend_crc64nvme(body)
    return value


def digest_of(by: ModuleType, body: memoryview) -> plain_digest.BlockDigest:
    digest: plain_digest.BlockDigest = by.BlockDigest()
    digest.update(body)
    return digest


class Peer:
    """A connection on which a thread sends what it is told to."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._theirs = socket.create_connection(server.getsockname())
            self._ours, _ = server.accept()
        self._ours.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._ours, select.EPOLLIN)
        self._asked: SimpleQueue[memoryview] = SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        while True:
            self._theirs.sendall(self._asked.get())

    def receive(self, by: ModuleType, body: memoryview) -> None:
        """Have the body sent, receive it and digest it as it arrives."""
        self._asked.put(body)
        receive = Receive(self._ours, Pace(30.0), [_ROOM[: len(body)]], len(body), by.BlockDigest())
        while not receive.step():
            self._epoll.poll()


_ROOM = memoryview(bytearray(64 * BLOCK_NBYTES))


def best_s(first: Work, second: Work, rounds: int) -> tuple[float, float]:
    """CPU seconds that the quickest of `rounds` calls of each took, in turn."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        began = time.thread_time()
        first()
        between = time.thread_time()
        second()
        times.append((between - began, time.thread_time() - between))
    return min(each for each, _ in times), min(each for _, each in times)


if __name__ == "__main__":
    main()
