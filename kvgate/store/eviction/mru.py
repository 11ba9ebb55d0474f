"""Most recently used goes first: for loads that go round in a circle larger than the tier."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

from kvgate.store.eviction.lru import LRU

K = TypeVar("K", bound=Hashable)


class MRU(LRU[K]):
    """See EvictionPolicy. Every operation is O(1)."""

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        unknown = []
        for key in keys:  # the tail becomes the newest of them, and goes first
            if key in self._order:
                self._order.move_to_end(key)
            else:
                unknown.append(key)
        return unknown

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""
        self.touch_all(keys)

    def victims(self) -> Iterator[K]:
        """See EvictionPolicy."""
        return reversed(self._order)
