"""A circuit breaker: after a failure, a while without calls.

1. Closed: every call is allowed. A failure opens the breaker for `first_s`.
2. Open: no call is allowed until the time is over; then calls are again, as trials.
3. A trial that fails opens it for twice as long as before, at most `longest_s`; one that succeeds closes it.
4. Failures while it is open, of calls that began before, change nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Breaker:
    """Keeps a dead gateway from costing a deadline at every request. Every method may be called from any thread."""

    def __init__(
        self, first_s: float = 1.0, longest_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._pause_s = 0.0
        self._until_s = clock()

    def allows(self) -> bool:
        """Whether a call may be made now."""
        with self._lock:
            return self._clock() >= self._until_s

    def failed(self) -> None:
        """The gateway could not be reached, or was late with everything."""
        with self._lock:
            now_s = self._clock()
            if now_s < self._until_s:
                return
            self._pause_s = min(self._pause_s * 2 or self._first_s, self._longest_s)
            self._until_s = now_s + self._pause_s

    def succeeded(self) -> None:
        """The gateway answered, whatever it said."""
        with self._lock:
            self._pause_s = 0.0
            self._until_s = self._clock()
