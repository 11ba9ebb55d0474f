"""Threads that ask first, then load, then store.

1. A thread takes what is most urgent of what waits. Stores are under way in at most half of the threads, so that a
   gateway that is slow to take does not keep requests waiting.
2. `close` begins nothing more: what has not begun is called with `dropped`, on the thread that closes.
3. Nothing that a call raises ends a thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

_log = logging.getLogger(__name__)

Call = Callable[[bool], None]
"""Told whether it was dropped: then it must not do its work, only say so."""


class Urgency(IntEnum):
    """What goes first."""

    LOOKUP = 0
    LOAD = 1
    STORE = 2


class Pool:
    """A fixed number of threads. Every method may be called from any thread, and none but `wait_idle` waits."""

    def __init__(self, threads: int) -> None:
        self._max_stores = max(1, threads // 2)
        self._changed = threading.Condition()
        self._waiting: tuple[deque[Call], ...] = tuple(deque() for _ in Urgency)
        self._running = dict.fromkeys(Urgency, 0)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"kvgate-tier-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, urgency: Urgency, call: Call) -> None:
        """Have `call` made soon; dropped at once after `close`."""
        with self._changed:
            closed = self._closed
            if not closed:
                self._waiting[urgency].append(call)
                self._changed.notify_all()
        if closed:
            _make(call, dropped=True)

    def drop(self, urgency: Urgency) -> None:
        """Drop what waits and has not begun."""
        with self._changed:
            dropped = list(self._waiting[urgency])
            self._waiting[urgency].clear()
            self._changed.notify_all()
        for call in dropped:
            _make(call, dropped=True)

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing waits or is under way; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._waiting) and not any(self._running.values()), timeout_s)

    def close(self) -> None:
        """Drop what has not begun, and wait for what has. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for urgency in Urgency:
            self.drop(urgency)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            urgency, call = taken
            _make(call, dropped=False)
            del call
            with self._changed:
                self._running[urgency] -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[Urgency, Call] | None:
        with self._changed:
            while True:
                for urgency in Urgency:
                    full = urgency is Urgency.STORE and self._running[urgency] >= self._max_stores
                    if self._waiting[urgency] and not full:
                        self._running[urgency] += 1
                        return urgency, self._waiting[urgency].popleft()
                if self._closed:
                    return None
                self._changed.wait()


def _make(call: Call, *, dropped: bool) -> None:
    try:
        call(dropped)
    except Exception:
        _log.exception("a call of the tier failed; this is a defect of kvgate")
