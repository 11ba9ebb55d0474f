"""How often identities were seen lately: an estimate in a few bytes for each, that is never too low but for ageing.

A count-min sketch: each identity has four counters, shared with others, and the lowest of them is the estimate. When as
many uses were counted as _AGE times the counters, all are halved.
"""

from __future__ import annotations

from kvgate.store.eviction.ghosts import spread

_MOST = 15
_AGE = 2
_HALVED = bytes(value // 2 for value in range(256))


class Sketch:
    """Counters up to _MOST."""

    def __init__(self) -> None:
        self._counters = bytearray(64)
        self._seen = 0

    @property
    def nbytes(self) -> int:
        """Bytes of counters."""
        return len(self._counters)

    def fit(self, keys: int) -> None:
        """Have at least four counters for each of `keys`. What is known is kept."""
        while len(self._counters) < 4 * keys:
            self._counters += bytes(self._counters)  # an identity's place is taken modulo the length

    def see(self, identity: int) -> None:
        """Count one more."""
        counters, places = self._counters, self._places(identity)
        least = min(counters[place] for place in places)
        if least < _MOST:
            for place in places:
                if counters[place] == least:
                    counters[place] = least + 1
        self._seen += 1
        if self._seen >= _AGE * len(counters):
            self._counters, self._seen = counters.translate(_HALVED), self._seen // 2

    def estimate(self, identity: int) -> int:
        """How often it was seen, about."""
        counters = self._counters
        return min(counters[place] for place in self._places(identity))

    def _places(self, identity: int) -> tuple[int, int, int, int]:
        mixed, last = spread(identity), len(self._counters) - 1
        step = mixed >> 32 | 1
        return mixed & last, mixed + step & last, mixed + 2 * step & last, mixed + 3 * step & last
