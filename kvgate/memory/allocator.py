"""Which pages of which segment belong to whom: the accounting of the arena, without a byte of memory behind it.

Invariants
1. Every byte of the capacity is either unassigned or in exactly one segment; a segment has one owner for all its life.
2. A page of a segment is in at most one slot. The pages of no slot form free runs, and no two free runs touch.
3. A segment without a reserved page is a spare. It stays with its owner until another owner needs its capacity; then it
   is retired, and never comes back: the capacity returns as a new segment with a new id.
4. `headroom(owner)` is exact: `grow` succeeds if and only if it asks for no more.
5. `grow` and `shrink` are all or nothing. For every extent that it makes or gives back each costs a look into a sorted
   list of the lengths that free runs have: n free pages have fewer than sqrt(2 n) of them.

All sizes and offsets are bytes and whole pages. Not thread-safe: the arena calls it under its lock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvgate.errors import ArenaFull

PAGE_NBYTES = 4096


class Extent(NamedTuple):
    """A run of whole pages in one segment."""

    segment_id: int
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """The offset of the first byte after the run."""
        return self.offset + self.nbytes


class Growth(NamedTuple):
    """What `grow` decided, for the arena to carry out."""

    extents: tuple[Extent, ...]
    """The slot's extents from now on, in order."""

    opened: dict[int, int]
    """Segments that need memory before the extents can be used: id and size."""

    retired: list[int]
    """Segments whose memory must be given back to the system."""


@dataclass(slots=True)
class _Segment:
    owner: str
    nbytes: int
    free_nbytes: int = 0
    starts: dict[int, int] = field(default_factory=dict)  # offset of a free run: its end
    ends: dict[int, int] = field(default_factory=dict)  # end of a free run: its offset


class _Runs:
    """The free runs of one owner, by length. Among those of a length the last one freed is taken first: its memory was
    used last.
    """

    __slots__ = ("_by_length", "_lengths")

    def __init__(self) -> None:
        self._lengths: list[int] = []  # those of which there is a run, in order
        self._by_length: dict[int, dict[tuple[int, int], None]] = {}  # segment id and offset of each

    def add(self, nbytes: int, segment_id: int, offset: int) -> None:
        runs = self._by_length.get(nbytes)
        if runs is None:
            runs = self._by_length[nbytes] = {}
            insort(self._lengths, nbytes)
        runs[segment_id, offset] = None

    def remove(self, nbytes: int, segment_id: int, offset: int) -> None:
        """Raises KeyError for one that there is not."""
        runs = self._by_length[nbytes]
        last, _ = runs.popitem()  # as a rule it is that; unlike `del` this leaves no hole that the next look would pass
        if last != (segment_id, offset):
            runs[last] = None
            del runs[segment_id, offset]
        if not runs:
            del self._by_length[nbytes], self._lengths[bisect_left(self._lengths, nbytes)]

    def best(self, nbytes: int) -> Extent | None:
        """The shortest of at least `nbytes`, else the longest; None without any."""
        lengths = self._lengths
        if not lengths:
            return None
        position = bisect_left(lengths, nbytes)
        length = lengths[position] if position < len(lengths) else lengths[-1]
        segment_id, offset = next(reversed(self._by_length[length]))
        return Extent(segment_id, offset, length)


@dataclass(slots=True)
class _Owner:
    nbytes: int = 0  # of all its segments
    free_nbytes: int = 0  # in all segments of this owner, spares included
    spare_nbytes: int = 0
    segment_ids: set[int] = field(default_factory=set)
    runs: _Runs = field(default_factory=_Runs)


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES


