"""Fixtures that run vLLM, or skip where it cannot run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import Engine, Forked, Server, why_unavailable

SHARED_ENGINES = 2


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """An engine with these arguments, started by the first test that wants it: use prompts of your own.

    Few run at a time: the one that was not used for longest is ended.
    """
    _skip_without_vllm()
    running: dict[str, Engine] = {}
    folder = tmp_path_factory.mktemp("engines")

    def engine(model: Path, **arguments: Any) -> Engine:
        key = json.dumps([str(model), arguments], sort_keys=True)
        found = running.pop(key, None)
        if found is not None and not found.is_running:
            found = None  # a test has ended it
        if found is None:
            while len(running) >= SHARED_ENGINES:
                running.pop(next(iter(running))).kill()
            found = Engine(folder / f"{len(list(folder.iterdir()))}.log", model, **arguments)
        running[key] = found
        return found

    yield engine
    for each in running.values():
        each.kill()


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Start an engine for one test alone; it is killed after the test."""
    yield from _starter(Engine, tmp_path)


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """A process that has imported vLLM and runs no engine."""
    _skip_without_vllm()
    process = Forked(tmp_path_factory.mktemp("forked") / "log")
    yield process
    process.kill()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start vLLM's server for one test alone; it is killed after the test."""
    yield from _starter(Server, tmp_path)


def _starter(kind: type[Engine] | type[Server], folder: Path) -> Iterator[Callable[..., Any]]:
    _skip_without_vllm()
    started: list[Engine | Server] = []

    def start(model: Path, **arguments: Any) -> Engine | Server:
        started.append(kind(folder / f"{kind.__name__.lower()}{len(started)}.log", model, **arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def _skip_without_vllm() -> None:
    if reason := why_unavailable():
        pytest.skip(reason)
