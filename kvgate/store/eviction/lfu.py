"""Least frequently used goes first; of those used equally often, the one whose last use is longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from sortedcontainers import SortedDict

from kvgate.store.eviction.base import Identity, itself

K = TypeVar("K", bound=Hashable)


class LFU(Generic[K]):
    """See EvictionPolicy. Keys by how often they were used; an operation is O(log n) in the number of such classes.

    Uses are counted only while a key is there. They do not age: what was popular once stays long.
    """

    remembers: ClassVar[bool] = False

    def __init__(self, identity: Identity[K] = itself) -> None:
        self._uses: dict[K, int] = {}
        self._classes: SortedDict = SortedDict()  # by number of uses, OrderedDicts of keys

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        self._put(key, 0)

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self._uses:
            self._put(key, self._take(key) + 1)

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        for key in reversed(keys):
            self.touch(key)
        return [key for key in keys if key not in self._uses]

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""

    def note(self, key: K) -> None:
        """See EvictionPolicy."""

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        return True

    def evict(self, key: K) -> None:
        """See EvictionPolicy."""
        self.remove(key)

    def remove(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self._uses:
            self._take(key)

    def victims(self) -> Iterator[K]:
        """See EvictionPolicy."""
        for keys in self._classes.values():
            yield from keys

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def _put(self, key: K, uses: int) -> None:
        self._uses[key] = uses
        keys = self._classes.get(uses)
        if keys is None:
            keys = self._classes[uses] = OrderedDict()
        keys[key] = None

    def _take(self, key: K) -> int:
        uses = self._uses.pop(key)
        keys = self._classes[uses]
        del keys[key]
        if not keys:
            del self._classes[uses]
        return uses
