"""One time limit over a whole call, however many steps it takes."""

from __future__ import annotations

import time

from kvgate.errors import DeadlineExceeded


class Deadline:
    """The moment by which a call must have ended, on the monotonic clock.

    Every blocking step asks for what is left, so a peer that trickles cannot stretch the total. Another thread may
    `cut` it: the call then ends as if its time were over.
    """

    __slots__ = ("_cut", "_end_s", "_total_s", "_whole")

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._end_s = time.monotonic() + total_s
        self._cut = False
        self._whole: Deadline | None = None

    def remaining_s(self) -> float:
        """Seconds left, more than 0. Raises DeadlineExceeded when there are none."""
        left_s = self._end_s - time.monotonic()
        if not left_s > 0 or self._is_cut():
            raise DeadlineExceeded(f"the call did not end within {self._total_s:g} s")
        return left_s

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end_s or self._is_cut()

    def share(self, parts: int = 1) -> Deadline:
        """A deadline within this one, after one of `parts` equal parts of the time left. It may be cut on its own.

        Raises DeadlineExceeded when no time is left.
        """
        return self._within(self._total_s, self.remaining_s() / parts)

    def capped(self, seconds: float) -> Deadline:
        """A deadline within this one, after at most `seconds`. It may be cut on its own.

        Raises DeadlineExceeded when no time is left.
        """
        left_s = min(seconds, self.remaining_s())
        return self._within(left_s, left_s)

    def _within(self, total_s: float, left_s: float) -> Deadline:
        part = Deadline(total_s)
        part._end_s = time.monotonic() + left_s
        part._whole = self
        return part

    def cut(self) -> None:
        """End the call now, and every share of its time, from any thread."""
        self._cut = True

    def _is_cut(self) -> bool:
        return self._cut or (self._whole is not None and self._whole._is_cut())
