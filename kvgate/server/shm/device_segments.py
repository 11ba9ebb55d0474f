"""The segments of a GPU's memory that one engine has been handed.

Invariants
1. What was handed on is the engine's to map until it says that it does not, or its end of the socket is closed: that
   long the tier gives no such memory back, whatever becomes of the engine's grants.
2. A segment is handed on once, and told to be gone once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvgate.memory import handoff
from kvgate.memory.allocator import Extent
from kvgate.tiers.base import Exporting


class DeviceSegments:
    """See the module.

    tier: on the GPU that the engine has named
    """

    def __init__(self, tier: Exporting) -> None:
        self.tier = tier
        self._handed: set[int] = set()
        self._told: set[int] = set()

    def __len__(self) -> int:
        """How many the engine may map now."""
        return len(self._handed)

    def introduce(self, extents: Sequence[Extent], send: Callable[[bytes], None]) -> bool:
        """Hand on what the engine does not know yet of where a lent copy lies. False where the driver exports it not.

        send: takes a frame to the engine
        """
        for segment_id in dict.fromkeys(extent.segment_id for extent in extents):
            if segment_id not in self._handed:
                found = self.tier.hand_on(segment_id)
                if found is None:
                    return False
                self._handed.add(segment_id)
                send(handoff.encode_device_segment(segment_id, *found))
        return True

    def gone(self) -> list[int]:
        """Segments that the engine is to unmap, and has not been told of."""
        gone = [each for each in self._handed - self._told if self.tier.is_retired(each)]
        self._told.update(gone)
        return gone

    def unmapped(self, segment_ids: Iterable[int]) -> None:
        """The engine maps these no more. Any other number means nothing."""
        for segment_id in self._told.intersection(segment_ids):
            self._told.discard(segment_id)
            self._handed.discard(segment_id)
            self.tier.take_back(segment_id)

    def end(self) -> None:
        """The engine maps nothing any more."""
        self._told.clear()
        while self._handed:
            self.tier.take_back(self._handed.pop())