class Allocator:
    """Hands out extents of `capacity_nbytes`, which it divides into segments of at most `segment_nbytes` on demand."""

    def __init__(self, capacity_nbytes: int, segment_nbytes: int) -> None:
        self.capacity_nbytes = capacity_nbytes
        self.used_nbytes = 0
        self._segment_nbytes = segment_nbytes
        self.unassigned_nbytes = capacity_nbytes  # what new segments may take
        self._spares: dict[int, int] = {}  # segment id: size, the one that emptied first in front
        self._spare_nbytes = 0
        self._segments: dict[int, _Segment] = {}
        self._owners: dict[str, _Owner] = {}
        self._next_id = 0

    def headroom(self, owner: str) -> int:
        """The bytes that `owner` could reserve now: its free pages, the unassigned ones, and other owners' spares."""
        own = self._owners.get(owner)
        everyone = self.unassigned_nbytes + self._spare_nbytes
        return everyone if own is None else everyone + own.free_nbytes - own.spare_nbytes

    def owners(self) -> Iterable[str]:
        """Everyone who has a segment."""
        return self._owners.keys()

    def used_by(self, owner: str) -> int:
        """The bytes in slots of an owner."""
        own = self._owners.get(owner)
        return 0 if own is None else own.nbytes - own.free_nbytes

    def segment_ids(self, owner: str) -> list[int]:
        """The owner's segments, oldest first."""
        own = self._owners.get(owner)
        return [] if own is None else sorted(own.segment_ids)

    def grow(self, owner: str, extents: tuple[Extent, ...], nbytes: int) -> Growth:
        """Add `nbytes` to a slot that has `extents`, in as few runs as it takes.

        The free run right behind the slot is used first. The rest goes to the smallest run that holds all of it, a new
        segment counting as one; where none does, the largest runs are used up until the last piece fits.
        Raises ArenaFull, with nothing taken.
        """
        headroom = self.headroom(owner)
        if nbytes > headroom:
            raise ArenaFull(
                f"{nbytes} more bytes were asked for; of {self.capacity_nbytes} this owner can still have {headroom}: "
                "release or evict some first, or raise the capacity"
            )
        if nbytes and not extents:  # as a rule there is a run for all of it
            run = self._best_run(owner, nbytes)
            if run is not None and run.nbytes >= nbytes:
                return Growth((self._take(Extent(run.segment_id, run.offset, nbytes)),), {}, [])
        grown = list(extents)
        opened: dict[int, int] = {}
        retired: list[int] = []
        if nbytes and grown:
            last = grown[-1]
            run_end = self._segments[last.segment_id].starts.get(last.end)
            if run_end is not None:
                more = self._take(Extent(last.segment_id, last.end, min(nbytes, run_end - last.end)))
                grown[-1] = last._replace(nbytes=last.nbytes + more.nbytes)
                nbytes -= more.nbytes
        while nbytes:
            run = self._best_run(owner, nbytes)
            if run is None or run.nbytes < nbytes:
                fresh_nbytes = self._make_room_for_segment(owner, nbytes, retired)
                if fresh_nbytes > 0 and (run is None or fresh_nbytes > run.nbytes):
                    run = self._open(owner, fresh_nbytes)
                    opened[run.segment_id] = run.nbytes
            assert run is not None, "headroom promised more than there is"
            piece = self._take(Extent(run.segment_id, run.offset, min(nbytes, run.nbytes)))
            grown.append(piece)
            nbytes -= piece.nbytes
        return Growth(tuple(grown), opened, retired)

    def shrink(self, extents: Sequence[Extent], nbytes: int) -> tuple[Extent, ...]:
        """Keep the first `nbytes` of a slot and free the pages behind; the extents that are left."""
        kept: list[Extent] = []
        for extent in extents:
            if not nbytes:
                self._free(extent)
                continue
            keep_nbytes = min(nbytes, extent.nbytes)
            nbytes -= keep_nbytes
            if keep_nbytes:
                kept.append(extent._replace(nbytes=keep_nbytes))
            if keep_nbytes < extent.nbytes:
                self._free(Extent(extent.segment_id, extent.offset + keep_nbytes, extent.nbytes - keep_nbytes))
        return tuple(kept)

    def retire(self, segment_id: int) -> None:
        """Make a spare's capacity unassigned; its id is never used again."""
        nbytes = self._spares.pop(segment_id)
        segment = self._segments.pop(segment_id)
        own = self._owners[segment.owner]
        own.runs.remove(nbytes, segment_id, 0)
        own.segment_ids.remove(segment_id)
        own.nbytes -= nbytes
        own.free_nbytes -= nbytes
        own.spare_nbytes -= nbytes
        if not own.segment_ids:
            del self._owners[segment.owner]
        self._spare_nbytes -= nbytes
        self.unassigned_nbytes += nbytes

    def _best_run(self, owner: str, nbytes: int) -> Extent | None:
        """The owner's smallest free run of at least `nbytes`, else its largest; None where it has none at all."""
        own = self._owners.get(owner)
        return None if own is None else own.runs.best(nbytes)

    def _make_room_for_segment(self, owner: str, nbytes: int, retired: list[int]) -> int:
        """The size a new segment can have, once enough of other owners' spares are retired for `nbytes` to fit."""
        if self.unassigned_nbytes < min(nbytes, self._segment_nbytes):
            for segment_id in [spare for spare in self._spares if self._segments[spare].owner != owner]:
                self.retire(segment_id)
                retired.append(segment_id)
                if self.unassigned_nbytes >= min(nbytes, self._segment_nbytes):
                    break
        return min(self._segment_nbytes, self.unassigned_nbytes)

    def _open(self, owner: str, nbytes: int) -> Extent:
        segment_id, self._next_id = self._next_id, self._next_id + 1
        self.unassigned_nbytes -= nbytes
        self._segments[segment_id] = _Segment(owner, nbytes)
        own = self._owners.setdefault(owner, _Owner())
        own.segment_ids.add(segment_id)
        own.nbytes += nbytes
        run = Extent(segment_id, 0, nbytes)
        self.used_nbytes += nbytes  # as if it had been reserved as a whole, for _free to give back
        self._free(run)
        return run

    def _take(self, piece: Extent) -> Extent:
        """Reserve `piece`, the front of a free run."""
        segment_id, offset, nbytes = piece
        end = offset + nbytes
        segment = self._segments[segment_id]
        own = self._owners[segment.owner]
        if segment.free_nbytes == segment.nbytes:
            del self._spares[segment_id]
            self._spare_nbytes -= segment.nbytes
            own.spare_nbytes -= segment.nbytes
        run_end = segment.starts.pop(offset)
        own.runs.remove(run_end - offset, segment_id, offset)
        if end < run_end:
            segment.starts[end] = run_end
            segment.ends[run_end] = end
            own.runs.add(run_end - end, segment_id, end)
        else:
            del segment.ends[run_end]
        segment.free_nbytes -= nbytes
        own.free_nbytes -= nbytes
        self.used_nbytes += nbytes
        return piece

    def _free(self, piece: Extent) -> None:
        """Make `piece` part of the free run that it touches on either side."""
        segment_id, offset, nbytes = piece
        end = offset + nbytes
        segment = self._segments[segment_id]
        own = self._owners[segment.owner]
        if (before := segment.ends.pop(offset, None)) is not None:
            own.runs.remove(offset - before, segment_id, before)
            offset = before
        if (behind := segment.starts.pop(end, None)) is not None:
            own.runs.remove(behind - end, segment_id, end)
            end = behind
        segment.starts[offset] = end
        segment.ends[end] = offset
        own.runs.add(end - offset, segment_id, offset)
        segment.free_nbytes += nbytes
        own.free_nbytes += nbytes
        self.used_nbytes -= nbytes
        if segment.free_nbytes == segment.nbytes:
            self._spares[segment_id] = segment.nbytes
            self._spare_nbytes += segment.nbytes
            own.spare_nbytes += segment.nbytes
