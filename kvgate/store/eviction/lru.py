"""Least recently used goes first, and of a chain that was used at once its tail."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import TypeVar

from kvgate.store.eviction.fifo import FIFO

K = TypeVar("K", bound=Hashable)


class LRU(FIFO[K]):
    """See EvictionPolicy. Every operation is O(1)."""

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self._order:
            self._order.move_to_end(key)

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        unknown: list[K] = []
        moves = map(self._order.move_to_end, reversed(keys))  # the tail becomes the oldest of them
        while True:
            try:
                deque(moves, maxlen=0)
                break
            except KeyError as error:
                unknown.append(error.args[0])
        unknown.reverse()
        return unknown

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""
        LRU.touch_all(self, keys)
