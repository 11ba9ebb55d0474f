from __future__ import annotations

import os
from pathlib import Path

from kvgate.memory import heap


def resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    pieces = [bytes(100_000) for _ in range(2000)]
    last = pieces[-1]  # without it the C library would shorten its heap by itself
    full_nbytes = resident_nbytes()
    del pieces
    heap.trim()
    assert resident_nbytes() < full_nbytes - 100_000_000
    assert last == bytes(100_000)
