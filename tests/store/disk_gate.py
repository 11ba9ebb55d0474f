"""A disk that stops or fails at a chosen byte: what `os.preadv` does, for files below one folder of a test."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter

import pytest

_REAL_PREADV = os.preadv


class DiskGate:
    """Reads that would touch byte `hold_at` wait until `open`, and those that would touch `fail_at` fail with EIO."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hold_at: int | None = None
        self.fail_at: int | None = None
        self.reads: Counter[int] = Counter()
        """How often was read from each offset."""
        self.waiting = threading.Event()
        self._opened = threading.Event()
        monkeypatch.setattr(os, "preadv", self._preadv)

    def open(self) -> None:
        self.hold_at = None
        self._opened.set()

    def _preadv(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self.reads[offset] += 1
        end = offset + sum(map(len, buffers))
        if self.hold_at is not None and offset <= self.hold_at < end:
            self.waiting.set()
            assert self._opened.wait(20)
        if self.fail_at is not None and offset <= self.fail_at < end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _REAL_PREADV(fd, buffers, offset)
