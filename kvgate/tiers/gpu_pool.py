"""A GPU's memory for chunks: a fixed capacity, in segments that each belong to one tenant.

Invariants
1. Accounting is the allocator's, and as exact: what `reserve` and `extend` promise has room in the capacity.
2. A segment's memory is taken from the GPU, cleared, when its first byte is to be written, and given back once its
   tenant has nothing in it and another one needs the room. So no tenant sees another's bytes, through a handle either:
   CUDA may put allocations of less than GRANULE_NBYTES into one, and a handle shows all of that, so there are none.
3. A slot's extents are its own until its last lease is released.
4. No memory is given back that another process may map: what CUDA makes of that is undefined. Until it may be, its
   capacity is taken, and whoever needs it is told that the GPU is full.
5. One lock is held for accounting, never while the GPU is called; that is done under the other one, in threads.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from kvgate.errors import TierFull
from kvgate.kernels.device import Device, DeviceError, OutOfDeviceMemory
from kvgate.kernels.pieces import Extent
from kvgate.memory.allocator import Allocator, whole_pages
from kvgate.memory.allocator import Extent as Place

GRANULE_NBYTES = 2 << 20
"""Segments are whole multiples of this (CUDA C++ Programming Guide, interprocess communication)."""


@dataclass(slots=True, eq=False)
class GpuSlot:
    """Room for one object. Only the pool changes one, under its lock."""

    owner: str
    nbytes: int = 0
    places: tuple[Place, ...] = ()
    lease_count: int = 0


class GpuLease:
    """A share in a slot; a context manager that releases on exit. From any thread."""

    def __init__(self, pool: GpuPool, slot: GpuSlot) -> None:
        self._pool = pool
        self._released = False
        self.slot = slot

    @property
    def nbytes(self) -> int:
        """The length that was asked for."""
        return self.slot.nbytes

    @property
    def owner(self) -> str:
        """The tenant whose segments the bytes lie in."""
        return self.slot.owner

    @property
    def extents(self) -> tuple[Place, ...]:
        """Where the bytes lie, in order, in whole pages; none for a length of 0."""
        return self.slot.places

    def share(self) -> GpuLease:
        """Another lease on the same slot, to be released on its own."""
        return self._pool.lease(self.slot)

    def extend(self, nbytes: int) -> None:
        """Grow by `nbytes` at the end; the bytes so far stay as they lie. Raises ArenaFull, leaving it as it was."""
        self._pool.extend(self.slot, nbytes)

    def release(self) -> None:
        """Give this share up. May be called twice."""
        if not self._released:
            self._released = True
            self._pool.release(self.slot)

    def __enter__(self) -> GpuLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class GpuPool:
    """Hands out slots. `extents` calls the GPU, so it is for a thread; the rest is for the loop too."""

    def __init__(self, device: Device, capacity_nbytes: int, segment_nbytes: int) -> None:
        self._device = device
        granules = -(-segment_nbytes // GRANULE_NBYTES)
        self._allocator = Allocator(capacity_nbytes - capacity_nbytes % GRANULE_NBYTES, granules * GRANULE_NBYTES)
        self._sizes: dict[int, int] = {}  # of segments, whether they have memory yet or not
        self._retired: list[int] = []  # segments whose memory is to go
        self._addresses: dict[int, int] = {}
        self._handles: dict[int, bytes] = {}  # of segments that have memory, where the driver exports it
        self._mapped: Counter[int] = Counter()  # segments by how many engines may map them
        self._lock = threading.Lock()
        self._device_lock = threading.Lock()

    @property
    def capacity_nbytes(self) -> int:
        """What all slots together may take."""
        return self._allocator.capacity_nbytes

    @property
    def used_nbytes(self) -> int:
        """What the slots take, in whole pages."""
        with self._lock:
            return self._allocator.used_nbytes

    def headroom(self, owner: str) -> int:
        """The bytes that `owner` could reserve now."""
        with self._lock:
            return self._allocator.headroom(owner)

    def reserve(self, owner: str, nbytes: int) -> GpuLease:
        """A lease on room for `nbytes`. Raises ArenaFull, with nothing taken."""
        slot = GpuSlot(owner)
        self.extend(slot, nbytes)
        return self.lease(slot)

    def lease(self, slot: GpuSlot) -> GpuLease:
        """One lease more on a slot."""
        with self._lock:
            slot.lease_count += 1
        return GpuLease(self, slot)

    def extend(self, slot: GpuSlot, nbytes: int) -> None:
        """Room for `nbytes` more behind those that are there. Raises ArenaFull, and the slot is as it was."""
        with self._lock:
            more = whole_pages(slot.nbytes + nbytes) - whole_pages(slot.nbytes)
            growth = self._allocator.grow(slot.owner, slot.places, more)
            self._sizes.update(growth.opened)
            self._retired.extend(growth.retired)
            slot.places = growth.extents
            slot.nbytes += nbytes

    def release(self, slot: GpuSlot) -> None:
        """One lease less; after the last one the room is free."""
        with self._lock:
            slot.lease_count -= 1
            if slot.lease_count == 0:
                slot.places = self._allocator.shrink(slot.places, 0)

    def extents(self, lease: GpuLease, stream: int) -> list[Extent]:
        """Where a slot lies, in order. Raises TierFull when the GPU has no memory left for it.

        stream: clears memory that is new, which has happened then
        """
        with self._device_lock:
            self._give_back()
            return [
                Extent(self._segment(place.segment_id, stream) + place.offset, place.nbytes)
                for place in lease.slot.places
            ]

    def hand_on(self, segment_id: int) -> tuple[int, bytes] | None:
        """The size and the IPC handle of a segment in which a written slot lies, for one engine more.

        Until `take_back` its memory is not given back. None where the driver does not export it.
        """
        handle = self._handles.get(segment_id)
        if handle is None:
            return None
        with self._lock:
            self._mapped[segment_id] += 1
            return self._sizes[segment_id], handle

    def take_back(self, segment_id: int) -> None:
        """One engine less maps a segment."""
        with self._lock:
            self._mapped[segment_id] -= 1
            if not self._mapped[segment_id]:
                del self._mapped[segment_id]

    def is_retired(self, segment_id: int) -> bool:
        """Whether a segment's memory is to be given back: no slot lies in it, and none ever will."""
        with self._lock:
            return segment_id in self._retired or segment_id not in self._sizes

    def close(self) -> None:
        """Give all memory back, which nothing uses any more; what engines map goes with the process."""
        with self._device_lock:
            addresses, self._addresses = self._addresses, {}
            for segment_id, address in addresses.items():
                if not self._mapped[segment_id]:
                    self._device.free(address)

    def _segment(self, segment_id: int, stream: int) -> int:
        address = self._addresses.get(segment_id)
        if address is None:
            nbytes = self._sizes[segment_id]
            if nbytes + sum(self._sizes[each] for each in self._addresses) > self.capacity_nbytes:
                raise TierFull("engines still map memory of the GPU that goes to another tenant")
            try:
                address = self._device.allocate(nbytes)
            except OutOfDeviceMemory as error:
                raise TierFull(f"the GPU has no {nbytes} bytes left for a segment: lower the capacity") from error
            self._device.clear(address, nbytes, stream)
            self._device.record(stream).wait()  # whoever comes next may write on another stream
            self._addresses[segment_id] = address
            with suppress(DeviceError):  # then engines get these bytes another way
                self._handles[segment_id] = self._device.export(address)
        return address

    def _give_back(self) -> None:
        with self._lock:
            retired = [each for each in self._retired if not self._mapped[each]]
            self._retired = [each for each in self._retired if self._mapped[each]]
            for segment_id in retired:
                del self._sizes[segment_id]
        for segment_id in retired:
            self._handles.pop(segment_id, None)
            if (address := self._addresses.pop(segment_id, None)) is not None:
                self._device.free(address)
