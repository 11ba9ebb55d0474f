"""ARC: one queue of what was used once and one of what was used again, and ghosts of both that say which should grow.

Source: Megiddo and Modha, ARC: a self-tuning, low overhead replacement cache, FAST 2003.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, TypeVar

from kvgate.store.eviction.base import Identity, itself
from kvgate.store.eviction.ghosts import Ghosts
from kvgate.store.eviction.queues import Queues

K = TypeVar("K", bound=Hashable)

_ONCE, _AGAIN = 0, 1


class ARC(Queues[K]):
    """See EvictionPolicy. O(1).

    The size of the cache, which ARC is told, is here how many keys there are: they fill it when some have to go.
    """

    count: ClassVar[int] = 2

    def __init__(self, identity: Identity[K] = itself) -> None:
        super().__init__(identity)
        self._ghosts = Ghosts(), Ghosts()
        self._evicted = [1, 1]  # how many of each queue are remembered, about
        self._target = 0.0  # how many keys the first queue should have

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        identity = self._identity(key)
        once, again = self._evicted
        if self._ghosts[_ONCE].forget(identity):
            self._target = min(self._target + max(1.0, again / once), float(len(self)))
            self._evicted[_ONCE] = max(1, once - 1)
            self._queues[_AGAIN][key] = 0
        elif self._ghosts[_AGAIN].forget(identity):
            self._target = max(self._target - max(1.0, once / again), 0.0)
            self._evicted[_AGAIN] = max(1, again - 1)
            self._queues[_AGAIN][key] = 0
        else:
            self._queues[_ONCE][key] = 0

    def _use(self, key: K, queue: int) -> None:
        del self._queues[queue][key]
        self._queues[_AGAIN][key] = 0

    def _return(self, key: K, queue: int) -> None:
        self._queues[_AGAIN][key] = 0

    def _choose(self) -> tuple[K, int]:
        once, again = self._queues
        queue = _ONCE if once and (not again or len(once) > self._target) else _AGAIN
        return self._queues[queue].popitem(last=False)[0], queue

    def _remember(self, key: K, queue: int) -> None:
        ghosts = self._ghosts[queue]
        ghosts.fit(len(self))
        ghosts.see(self._identity(key))
        self._evicted[queue] = min(self._evicted[queue] + 1, max(1, len(self)))
