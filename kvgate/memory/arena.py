"""All host memory for chunks: a fixed capacity of shared memory, reserved in slots that leases keep.

Invariants
1. A byte belongs to at most one slot, and `used_nbytes` is the sum of the slots' whole pages, never over the capacity.
2. A reservation succeeds if and only if it fits into `headroom(owner)`, however the free pages are scattered.
3. Memory that one owner had is never another's: its segment is closed, and the next owner gets a new, zeroed one.
4. Every segment that the allocator knows has its memory in `_segments`, until the arena is closed. Together with the
   stock, which has had no owner yet, they take at most the capacity.
5. The lock is held for accounting and for opening a segment, never while bytes are copied, cleared or unmapped.

Every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import deque

from kvgate.config import MiB
from kvgate.errors import ArenaFull
from kvgate.memory.allocator import PAGE_NBYTES, Allocator, Extent, Growth, whole_pages
from kvgate.memory.lease import Lease, Slot
from kvgate.memory.owner import tenant_of
from kvgate.memory.segment import Segment
from kvgate.memory.stock import Stock
from kvgate.memory.threads import started_threads

_LEAST_SEGMENTS = 8


class Arena:
    """Reserves memory by owner, out of `capacity_nbytes` (rounded down to whole pages).

    segment_nbytes: how much an owner gets at a time; at most an eighth of the capacity, so that a small arena has room
    for several owners too. A segment takes two descriptors. Raises ValueError for less than a page of either.
    prefault_nbytes: how much memory `start` keeps ready for new segments, in whole segments
    """

    def __init__(self, capacity_nbytes: int, segment_nbytes: int = 64 * MiB, prefault_nbytes: int = 0) -> None:
        if capacity_nbytes < PAGE_NBYTES or segment_nbytes < PAGE_NBYTES:
            raise ValueError(f"an arena and its segments have at least {PAGE_NBYTES} bytes")
        share_nbytes = whole_pages(-(-capacity_nbytes // _LEAST_SEGMENTS))
        capacity_nbytes -= capacity_nbytes % PAGE_NBYTES
        segment_nbytes = min(whole_pages(segment_nbytes), share_nbytes)
        self._allocator = Allocator(capacity_nbytes, segment_nbytes)
        self._segments: dict[int, Segment] = {}
        self._lease_count = 0
        self._closed = False
        self._lock = threading.Lock()
        self._stock = Stock(self._lock, segment_nbytes, prefault_nbytes, lambda: self._allocator.unassigned_nbytes)
        self._abandoned: deque[Slot] = deque()
        self._sweeper = started_threads(1, "kvgate-arena")

    def start(self, delay_s: float = 1.0) -> None:
        """Begin, after `delay_s`, to keep memory ready in the background."""
        self._stock.start(delay_s)

    def reserve(self, owner: str, nbytes: int) -> Lease:
        """A lease on `nbytes` of memory that `owner` alone has had; 0 is allowed and takes none.

        Raises ArenaFull, with nothing taken, when there is no room, the system refuses memory, or the arena is closed.
        """
        slot = Slot(owner)
        with self._lock:
            self._reclaim_abandoned()
            self._grow(slot, nbytes)
            return self._lease(slot)

    def headroom(self, owner: str) -> int:
        """The bytes, in whole pages, that `owner` could reserve right now."""
        with self._lock:
            self._reclaim_abandoned()
            return 0 if self._closed else self._allocator.headroom(owner)

    @property
    def closed(self) -> bool:
        """Whether `close` has been called; leases that are dropped afterwards are no leak."""
        return self._closed

    @property
    def capacity_nbytes(self) -> int:
        """What all slots together may take."""
        return self._allocator.capacity_nbytes

    @property
    def used_nbytes(self) -> int:
        """What the open slots take, in whole pages."""
        with self._lock:
            self._reclaim_abandoned()
            return self._allocator.used_nbytes

    def used_by(self, tenant: str) -> int:
        """What the open slots of a tenant and of its engines take, in whole pages."""
        with self._lock:
            self._reclaim_abandoned()
            owners = [owner for owner in self._allocator.owners() if tenant_of(owner) == tenant]
            return sum(self._allocator.used_by(owner) for owner in owners)

    @property
    def lease_count(self) -> int:
        """How many leases are open."""
        with self._lock:
            self._reclaim_abandoned()
            return self._lease_count

    @property
    def segment_count(self) -> int:
        """How many segments have memory, those that no slot uses included."""
        with self._lock:
            self._reclaim_abandoned()
            return len(self._segments)

    @property
    def ready_nbytes(self) -> int:
        """How much memory is ready for new segments, and belongs to nobody yet."""
        with self._lock:
            return self._stock.nbytes

    def segments(self, owner: str) -> list[Segment]:
        """The owner's segments, oldest first. One stays open as long as a lease on bytes in it."""
        with self._lock:
            self._reclaim_abandoned()
            return [] if self._closed else [self._segments[i] for i in self._allocator.segment_ids(owner)]

    def segment(self, segment_id: int) -> Segment | None:
        """A segment by its id, which is never used again; None once its memory has been given back."""
        with self._lock:
            return self._segments.get(segment_id)

    def close(self) -> None:
        """Unmap all memory and close its descriptors. May be called twice.

        Leases can still be read, written and released: their mappings end with their last view. Blocks until retired
        segments have been given back to the system.
        """
        with self._lock:
            self._closed = True
            segments, self._segments = list(self._segments.values()), {}
        self._stock.close()
        for segment in segments:
            segment.close()
        self._sweeper.shutdown()

    # What a lease asks of its arena.

    def _share(self, lease: Lease) -> Lease:
        with self._lock:
            return self._lease(lease._open_slot())

    def _extend(self, lease: Lease, nbytes: int) -> None:
        with self._lock:
            self._reclaim_abandoned()
            self._grow(self._sole_slot(lease), nbytes)

    def _trim(self, lease: Lease, nbytes: int) -> None:
        with self._lock:
            slot = self._sole_slot(lease)
            views = tuple(lease.slices(0, nbytes))
            slot.extents = self._allocator.shrink(slot.extents, whole_pages(nbytes))
            _end_views(slot.views)
            slot.nbytes, slot.views = nbytes, views

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if not lease._released:
                lease._released = True
                self._end_lease(lease._slot)

    def _abandon(self, slot: Slot) -> None:
        """End a lease that is being collected as garbage: maybe in a thread that holds the lock this very moment."""
        self._abandoned.append(slot)
        if self._lock.acquire(blocking=False):
            try:
                self._reclaim_abandoned()
            finally:
                self._lock.release()

    # Under the lock.

    def _reclaim_abandoned(self) -> None:
        while self._abandoned:
            self._end_lease(self._abandoned.popleft())

    def _lease(self, slot: Slot) -> Lease:
        slot.lease_count += 1
        self._lease_count += 1
        return Lease(self, slot)

    def _end_lease(self, slot: Slot) -> None:
        slot.lease_count -= 1
        self._lease_count -= 1
        if slot.lease_count == 0:
            _end_views(slot.views)
            slot.extents = self._allocator.shrink(slot.extents, 0)

    def _sole_slot(self, lease: Lease) -> Slot:
        slot = lease._open_slot()
        if slot.lease_count > 1:
            raise RuntimeError(f"a slot with {slot.lease_count} leases cannot change its size")
        return slot

    def _grow(self, slot: Slot, nbytes: int) -> None:
        if nbytes < 0:
            raise ValueError(f"cannot reserve {nbytes} bytes")
        if self._closed:
            raise ArenaFull("the arena is closed")
        old_nbytes, new_nbytes = whole_pages(slot.nbytes), whole_pages(slot.nbytes + nbytes)
        growth = self._allocator.grow(slot.owner, slot.extents, new_nbytes - old_nbytes)
        if growth.opened or growth.retired:
            self._change_segments(growth, old_nbytes)
        slot.nbytes += nbytes
        slot.extents = growth.extents
        slot.views = self._views(growth.extents, slot.nbytes)

    def _change_segments(self, growth: Growth, old_nbytes: int) -> None:
        """Carry out what was decided. Raises ArenaFull, with the slot as it was, at its `old_nbytes`."""
        for segment_id in growth.retired:
            self._sweeper.submit(self._segments.pop(segment_id).discard)
        try:
            for segment_id, segment_nbytes in growth.opened.items():
                segment = self._stock.take(segment_nbytes) or Segment(segment_id, segment_nbytes)
                segment.id = segment_id
                self._segments[segment_id] = segment
        except OSError as error:
            self._allocator.shrink(growth.extents, old_nbytes)
            for segment_id in growth.opened.keys() - self._segments.keys():
                self._allocator.retire(segment_id)
            raise ArenaFull(f"the system refused memory for a segment: {error}") from error

    def _views(self, extents: tuple[Extent, ...], nbytes: int) -> tuple[memoryview, ...]:
        views = []
        for extent in extents:
            view_nbytes = min(extent.nbytes, nbytes)
            views.append(self._segments[extent.segment_id].view[extent.offset : extent.offset + view_nbytes])
            nbytes -= view_nbytes
        return tuple(views)


def _end_views(views: tuple[memoryview, ...]) -> None:
    """Make a later use of these views an error, where no foreign buffer (an array, a socket call) still uses them."""
    for view in views:
        try:  # noqa: SIM105 - half of the time of `contextlib.suppress`, at the end of every object
            view.release()
        except BufferError:
            pass
