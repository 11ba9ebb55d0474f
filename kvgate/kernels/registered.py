"""Segments of host memory that are page-locked for one GPU, once each, and what a GPU can reach of them at a time.

Invariants
1. A segment is registered at most once, in pieces of `piece_nbytes` that follow one another, and unregistered before
   its mapping ends.
2. What `extents` gives lies each in one piece: CUDA refuses a copy across two, and a kernel's address of the next one
   need not follow.

May be used from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

from kvgate.kernels.device import Device, DeviceError
from kvgate.kernels.pieces import Extent
from kvgate.memory.lease import Lease
from kvgate.memory.mapping import address_of
from kvgate.memory.segment import Segment

PIECE_NBYTES = 1 << 30
"""What is registered at a time: other calls to the driver wait meanwhile, about a second for this much."""

_log = logging.getLogger(__name__)


class Registered:
    """The segments that `device` knows. One that it refuses is used as it is, which is slower."""

    def __init__(self, device: Device, piece_nbytes: int = PIECE_NBYTES) -> None:
        self._device = device
        self._piece_nbytes = piece_nbytes
        self._addresses: dict[Segment, int] = {}
        self._refused = False
        self._lock = threading.Lock()

    def extents(self, lease: Lease, start: int, stop: int) -> list[Extent]:
        """Where the bytes [start, stop) of a lease lie, cut so that a GPU can reach each as one."""
        with self._lock:
            for segment in dict.fromkeys(lease.segments):
                self._register(segment)
        bases = [(address_of(segment.view), segment.nbytes) for segment in dict.fromkeys(lease.segments)]
        views = lease.slices(start, stop)
        return list(self._cut(((address_of(view), len(view)) for view in views), bases))

    def close(self) -> None:
        """Unregister everything."""
        with self._lock:
            for segment in list(self._addresses):
                self._unregister(segment)

    def _cut(self, runs: Iterable[tuple[int, int]], bases: list[tuple[int, int]]) -> Iterator[Extent]:
        for address, nbytes in runs:
            base = next(base for base, size in bases if base <= address < base + size)
            at, end = address, address + nbytes
            while at < end:
                piece_end = base + ((at - base) // self._piece_nbytes + 1) * self._piece_nbytes
                yield Extent(at, min(end, piece_end) - at)
                at = min(end, piece_end)

    def _register(self, segment: Segment) -> None:
        if segment in self._addresses or self._refused:
            return
        base = address_of(segment.view)
        done = 0
        try:
            while done < segment.nbytes:
                self._device.register(base + done, min(self._piece_nbytes, segment.nbytes - done))
                done += self._piece_nbytes
        except DeviceError as error:
            for offset in range(0, done, self._piece_nbytes):
                with suppress(DeviceError):
                    self._device.unregister(base + offset)
            self._refused = True
            _log.warning("host memory cannot be page-locked for the GPU, copies are slower: %s", error)
            return
        self._addresses[segment] = base
        segment.before_close.append(lambda: self._forget(segment))

    def _forget(self, segment: Segment) -> None:
        with self._lock:
            self._unregister(segment)

    def _unregister(self, segment: Segment) -> None:
        base = self._addresses.pop(segment, None)
        if base is None:
            return
        for offset in range(0, segment.nbytes, self._piece_nbytes):
            with suppress(DeviceError):  # the process's memory goes with it in any case
                self._device.unregister(base + offset)
