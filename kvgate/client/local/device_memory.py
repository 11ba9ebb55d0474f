"""Segments of the gateway's memory on this process's GPU, mapped here.

Invariants
1. A handle is opened once, for the first grant that needs it, and closed once the segment is gone and no grant of this
   process uses it. So nothing is unmapped under a copy, however late that is.
2. The gateway is told after a segment was closed, or by the end of the connection, which comes after all are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvgate.client.local.gpu import Gpu
from kvgate.errors import GatewayUnavailable
from kvgate.kernels.device import DeviceError
from kvgate.kernels.pieces import Extent
from kvgate.memory.allocator import Extent as Place


@dataclass(slots=True)
class _Segment:
    nbytes: int
    handle: bytes
    address: int = 0  # 0 while it is not mapped
    uses: int = 0
    gone: bool = False


class DeviceMemory:
    """See the module. Thread-safe.

    say_unmapped: tells the gateway which segments are not mapped any more
    """

    def __init__(self, gpu: Gpu, say_unmapped: Callable[[list[int]], None]) -> None:
        self.gpu = gpu
        self._say_unmapped = say_unmapped
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._at_end: Callable[[], None] | None = None

    def __len__(self) -> int:
        """How many segments the gateway has handed on, and is not told to be unmapped."""
        return len(self._segments)

    def add(self, segment_id: int, nbytes: int, handle: bytes) -> None:
        """Take what the gateway hands on. Opens nothing."""
        with self._lock:
            self._segments[segment_id] = _Segment(nbytes, handle)

    def map(self, places: Sequence[Place], nbytes: int) -> list[Extent]:
        """Where the first `nbytes` of a grant lie, mapped until `unmap` of the same places.

        Raises DeviceError where the driver refuses it, and GatewayUnavailable for what was not handed on.
        """
        extents, left = [], nbytes
        with self._lock:
            if self._at_end is not None:
                raise GatewayUnavailable("the connection to the gateway's memory has ended")
            for place in places:
                segment = self._segments.get(place.segment_id)
                take = min(place.nbytes, left)
                if segment is None or place.offset + take > segment.nbytes:
                    raise GatewayUnavailable("the gateway granted memory that it has not handed on")
                if not segment.address:
                    segment.address = self.gpu.device.open_export(segment.handle)
                extents.append(Extent(segment.address + place.offset, take))
                left -= take
            if left:
                raise GatewayUnavailable("the gateway granted less memory than the object has")
            for place in places:
                self._segments[place.segment_id].uses += 1
        return extents

    def unmap(self, places: Sequence[Place]) -> None:
        """End what `map` began: nothing reads there any more."""
        with self._lock:
            for place in places:
                self._segments[place.segment_id].uses -= 1
            closed = self._close_unused({place.segment_id for place in places})
        self._tell(closed)

    def gone(self, segment_ids: Iterable[int]) -> None:
        """The gateway wants these segments' memory back."""
        with self._lock:
            known = [each for each in segment_ids if each in self._segments]
            for segment_id in known:
                self._segments[segment_id].gone = True
            closed = self._close_unused(known)
        self._tell(closed)

    def close(self, at_end: Callable[[], None]) -> None:
        """Unmap everything, now or when the last use ends, and then call `at_end`. Idempotent."""
        with self._lock:
            if self._at_end is not None:
                return
            self._at_end = at_end
            for segment in self._segments.values():
                segment.gone = True
            self._close_unused(list(self._segments))
            ended = not self._segments
        if ended:
            at_end()

    def _close_unused(self, segment_ids: Iterable[int]) -> list[int]:
        closed = [each for each in segment_ids if self._segments[each].gone and not self._segments[each].uses]
        for segment_id in closed:
            segment = self._segments.pop(segment_id)
            if segment.address:
                with suppress(DeviceError):  # the GPU or this process's use of it has ended
                    self.gpu.device.close_export(segment.address)
        return closed

    def _tell(self, closed: list[int]) -> None:
        if closed and self._at_end is None:
            self._say_unmapped(closed)
        elif closed and not self._segments and self._at_end is not None:
            self._at_end()
