"""Segments whose memory is there before anyone asks for it.

The first touch of fresh memory costs the system about a second a GB: it finds, clears and maps every page. A thread
does that ahead of need, so that a body is received at the speed of memory that has been used before.

Invariants
1. A segment in the stock has had no owner and holds zeros; once taken it never comes back.
2. What the stock holds, the one being populated included, is at most the target, and at most what the arena has not
   assigned to segments. The second holds because segments are of one size, and whoever opens one takes it from here.
3. The arena's lock is held for accounting and for making a segment, never while memory is populated.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from kvgate.memory.segment import Segment, can_populate

logger = logging.getLogger(__name__)

_STEP_NBYTES = 2 << 20
"""So much is populated at a time, in about 2 ms: what `close` may have to wait for."""

_DELAY_S = 1.0
"""First the gateway has to get ready, for which it needs the cores."""


class Stock:
    """Keeps up to `target_nbytes` of segments ready. Methods are called under `lock`, except `close`."""

    def __init__(
        self, lock: threading.Lock, segment_nbytes: int, target_nbytes: int, unassigned: Callable[[], int]
    ) -> None:
        """unassigned: the bytes that new segments may take; called under `lock`"""
        self._segment_nbytes = segment_nbytes
        self._target_nbytes = target_nbytes if can_populate() else 0
        self._unassigned = unassigned
        self._ready: deque[Segment] = deque()
        self._filling: Segment | None = None
        self._filled_nbytes = 0  # of the one that is being populated
        self._closing = False
        self._changed = threading.Condition(lock)
        self._thread: threading.Thread | None = None
        if target_nbytes > self._target_nbytes:
            logger.warning("memory is not prepared ahead of need: that takes Linux 5.14 or later")

    @property
    def nbytes(self) -> int:
        """How much memory has been populated and waits for an owner."""
        return len(self._ready) * self._segment_nbytes + self._filled_nbytes

    def start(self, delay_s: float = _DELAY_S) -> None:
        """Begin to work in the background, after `delay_s`."""
        if self._target_nbytes >= self._segment_nbytes and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(delay_s,), name="kvgate-stock", daemon=True)
            self._thread.start()

    def take(self, nbytes: int) -> Segment | None:
        """A segment of `nbytes`: one that is ready, else as far as it has come; None where there is none."""
        if nbytes != self._segment_nbytes:
            return None
        if self._ready:
            segment = self._ready.popleft()
        elif self._filling is not None:
            segment, self._filling, self._filled_nbytes = self._filling, None, 0
        else:
            return None
        self._changed.notify()
        return segment

    def close(self) -> None:
        """End the thread and give the memory back. May be called twice; takes the lock."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            segments, self._filling, self._filled_nbytes = [*self._ready, self._filling], None, 0
            self._ready.clear()
        for segment in segments:
            if segment is not None:
                segment.close()

    def _run(self, delay_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, delay_s)
        while (segment := self._begin()) is not None:
            for offset in range(0, segment.nbytes, _STEP_NBYTES):
                nbytes = min(_STEP_NBYTES, segment.nbytes - offset)
                try:
                    segment.populate(offset, nbytes)
                except OSError as error:
                    logger.warning("memory is not prepared ahead of need any more: %s", error)
                    self._target_nbytes = 0
                with self._changed:
                    if self._closing or self._filling is not segment or not self._target_nbytes:
                        break
                    self._filled_nbytes += nbytes
            else:
                self._finish(segment)

    def _begin(self) -> Segment | None:
        """Wait until another segment may be populated, and make it; None when that is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self._target_nbytes or self._may_grow())
            if self._closing or not self._target_nbytes:
                return None
            try:
                self._filling = Segment(-1, self._segment_nbytes)
            except OSError as error:
                logger.warning("memory is not prepared ahead of need any more: %s", error)
                self._target_nbytes = 0
            return self._filling

    def _may_grow(self) -> bool:
        grown_nbytes = (len(self._ready) + 1) * self._segment_nbytes
        return grown_nbytes <= min(self._target_nbytes, self._unassigned())

    def _finish(self, segment: Segment) -> None:
        with self._changed:
            if self._filling is segment:
                self._ready.append(segment)
                self._filling, self._filled_nbytes = None, 0
