"""A copy of some runs of an object in shared memory, such as the heads and layers of a chunk that a rank holds.

What is delivered has been verified as it was delivered: each MiB that the runs touch is held against its digest as a
whole, its runs where they arrived and the rest where it lies; or, where runs are many and small, in a private copy from
which they are then taken. Another process that writes into the object meanwhile can only make the copy fail.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from kvgate.chunk.layout import Runs, Strided
from kvgate.http.deadline import Deadline
from kvgate.memory.digest import BLOCK_NBYTES, extend_crc64nvme
from kvgate.memory.mapping import Mapping, address_of, move

_MANY = 64 << 10
"""Runs nearer to each other than this are many: to take each by itself costs more than to copy a MiB within a cache."""

_private = threading.local()


class RunCopy:
    """Copies `runs`, all of which lie within an object and none before the one ahead of it, one behind the other.

    pieces:  where the object lies: mapping, offset and length
    digests: the crc64nvme of each MiB of it
    """

    def __init__(
        self, pieces: Sequence[tuple[Mapping, int, int]], nbytes: int, digests: Sequence[int], runs: Strided | Runs
    ) -> None:
        self._tensors = runs.tensors if isinstance(runs, Runs) else (runs,)
        self.blocks = _touched(self._tensors)
        """The MiBs that the runs touch, in order."""
        self._pieces = pieces
        self._starts = [0, *accumulate(length for _, _, length in pieces)]
        self._nbytes = nbytes
        self._digests = digests
        many = any(each.count > 1 and each.stride < _MANY for each in self._tensors)
        self._copy_block = self._copy_through if many else self._copy_straight

    def copy(self, target: memoryview, first: int, last: int, deadline: Deadline) -> bool:
        """Copy what lies in `blocks[first:last]` to its place in `target`, which has the runs' size.

        False as soon as a block is wrong, or the time is over. Several threads may each copy other blocks.
        """
        for block in self.blocks[first:last]:
            start = block * BLOCK_NBYTES
            stop = min(start + BLOCK_NBYTES, self._nbytes)
            if not self._copy_block(target, start, stop, self._digests[block]) or deadline.over:
                return False
        return True

    def _copy_straight(self, target: memoryview, start: int, stop: int, digest: int) -> bool:
        base, at, crc = address_of(target), start, 0
        for begin, end, arrives in self._parts(start, stop):
            crc = self._digest_where_it_lies(at, begin, crc)
            self._copy(begin, end, base + arrives)
            crc = extend_crc64nvme(target[arrives : arrives + end - begin], crc)
            at = end
        return self._digest_where_it_lies(at, stop, crc) == digest

    def _copy_through(self, target: memoryview, start: int, stop: int, digest: int) -> bool:
        whole: memoryview | None = getattr(_private, "block", None)
        if whole is None:
            whole = _private.block = memoryview(bytearray(BLOCK_NBYTES))
        self._copy(start, stop, address_of(whole))
        if extend_crc64nvme(whole[: stop - start], 0) != digest:
            return False
        for begin, end, arrives in self._parts(start, stop):
            target[arrives : arrives + end - begin] = whole[begin - start : end - start]
        return True

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """What the runs have of [start, stop): from where to where in the object, and where it goes in the target."""
        arrives = 0
        for runs in self._tensors:
            first = max(0, (start - runs.start - runs.run_nbytes) // runs.stride + 1)
            last = min(runs.count, -(-(stop - runs.start) // runs.stride))
            for index in range(first, last):
                run = runs.start + index * runs.stride
                begin, end = max(run, start), min(run + runs.run_nbytes, stop)
                yield begin, end, arrives + index * runs.run_nbytes + begin - run
            arrives += runs.nbytes

    def _copy(self, start: int, stop: int, address: int) -> None:
        for mapping, offset, nbytes in self._spans(start, stop):
            move(address, mapping.address + offset, nbytes)
            address += nbytes

    def _digest_where_it_lies(self, start: int, stop: int, crc: int) -> int:
        for mapping, offset, nbytes in self._spans(start, stop):
            crc = extend_crc64nvme(mapping.view[offset : offset + nbytes], crc)
        return crc

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Mapping, int, int]]:
        at = bisect_right(self._starts, start) - 1
        while start < stop:
            mapping, offset, _ = self._pieces[at]
            nbytes = min(self._starts[at + 1], stop) - start
            yield mapping, offset + start - self._starts[at], nbytes
            start, at = start + nbytes, at + 1


def _touched(tensors: Sequence[Strided]) -> Sequence[int]:
    blocks: dict[int, None] = {}
    for runs in tensors:
        for run in runs.runs():
            blocks.update(dict.fromkeys(range(run.start // BLOCK_NBYTES, -(-run.stop // BLOCK_NBYTES))))
    return list(blocks)
