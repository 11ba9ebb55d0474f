"""Fixtures that run LMCache, or skip where it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lmcache.processes import LMCacheProcess, why_unavailable


@pytest.fixture
def start_lmcache(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a process of LMCache, given its class and that one's arguments but the log; it is killed after the test."""
    if reason := why_unavailable():
        pytest.skip(reason)
    started: list[LMCacheProcess] = []

    def start(kind: type[LMCacheProcess], *arguments: Any) -> LMCacheProcess:
        started.append(kind(tmp_path / f"lmcache{len(started)}.log", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.close()
