"""The write budget of a tier: so many bytes a day, for an SSD that should last, with bursts after a quiet time."""

from __future__ import annotations

from collections.abc import Callable

_DAY_S = 86400.0


class WriteBudget:
    """A token bucket of bytes. Synchronous and pure but for the clock; it is full at first.

    day_nbytes:   what may be written in a day
    burst_nbytes: the most that is saved up. An object that is larger is written when the bucket is full, and what it
                  took beyond that is made up for afterwards
    clock:        seconds that only go forward
    """

    def __init__(self, day_nbytes: int, burst_nbytes: int, clock: Callable[[], float]) -> None:
        self._rate = day_nbytes / _DAY_S
        self._burst_nbytes = float(burst_nbytes)
        self._clock = clock
        self._left_nbytes = self._burst_nbytes
        self._filled_s = clock()

    @property
    def left_nbytes(self) -> float:
        """What may be written now; negative after an object that was larger than the burst."""
        now = self._clock()
        self._left_nbytes = min(self._burst_nbytes, self._left_nbytes + self._rate * (now - self._filled_s))
        self._filled_s = now
        return self._left_nbytes

    def take(self, nbytes: int) -> bool:
        """Take an object's bytes, all or none; False when there are too few."""
        if self.left_nbytes < min(nbytes, self._burst_nbytes):
            return False
        self._left_nbytes -= nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Return what was taken for a write that has not come about."""
        self._left_nbytes = min(self._burst_nbytes, self._left_nbytes + nbytes)
