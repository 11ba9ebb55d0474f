"""S3-FIFO: a small queue that filters what is used once, a main queue with second chances, and ghosts of the small one.

Source: Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, TypeVar

from kvgate.store.eviction.base import Identity, itself
from kvgate.store.eviction.ghosts import Ghosts
from kvgate.store.eviction.queues import Queues

K = TypeVar("K", bound=Hashable)

_SMALL, _MAIN = 0, 1
_SMALL_SHARE = 0.1
_PROMOTED = 1
"""Uses in the small queue that bring a key to the main one."""
_MOST_USES = 3


class S3FIFO(Queues[K]):
    """See EvictionPolicy. O(1), amortised over the uses; the queues hold how often a key was used."""

    count: ClassVar[int] = 2

    def __init__(self, identity: Identity[K] = itself) -> None:
        super().__init__(identity)
        self._ghosts = Ghosts()

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        self._queues[_MAIN if self._ghosts.forget(self._identity(key)) else _SMALL][key] = 0

    def _use(self, key: K, queue: int) -> None:
        keys = self._queues[queue]
        keys[key] = min(keys[key] + 1, _MOST_USES)

    def _return(self, key: K, queue: int) -> None:
        self._queues[_MAIN][key] = 0

    def _choose(self) -> tuple[K, int]:
        small, main = self._queues
        while True:
            if small and (not main or len(small) > _SMALL_SHARE * (len(small) + len(main))):
                key, uses = small.popitem(last=False)
                if uses < _PROMOTED:
                    return key, _SMALL
                main[key] = 0
            else:
                key, uses = main.popitem(last=False)
                if not uses:
                    return key, _MAIN
                main[key] = uses - 1

    def _remember(self, key: K, queue: int) -> None:
        if queue == _SMALL:
            self._ghosts.fit(len(self))
            self._ghosts.see(self._identity(key))
