"""Duel: two shadow caches, of metadata only, show which admission rule suits the load now.

One shadow admits everything, the other what is used a second time; both evict by LRU, as this policy does. Both see
every use, and the rule of the one that has had more hits lately decides. Where they are equal, the second touch wins,
as it writes less.

Shadows of many keys would take as much memory again. So from 2 * _SHADOW_KEYS keys on only a part of the identities,
chosen by their bits, is shown to shadows that are smaller by the same factor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeVar

from kvgate.store.eviction.base import Identity, itself
from kvgate.store.eviction.ghosts import Ghosts, spread
from kvgate.store.eviction.second_touch import GHOSTS, SecondTouch

K = TypeVar("K", bound=Hashable)

_SHADOW_KEYS = 4096
"""A shadow has at most twice as many keys."""
_ROUND = 8192
"""Uses shown to the shadows after which the hits of the past count half."""


class _Shadow:
    """An LRU of identities: what a cache with this admission rule would hold."""

    def __init__(self, *, second_touch: bool) -> None:
        self.hits = 0.0
        self._keys: OrderedDict[int, None] = OrderedDict()
        self._ghosts = Ghosts() if second_touch else None

    def __len__(self) -> int:
        return len(self._keys)

    def use(self, identity: int, capacity: int, *, full: bool) -> None:
        """Note a use: a hit, or a miss that is followed by a write if the rule admits it."""
        keys, ghosts = self._keys, self._ghosts
        if identity in keys:
            self.hits += 1
            keys.move_to_end(identity)
            return
        if ghosts is not None and full and not ghosts.forget(identity):
            ghosts.fit(GHOSTS * capacity)
            ghosts.see(identity)
            return
        keys[identity] = None
        while full and len(keys) > capacity:
            gone, _ = keys.popitem(last=False)
            if ghosts is not None:
                ghosts.see(gone)

    def arrange(self, identities: Sequence[int]) -> None:
        """See EvictionPolicy."""
        for identity in reversed(identities):
            if identity in self._keys:
                self._keys.move_to_end(identity)

    def keep(self, mask: int) -> None:
        """Keep only the identities that are shown from now on."""
        for identity in [each for each in self._keys if spread(each) & mask]:
            del self._keys[identity]


class Duel(SecondTouch[K]):
    """See EvictionPolicy. Every operation is O(1); as second touch, and at most a few MiB of shadows."""

    def __init__(self, identity: Identity[K] = itself) -> None:
        super().__init__(identity)
        self._all, self._second = _Shadow(second_touch=False), _Shadow(second_touch=True)
        self._mask_bits = 0
        self._shown = 0
        self._full = False  # something has had to give way, so that the keys that are there fill the tier

    @property
    def admits_all(self) -> bool:
        """Whether everything is admitted at present."""
        return self._all.hits > self._second.hits

    @property
    def shadow_keys(self) -> int:
        """How many identities both shadows hold together."""
        return len(self._all) + len(self._second)

    def touch(self, key: K) -> None:
        """See EvictionPolicy."""
        if key in self._order:
            self._order.move_to_end(key)
            self._show(self._identity(key))

    def touch_all(self, keys: Sequence[K]) -> list[K]:
        """See EvictionPolicy."""
        unknown = super().touch_all(keys)
        left_out = set(unknown)
        for key in reversed(keys):
            if key not in left_out:
                self._show(self._identity(key))
        return unknown

    def arrange(self, keys: Sequence[K]) -> None:
        """See EvictionPolicy."""
        super().arrange(keys)
        for shadow in (self._all, self._second):
            shadow.arrange([self._identity(key) for key in keys])

    def note(self, key: K) -> None:
        """See EvictionPolicy."""
        super().note(key)
        self._show(self._identity(key))

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        return self.admits_all or super().admit(key, full=full)

    def evict(self, key: K) -> None:
        """See EvictionPolicy."""
        self._full = True
        super().evict(key)

    def _show(self, identity: int) -> None:
        """Have the shadows see a use, if it is of the part that they see."""
        mask = (1 << self._mask_bits) - 1
        if spread(identity) & mask:
            return
        capacity = len(self) >> self._mask_bits
        if capacity > 2 * _SHADOW_KEYS:
            self._mask_bits += 1
            for shadow in (self._all, self._second):
                shadow.keep((1 << self._mask_bits) - 1)
            return
        self._shown += 1
        for shadow in (self._all, self._second):
            shadow.use(identity, max(1, capacity), full=self._full)
            if self._shown % _ROUND == 0:
                shadow.hits /= 2
