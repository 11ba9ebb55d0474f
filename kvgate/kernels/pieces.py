"""Runs of a chunk's bytes, cut where the memory that they lie in is not one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kvgate.chunk.layout import ByteRange
from kvgate.errors import LayoutError


class Extent(NamedTuple):
    """A run of memory that a GPU can reach: its own, or registered memory of the host, inside one registration."""

    address: int
    nbytes: int


class Piece(NamedTuple):
    """A run of a chunk that lies in one run of memory; `start` counts from the first byte of its tensor."""

    address: int
    start: int
    nbytes: int


def pieces(extents: Sequence[Extent], runs: Iterable[ByteRange]) -> Iterator[Piece]:
    """The runs, ascending and apart, as they lie in `extents`, which hold the tensor from its first byte on.

    Raises LayoutError where the extents end before the runs do.
    """
    remaining = iter(extents)
    begin = 0
    extent = Extent(0, 0)
    for run in runs:
        at = run.start
        while at < run.stop:
            while at >= begin + extent.nbytes:
                begin += extent.nbytes
                try:
                    extent = next(remaining)
                except StopIteration:
                    raise LayoutError(f"memory of {begin} bytes for a chunk with a byte at {at}") from None
            stop = min(run.stop, begin + extent.nbytes)
            yield Piece(extent.address + at - begin, at, stop - at)
            at = stop
