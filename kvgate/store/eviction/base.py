"""What an eviction policy decides: in which order the objects of one tenant leave one tier, and what is worth writing.

A policy is synchronous and pure: it sees keys and sizes, never bytes. Whether a victim may really go (it is not pinned,
leased or in flight) is the caller's business, who takes victims in the order given and passes over those that may not.

The KV of a chunk is of use only together with that of every chunk before it. So `touch_all` is given a chain head
first, and of two keys of it the policy lets the later one go first.

A policy that remembers what is not there any more knows it by its identity, because an object that comes back is
another key. `identity` gives it: an int of 64 bits at most, the same for both. Every policy is made as
`Policy(identity)` and passes `tests/contracts/eviction_policy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import ClassVar, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)

Identity = Callable[[K], int]


class EvictionPolicy(Protocol[K]):
    """Keeps an order over the keys it was given.

    No operation but `touch_all` and a whole walk of `victims` takes longer the more keys there are, or only
    logarithmically. What is remembered of keys that are not there takes at most about 100 bytes for each that is.

    remembers: whether `note` has an effect, and `admit` may say no
    """

    remembers: ClassVar[bool]

    def insert(self, key: K, nbytes: int) -> None:
        """Add a key that is not there yet. This alone is no use of it."""

    def touch(self, key: K) -> None:
        """Note a use. A key that is not there is ignored."""

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """Note a use of each key of a chain, head first; those that are not there, without adding them."""

    def arrange(self, keys: Sequence[K]) -> None:
        """Note that keys are a chain, head first, that was used lately. No use is counted; unknown keys are ignored.

        What is written of a chain arrives head first, so that this puts it into the order in which it should go.
        """

    def note(self, key: K) -> None:
        """Note a use of a key that is not there."""

    def admit(self, key: K, *, full: bool) -> bool:
        """Whether a key that is not there should be written to the tier. Asking changes nothing.

        full: something has to give way for it
        """

    def evict(self, key: K) -> None:
        """Take out a key that has given way to others; it may be remembered. A key that is not there is ignored."""

    def remove(self, key: K) -> None:
        """Forget a key whose object is gone. A key that is not there is ignored."""

    def victims(self) -> Iterator[K]:
        """Every key, the one to evict first first. The policy may not change while the iterator is used.

        To look changes nothing that can be seen: who looks again sees the same order.
        """

    def __contains__(self, key: object) -> bool:
        """Whether the key is there."""

    def __len__(self) -> int:
        """How many keys are there."""


def itself(key: K) -> int:
    """The identity of keys that are numbers, or that never come back as another key."""
    return hash(key)
