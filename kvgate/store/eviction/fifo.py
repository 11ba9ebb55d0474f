"""What came first goes first, used or not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from kvgate.store.eviction.base import Identity, itself

K = TypeVar("K", bound=Hashable)


class FIFO(Generic[K]):
    """See EvictionPolicy. Every operation is O(1)."""

    remembers: ClassVar[bool] = False

    def __init__(self, identity: Identity[K] = itself) -> None:
        self._identity = identity
        self._order: OrderedDict[K, None] = OrderedDict()

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        self._order[key] = None

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        return [key for key in keys if key not in self._order]

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""

    def note(self, key: K) -> None:
        """See EvictionPolicy."""

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        return True

    def evict(self, key: K) -> None:
        """See EvictionPolicy."""
        self._order.pop(key, None)

    def remove(self, key: K) -> None:
        """See EvictionPolicy."""
        self._order.pop(key, None)

    def victims(self) -> Iterator[K]:
        """See EvictionPolicy."""
        return iter(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order

    def __len__(self) -> int:
        return len(self._order)
