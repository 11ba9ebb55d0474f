"""A second thread for a copy that one thread cannot make, and verify, at the speed of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable


class CopyThread:
    """A thread that makes the other half of one copy at a time."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._work: Callable[[], None] | None = None
        self._begin, self._end = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> bool:
        """Begin `work` if no other is under way; `join` has to follow. False when one is."""
        if not self._free.acquire(blocking=False):
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvgate-copy", daemon=True)
            self._thread.start()
        self._work = work
        self._begin.release()
        return True

    def join(self) -> None:
        """Wait for the end of the work, and raise what it raised."""
        self._end.acquire()
        error, self._error = self._error, None
        self._free.release()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread once it is free."""
        if self._thread is not None:
            self._begin.release()

    def _run(self) -> None:
        while True:
            self._begin.acquire()
            work, self._work = self._work, None
            if work is None:
                return
            try:
                work()
            except BaseException as error:
                self._error = error
            self._end.release()
