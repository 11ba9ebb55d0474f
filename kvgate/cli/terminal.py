"""Words for a terminal: keys that cannot control it, sizes for people, and a count that goes on while work does."""

from __future__ import annotations

import sys
import time

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_INTERVAL_S = 0.2


def printable(text: str) -> str:
    """The text with everything that is no visible character escaped, so that a key cannot move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def human_size(nbytes: int) -> str:
    """A size of three or four digits, such as `32.0 MiB`."""
    if nbytes < 1024:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in _UNITS:
        size /= 1024
        if size < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def human_duration(seconds: float) -> str:
    """A duration in one unit, such as `3 min`."""
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def bar(share: float, width: int = 20) -> str:
    """A bar of so many characters, filled as far as `share` of 1 says."""
    filled = int(max(0.0, min(share, 1.0)) * width)
    return f"[{'#' * filled}{'-' * (width - filled)}]"


class Progress:
    """One line on standard error that is rewritten as work goes on, and is silent when nobody watches."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._next_s = time.monotonic() + _INTERVAL_S

    def say(self, text: str) -> None:
        """Show `text`, at most a few times a second."""
        if self._watched and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _INTERVAL_S
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
