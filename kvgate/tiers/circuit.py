"""Whether a tier is asked at all: a circuit breaker.

Invariants
1. Closed: every call is made. `failures` failures in a row open it; a success in between starts the count anew.
2. Open: no call is made. After `retry_after_s` a trial may begin.
3. Half-open: one trial is under way, and no call is made. Its success closes the circuit. Its failure opens it again,
   and so does its end without a verdict: the next trial begins `retry_after_s` later.
4. A verdict counts only in the period in which its call began: what began before the circuit opened changes nothing
   after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "half-open", "open"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a tier is.

    state:  `closed` while it is asked, `open` while it counts as away, `half-open` while that is being tried
    for_s:  how long it has been asked, or away
    error:  what failed last, since it started; empty if nothing did
    """

    state: State
    for_s: float
    error: str

    @property
    def away(self) -> bool:
        """Whether the tier is not asked."""
        return self.state != "closed"


class Circuit:
    """The state of one tier. Synchronous."""

    def __init__(self, failures: int, retry_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_failures = failures
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._failures = 0
        self._since_s = clock()
        self._trial_at_s = 0.0
        self._error = ""
        self.state: State = "closed"
        self.period = 0
        """Goes with a call, to tell with its verdict when the call began."""

    @property
    def health(self) -> Health:
        """How the tier is now."""
        return Health(self.state, self._clock() - self._since_s, self._error)

    def due_s(self) -> float:
        """How long it is until a trial may begin; 0 when it may."""
        return max(0.0, self._trial_at_s - self._clock())

    def try_now(self) -> bool:
        """Begin a trial if the circuit is open and one is due."""
        if self.state != "open" or self.due_s() > 0:
            return False
        self._go("half-open")
        return True

    def succeeded(self, period: int) -> None:
        """A call that began in `period` was answered."""
        if period != self.period:
            return
        self._failures = 0
        if self.state == "half-open":
            self._since_s = self._clock()
            self._go("closed")

    def failed(self, period: int, error: str) -> None:
        """A call that began in `period` was not answered."""
        if period != self.period:
            return
        self._error = error
        self._failures += 1
        if self.state == "half-open":
            self._open()
        elif self.state == "closed" and self._failures >= self._most_failures:
            self.trip(error)

    def note(self, error: str) -> None:
        """An error that is not the tier's absence, such as a password that it refuses."""
        self._error = error

    def trip(self, error: str) -> None:
        """Open a closed circuit at once."""
        self._error = error
        self._since_s = self._clock()
        self._open()

    def left(self, period: int) -> None:
        """A call that began in `period` ended without telling anything of the tier, for example cancelled."""
        if period == self.period and self.state == "half-open":
            self._open()

    def _open(self) -> None:
        self._trial_at_s = self._clock() + self._retry_after_s
        self._go("open")

    def _go(self, state: State) -> None:
        self.state = state
        self.period += 1
        self._failures = 0
