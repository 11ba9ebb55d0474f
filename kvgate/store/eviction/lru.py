"""Least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class LRU(Generic[K]):
    """See EvictionPolicy. Every operation is O(1)."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        self._order[key] = None

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self._order:
            self._order.move_to_end(key)

    def touch_all(self, keys: Iterable[K]) -> list[K]:
        """See EvictionPolicy."""
        move, unknown = self._order.move_to_end, []
        for key in keys:
            try:
                move(key)
            except KeyError:
                unknown.append(key)
        return unknown

    def remove(self, key: K) -> None:
        """See EvictionPolicy."""
        self._order.pop(key, None)

    def victims(self) -> Iterator[K]:
        """See EvictionPolicy."""
        return iter(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order
