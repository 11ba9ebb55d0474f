"""The memory of the interpreter's own objects."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give freed memory back to the system that the C library would keep, where it is glibc. Takes milliseconds."""
    trim_malloc = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim_malloc is not None:
        trim_malloc(0)
