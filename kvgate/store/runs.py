"""Runs: which keys of a KV client follow one another, learnt from the order in which it names them.

A run is a chain of chunks, in which the hash of each depends on all that come before. So a key follows one key only,
while several may follow it (sequences that share a prefix). The first order seen may be wrong, where sequences take
turns or one is named all at once; the more often a predecessor is seen, the longer it lasts when another one is.

Invariants
1. A key has at most one predecessor, and at most _FANOUT successors, the most recent first; each lists the other.
2. Both belong to one series. What is learnt of a series is never an answer about another.
3. At most `limit` keys and _MAX_SERIES series are remembered. The key that was named least recently is forgotten first,
   and no answer names one that is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice

_FANOUT = 4
_MAX_SERIES = 1024
_GAP_S = 2.0
"""What is named after a longer silence begins something new."""

_CONFIRMED, _CERTAIN = 2, 3
"""How often a predecessor was seen less how often another key was: enough to be confirmed, and the most that counts."""


class _Key:
    """One remembered key. `seen` is how far its predecessor is believed; 0 without one."""

    __slots__ = ("following", "name", "previous", "seen", "series")

    def __init__(self, series: Hashable, name: str) -> None:
        self.series = series
        self.name = name
        self.previous: _Key | None = None
        self.seen = 0
        self.following: list[_Key] = []


class Runs:
    """The runs of one tenant. Synchronous and pure.

    limit: how many keys are remembered; each takes about half a kilobyte
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[tuple[Hashable, str], _Key] = OrderedDict()
        self._last: OrderedDict[Hashable, tuple[str, float]] = OrderedDict()  # by series, what was named last, and when

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._keys)

    def observe(self, series: Hashable, name: str, now: float) -> None:
        """Note that a client has named a key, at `now` in seconds of a steady clock. Repetitions say nothing."""
        before = self._just_before(series, now)
        self._last[series] = (name, now)
        self._last.move_to_end(series)
        if len(self._last) > _MAX_SERIES:
            self._last.popitem(last=False)
        key = self._keys.get((series, name))
        if key is None:
            key = self._keys[series, name] = _Key(series, name)
            _link(key, before)
            if len(self._keys) > self._limit:
                self._forget(self._keys.popitem(last=False)[1])
        elif key is not before:
            _weigh(key, before)
        self._keys.move_to_end((series, name))

    def ahead(self, series: Hashable, name: str, count: int) -> list[str]:
        """Up to `count` keys that will probably be named after this one, the next first.

        One that is not confirmed is a guess: it is named only right behind this key, and nothing behind it.
        """
        key = self._keys.get((series, name))
        found: dict[str, None] = {}
        level = [key] if key is not None else []
        while level and len(found) < count:
            behind = []
            for each in level:
                for following in each.following:
                    if following is key or following.name in found:
                        continue
                    if following.seen >= _CONFIRMED:
                        behind.append(following)
                    elif each is not key:
                        continue
                    found[following.name] = None
            level = behind
        return list(islice(found, count))

    def _just_before(self, series: Hashable, now: float) -> _Key | None:
        """The key that the series named last, unless that was long ago or it is forgotten."""
        name, named_s = self._last.get(series, ("", 0.0))
        return self._keys.get((series, name)) if now - named_s <= _GAP_S else None

    def _forget(self, key: _Key) -> None:
        _unlink(key)
        for following in list(key.following):
            _unlink(following)


def _weigh(key: _Key, before: _Key | None) -> None:
    """Take into account that `before` came before a known key."""
    if before is not None and key.previous is before:
        key.seen = min(key.seen + 1, _CERTAIN)
        before.following.remove(key)
        before.following.insert(0, key)
    elif key.seen > 1:
        key.seen -= 1
    else:
        _unlink(key)
        _link(key, before)


def _link(key: _Key, previous: _Key | None) -> None:
    if previous is not None:
        key.previous, key.seen = previous, 1
        previous.following.insert(0, key)
        for dropped in previous.following[_FANOUT:]:
            _unlink(dropped)


def _unlink(key: _Key) -> None:
    if key.previous is not None:
        key.previous.following.remove(key)
        key.previous, key.seen = None, 0
