"""Calls that are made some time from now, all by one thread."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Later:
    """Makes calls when their time has come; they should be short. Thread-safe."""

    def __init__(self, name: str) -> None:
        """name: of the thread, which is started by the first call"""
        self._name = name
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, pause_s: float, what: Callable[[], None]) -> None:
        """Call `what` after a pause; at once, and here, when this is closed."""
        with self._changed:
            if not self._closed:
                heapq.heappush(self._calls, (time.monotonic() + pause_s, next(self._numbers), what))
                self._changed.notify_all()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()
                return
        what()

    def close(self) -> None:
        """Make the calls that are left now, and end the thread. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._calls or self._calls[0][0] > time.monotonic()):
                    self._changed.wait(self._calls[0][0] - time.monotonic() if self._calls else None)
                if not self._calls:
                    return
                what = heapq.heappop(self._calls)[2]
            what()
