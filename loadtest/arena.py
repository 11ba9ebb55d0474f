"""How the arena holds up: what a reservation costs at high occupancy with mixed sizes, and the first touch of memory.

One trace of reservations and releases is made from a seed, and replayed by the arena, by a contiguous first-fit
allocator of the same capacity, and by one anonymous mapping a slot. Nobody touches the memory: only the bookkeeping is
measured.

Then bodies of 4 MiB are copied into slots that nobody has used before, as a PUT into an empty tier does: with memory
that comes when it is touched, with memory from the arena's stock, and once more into slots that have been used.

    python loadtest/arena.py --capacity 4GiB --occupancy 0.95 --operations 200000
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kvgate.config import GiB, KiB, MiB, parse_size
from kvgate.errors import ArenaFull
from kvgate.memory import PAGE_NBYTES, Arena

SIZES = {4 * KiB: 10, 64 * KiB: 10, 512 * KiB: 10, 1 * MiB: 15, 4 * MiB: 20, 8 * MiB: 15, 16 * MiB: 10, 32 * MiB: 10}
"""Lengths and their weights: from a manifest to a chunk of 256 tokens of an 8B model in bf16."""


@dataclass
class Result:
    """What a replay took, one entry an operation."""

    name: str
    reserve_ns: list[int] = field(default_factory=list)
    release_ns: list[int] = field(default_factory=list)
    extents: list[int] = field(default_factory=list)
    refused: int = 0


def trace(random_: random.Random, capacity_nbytes: int, occupancy: float, operations: int) -> Iterator[tuple[int, int]]:
    """(slot, nbytes) for a reservation, (slot, 0) for a release; `occupancy` of the capacity is in use once filled."""
    live: list[tuple[int, int]] = []
    used_nbytes = 0
    wanted = None
    for number in range(operations):
        if wanted is None:
            (size,) = random_.choices(list(SIZES), weights=list(SIZES.values()))
            wanted = int(size * random_.uniform(0.6, 1))
        pages_nbytes = -(-wanted // PAGE_NBYTES) * PAGE_NBYTES
        if used_nbytes + pages_nbytes <= capacity_nbytes * occupancy:
            yield number, wanted
            live.append((number, pages_nbytes))
            used_nbytes += pages_nbytes
            wanted = None
        else:
            position = random_.randrange(len(live))
            live[position], live[-1] = live[-1], live[position]
            slot, nbytes = live.pop()
            used_nbytes -= nbytes
            yield slot, 0


class FirstFit:
    """The simplest contiguous allocator: one list of free runs in order of address, searched from the front."""

    def __init__(self, capacity_nbytes: int) -> None:
        self.runs = [(0, capacity_nbytes)]

    def reserve(self, nbytes: int) -> tuple[int, int]:
        nbytes = -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES
        for position, (start, end) in enumerate(self.runs):
            if end - start >= nbytes:
                self.runs[position : position + 1] = [(start + nbytes, end)] if end - start > nbytes else []
                return start, start + nbytes
        raise ArenaFull("no run is long enough")

    def release(self, slot: tuple[int, int]) -> None:
        self.runs.append(slot)
        self.runs.sort()
        merged = [self.runs[0]]
        for start, end in self.runs[1:]:
            if start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self.runs = merged


def replay(
    name: str,
    operations: list[tuple[int, int]],
    reserve: Callable[[int], Any],
    release: Callable[[Any], object],
    extents: Callable[[Any], int],
) -> Result:
    """Time every operation; slots that were refused are not released, so a refusal lowers the occupancy."""
    result = Result(name)
    live: dict[int, Any] = {}
    clock = time.perf_counter_ns
    for number, nbytes in operations:
        if nbytes:
            begin = clock()
            try:
                slot = reserve(nbytes)
            except ArenaFull:
                result.refused += 1
                continue
            result.reserve_ns.append(clock() - begin)
            result.extents.append(extents(slot))
            live[number] = slot
        elif number in live:
            slot = live.pop(number)
            begin = clock()
            release(slot)
            result.release_ns.append(clock() - begin)
    while live:
        release(live.popitem()[1])
    return result


def first_touch(nbytes: int, prefault_nbytes: int) -> tuple[float, float]:
    """GB/s at which bodies of 4 MiB are copied into `nbytes` of fresh memory, and into the same memory again."""
    body = memoryview(bytes(4 * MiB))
    speeds = []
    with contextlib.closing(Arena(2 * nbytes, prefault_nbytes=prefault_nbytes)) as arena:
        arena.start(delay_s=0)
        while arena.ready_nbytes < prefault_nbytes:
            time.sleep(0.01)
        for _ in range(2):
            leases = [arena.reserve("tenant", len(body)) for _ in range(nbytes // len(body))]
            began = time.perf_counter()
            for lease in leases:
                for view in lease.views:
                    view[:] = body[: len(view)]
            speeds.append(nbytes / (time.perf_counter() - began) / 1e9)
            for lease in leases:
                lease.release()
    return speeds[0], speeds[1]


def percentile(values: list[int], percent: float) -> int:
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]


def show(results: list[Result]) -> None:
    """One row a subject; the ratio is the median of a reservation and a release together, to the second subject's."""
    print(f"{'':10} {'reserve ns':>17} {'release ns':>17} {'extents':>13} {'refused':>8} {'ratio':>6}")
    print(f"{'':10} {'median':>8} {'p99':>8} {'median':>8} {'p99':>8} {'mean':>7} {'p99':>5} {'':>8} {'':>6}")
    costs = [percentile(result.reserve_ns, 50) + percentile(result.release_ns, 50) for result in results]
    for result, cost in zip(results, costs, strict=True):
        print(
            f"{result.name:10} {percentile(result.reserve_ns, 50):8} {percentile(result.reserve_ns, 99):8} "
            f"{percentile(result.release_ns, 50):8} {percentile(result.release_ns, 99):8} "
            f"{sum(result.extents) / len(result.extents):7.2f} {percentile(result.extents, 99):5} "
            f"{result.refused:8} {cost / costs[1]:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=parse_size, default=4 * GiB, help="of the arena (default 4GiB)")
    parser.add_argument("--segment", type=parse_size, default=64 * MiB, help="of the arena's segments (default 64MiB)")
    parser.add_argument("--occupancy", type=float, default=0.95, help="share of the capacity in use (default 0.95)")
    parser.add_argument("--operations", type=int, default=200_000, help="reservations and releases (default 200000)")
    parser.add_argument("--touch", type=parse_size, default=256 * MiB, help="of fresh memory to fill (default 256MiB)")
    parser.add_argument("--seed", type=int, default=0, help="of the trace (default 0)")
    options = parser.parse_args()

    random_ = random.Random(options.seed)
    operations = list(trace(random_, options.capacity, options.occupancy, options.operations))
    with contextlib.closing(Arena(options.capacity, options.segment)) as arena:
        results = [
            replay(
                "arena",
                operations,
                lambda nbytes: arena.reserve("tenant", nbytes),
                lambda lease: lease.release(),
                lambda lease: len(lease.extents),
            )
        ]
        whole = arena.headroom("another") == arena.capacity_nbytes
    first_fit = FirstFit(options.capacity)
    results.append(replay("first fit", operations, first_fit.reserve, first_fit.release, lambda _: 1))
    results.append(replay("mmap", operations, lambda n: mmap.mmap(-1, n), lambda slot: slot.close(), lambda _: 1))

    print(f"{options.operations} operations, {options.occupancy:.0%} of {options.capacity / GiB:g} GiB in use")
    show(results)
    for name, prefault_nbytes in (("without", 0), ("with", options.touch)):
        fresh, used = first_touch(options.touch, prefault_nbytes)
        print(f"{name} prefault: fresh memory is filled at {fresh:.2f} GB/s, used memory at {used:.2f} GB/s")
    print(f"afterwards the arena is {'whole again' if whole else 'NOT WHOLE: pages are lost'}")
    if not whole or results[0].refused:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
