"""What the policies share that keep several queues and find the next victim by moving keys between them.

A key that has been found to go next is set aside. It stays there until it goes, or is used and comes back; whoever
looks at the victims again, because some may not go, begins with those, so that the order stays what it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from kvgate.store.eviction.base import Identity, itself

K = TypeVar("K", bound=Hashable)


class Queues(ABC, Generic[K]):
    """An EvictionPolicy but for where a key comes in, what a use does, and who goes next."""

    remembers: ClassVar[bool] = True
    count: ClassVar[int]
    """How many queues there are."""

    def __init__(self, identity: Identity[K] = itself) -> None:
        self._identity = identity
        self._queues: tuple[OrderedDict[K, int], ...] = tuple(OrderedDict() for _ in range(self.count))
        self._next: OrderedDict[K, int] = OrderedDict()  # those set aside, and from which queue

    @abstractmethod
    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""

    @abstractmethod
    def _use(self, key: K, queue: int) -> None:
        """Note a use of a key that is in a queue."""

    @abstractmethod
    def _return(self, key: K, queue: int) -> None:
        """Take back a key that was set aside, from a queue, and has been used."""

    @abstractmethod
    def _choose(self) -> tuple[K, int]:
        """Take the next victim out of the queues, which are not all empty, and say from which."""

    def _remember(self, key: K, queue: int) -> None:
        """Remember a key that has given way."""

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""
        for queue, keys in enumerate(self._queues):
            if key in keys:
                self._use(key, queue)
                return
        if key in self._next:
            self._return(key, self._next.pop(key))

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        for key in reversed(keys):
            self.touch(key)
        return [key for key in keys if key not in self]

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""

    def note(self, key: K) -> None:
        """See EvictionPolicy."""

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        return True

    def evict(self, key: K) -> None:
        """See EvictionPolicy."""
        queue = self._take(key)
        if queue is not None:
            self._remember(key, queue)

    def remove(self, key: K) -> None:
        """See EvictionPolicy."""
        self._take(key)

    def victims(self) -> Iterator[K]:
        """See EvictionPolicy."""
        yield from self._next
        while any(self._queues):
            key, queue = self._choose()
            self._next[key] = queue
            yield key

    def _take(self, key: K) -> int | None:
        """Take a key out; the queue that it was in."""
        if key in self._next:
            return self._next.pop(key)
        for queue, keys in enumerate(self._queues):
            if key in keys:
                del keys[key]
                return queue
        return None

    def __contains__(self, key: object) -> bool:
        return key in self._next or any(key in keys for keys in self._queues)

    def __len__(self) -> int:
        return len(self._next) + sum(map(len, self._queues))
