"""W-TinyLFU: a small window takes what is new, and the main part only what is used more often than its victim.

Source: Einziger, Friedman and Manes, TinyLFU: a highly efficient cache admission policy, ACM ToS 2017. The main part is
a segmented LRU.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, TypeVar

from kvgate.store.eviction.base import Identity, itself
from kvgate.store.eviction.queues import Queues
from kvgate.store.eviction.sketch import Sketch

K = TypeVar("K", bound=Hashable)

_WINDOW, _PROBATION, _PROTECTED = 0, 1, 2
_WINDOW_SHARE = 0.01
_PROTECTED_SHARE = 0.8


class WTinyLFU(Queues[K]):
    """See EvictionPolicy. O(1); 4 to 8 bytes of counters for each key that is there."""

    count: ClassVar[int] = 3

    def __init__(self, identity: Identity[K] = itself) -> None:
        super().__init__(identity)
        self._sketch = Sketch()

    def insert(self, key: K, nbytes: int) -> None:
        """See EvictionPolicy."""
        window, probation, _ = self._queues
        window[key] = 0
        while len(window) > self._window_keys():  # what gave way has made room in the main part
            probation[window.popitem(last=False)[0]] = 0

    def note(self, key: K) -> None:
        """See EvictionPolicy."""
        self._sketch.fit(len(self))
        self._sketch.see(self._identity(key))

    def admit(self, key: K, *, full: bool) -> bool:
        """See EvictionPolicy."""
        if not full:
            return True
        victim = next(iter(self._queues[_PROBATION] or self._queues[_PROTECTED]), None)
        return victim is None or self._uses(key) > self._uses(victim)

    def _use(self, key: K, queue: int) -> None:
        self.note(key)
        if queue == _PROBATION:
            del self._queues[_PROBATION][key]
            self._protect(key)
        else:
            self._queues[queue].move_to_end(key)

    def _return(self, key: K, queue: int) -> None:
        self.note(key)
        if queue == _WINDOW:
            self._queues[_WINDOW][key] = 0
        else:
            self._protect(key)

    def _protect(self, key: K) -> None:
        _, probation, protected = self._queues
        protected[key] = 0
        if len(protected) > _PROTECTED_SHARE * (len(probation) + len(protected)):
            demoted, _ = protected.popitem(last=False)
            probation[demoted] = 0

    def _choose(self) -> tuple[K, int]:
        window, probation, protected = self._queues
        rest, main = (_PROBATION, probation) if probation else (_PROTECTED, protected)
        if not main:
            return window.popitem(last=False)[0], _WINDOW
        if len(window) < self._window_keys():
            return main.popitem(last=False)[0], rest
        candidate, victim = next(iter(window)), next(iter(main))
        del window[candidate]
        if self._uses(candidate) <= self._uses(victim):
            return candidate, _WINDOW
        del main[victim]
        probation[candidate] = 0
        return victim, rest

    def _window_keys(self) -> float:
        return max(1.0, _WINDOW_SHARE * len(self))

    def _uses(self, key: K) -> int:
        return self._sketch.estimate(self._identity(key))
