"""The right to use a slot of the arena.

Invariants
1. A slot's pages return to the arena when its last lease is released, or collected as garbage, and not before.
2. Releasing twice is releasing once; every other use after release raises LeaseReleased.
3. A slot changes its size only while it has a single lease, so nobody's view of the bytes changes under them.

`share` and `release` may be called from any thread. A lease is extended, trimmed and used meanwhile by one thread only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from kvgate.errors import LeaseReleased
from kvgate.memory.allocator import Extent

if TYPE_CHECKING:
    from kvgate.memory.arena import Arena
    from kvgate.memory.segment import Segment


@dataclass(slots=True, eq=False)
class Slot:
    """Reserved pages and the first `nbytes` of them. Only the arena changes one, under its lock."""

    owner: str
    nbytes: int = 0
    extents: tuple[Extent, ...] = ()
    views: tuple[memoryview, ...] = ()
    lease_count: int = 0


class Lease:
    """A share in a slot. Arena.reserve makes the first, `share` the others; a context manager that releases on exit.

    The memory is not cleared: it may hold what the same owner left there, and never another owner's bytes.
    """

    __slots__ = ("__weakref__", "_arena", "_released", "_slot")

    def __init__(self, arena: Arena, slot: Slot) -> None:
        self._arena = arena
        self._slot = slot
        self._released = False

    @property
    def owner(self) -> str:
        """The owner whose segments the bytes lie in."""
        return self._open_slot().owner

    @property
    def nbytes(self) -> int:
        """The length that was asked for; the extents are that, rounded up to whole pages."""
        return self._open_slot().nbytes

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where the bytes lie, in order; none for a length of 0."""
        return self._open_slot().extents

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segment of each extent, in the same order. They stay open while the arena and this lease do."""
        found = (self._arena.segment(extent.segment_id) for extent in self.extents)
        return tuple(segment for segment in found if segment is not None)

    @property
    def views(self) -> tuple[memoryview, ...]:
        """The bytes, writable, one view an extent in the same order, `nbytes` in total.

        They end with the slot's last lease. One that a foreign buffer uses at that moment does not: its bytes may then
        be another chunk's, of the same owner.
        """
        return self._open_slot().views

    def slices(self, start: int, stop: int) -> list[memoryview]:
        """The bytes [start, stop), in order, as views without a copy. Raises ValueError outside [0, nbytes]."""
        slot = self._open_slot()
        if not 0 <= start <= stop <= slot.nbytes:
            raise ValueError(f"the bytes [{start}, {stop}) do not lie in a lease of {slot.nbytes} bytes")
        return slice_views(slot.views, start, stop)

    def share(self) -> Lease:
        """Another lease on the same slot, to be released on its own."""
        return self._arena._share(self)

    def extend(self, nbytes: int) -> None:
        """Grow by `nbytes` at the end, in place where the pages behind are free. The bytes so far stay as they lie.

        Raises ArenaFull, leaving the lease as it was, and RuntimeError when the slot has other leases.
        """
        self._arena._extend(self, nbytes)

    def trim(self, nbytes: int) -> None:
        """Shorten to `nbytes`, giving back the whole pages behind; earlier views end.

        Raises ValueError when that is longer than the lease, and RuntimeError when the slot has other leases.
        """
        self._arena._trim(self, nbytes)

    def release(self) -> None:
        """Give this share up. May be called twice, and from any thread."""
        self._arena._release(self)

    def __enter__(self) -> Lease:
        self._open_slot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if not self._released and not self._arena.closed:
            self._arena._abandon(self._slot)
            warnings.warn(
                f"a lease on {self._slot.nbytes} bytes of {self._slot.owner!r} was never released",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _open_slot(self) -> Slot:
        if self._released:
            raise LeaseReleased(f"a lease on {self._slot.nbytes} bytes was used after it was released")
        return self._slot


def slice_views(views: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """The bytes [start, stop) of what `views` hold in order, as views without a copy."""
    pieces: list[memoryview] = []
    begin = 0
    for view in views:
        first, last = max(start - begin, 0), min(stop - begin, len(view))
        if first < last:
            pieces.append(view[first:last])
        begin += len(view)
    return pieces
