"""What an eviction policy decides: in which order the objects of one tenant leave one tier.

A policy is synchronous and pure: it sees keys and sizes, never bytes. Whether a victim may really go (it is not pinned,
leased or in flight) is the caller's business, who takes victims in the order given and passes over those that may not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class EvictionPolicy(Protocol[K]):
    """Keeps an order over the keys it was given."""

    def insert(self, key: K, nbytes: int) -> None:
        """Add a key that is not there yet."""

    def touch(self, key: K) -> None:
        """Note a use. A key that is not there is ignored."""

    def touch_all(self, keys: Iterable[K]) -> list[K]:
        """Note a use of each key, in order; those that are not there, without adding them."""

    def remove(self, key: K) -> None:
        """Forget a key. A key that is not there is ignored."""

    def victims(self) -> Iterator[K]:
        """Every key, the one to evict first first. The policy may not change while the iterator is used."""

    def __contains__(self, key: object) -> bool:
        """Whether the key is there."""
