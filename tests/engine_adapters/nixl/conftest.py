"""Workers in processes of their own. Their tests are skipped where no interpreter with NIXL is at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine_adapters.nixl.workers import PeerProcess, python_with_nixl

Start = Callable[..., PeerProcess]


@pytest.fixture(scope="session")
def nixl_python() -> str:
    """An interpreter that has NIXL."""
    python = python_with_nixl()
    if python is None:
        pytest.skip("no interpreter with NIXL: neither this one, nor .cache/vllm, nor KVGATE_NIXL_PYTHON")
    return python


@pytest.fixture
def start(nixl_python: str) -> Iterator[Start]:
    """Start a worker; the arguments are those of `peer.Peer`."""
    started: list[PeerProcess] = []

    def begin(**options: Any) -> PeerProcess:
        started.append(PeerProcess(nixl_python, **options))
        return started[-1]

    yield begin
    for peer in started:
        peer.kill()


@pytest.fixture(scope="module")
def pair(nixl_python: str) -> Iterator[tuple[PeerProcess, PeerProcess]]:
    """A prefill and a decode worker that the tests of a module share; use request ids of your own."""
    prefill, decode = PeerProcess(nixl_python), PeerProcess(nixl_python)
    yield prefill, decode
    prefill.kill()
    decode.kill()
