"""Second touch: what is used for the first time is not worth a write, what comes back is. As 2Q, with an LRU behind it.

What was evicted counts as seen once, so that it is written again as soon as it is used again. While nothing has to give
way, everything is written: an empty tier is of use to nobody.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, TypeVar

from kvgate.store.eviction.base import Identity, itself
from kvgate.store.eviction.ghosts import Ghosts
from kvgate.store.eviction.lru import LRU

K = TypeVar("K", bound=Hashable)

GHOSTS = 3
"""Ghosts for each key that is there: from 3 on hit rates hardly grow on the traces of docs/eviction.md."""


class SecondTouch(LRU[K]):
    """See EvictionPolicy. Every operation is O(1); about 60 bytes of ghosts for each key that is there."""

    remembers: ClassVar[bool] = True

    def __init__(self, identity: Identity[K] = itself) -> None:
        super().__init__(identity)
        self._ghosts = Ghosts()

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        super().insert(key, nbytes)
        self._ghosts.forget(self._identity(key))

    def note(self, key: K) -> None:
        """See EvictionPolicy."""
        self._ghosts.fit(GHOSTS * len(self))
        self._ghosts.see(self._identity(key))

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        return not full or self._ghosts.seen(self._identity(key)) > 1

    def evict(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self:
            super().evict(key)
            self.note(key)
