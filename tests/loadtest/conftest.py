"""What the tests of the load tests share: a compiled client, and the command lines run for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from driver import Driver

ROOT = Path(__file__).resolve().parents[2]
EXCERPT = ROOT / "loadtest" / "traces" / "mooncake-conversation-head.jsonl"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The load client, compiled."""
    try:
        return Driver(tmp_path_factory.mktemp("driver"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a script of loadtest/ with arguments, to its end."""

    def script(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "loadtest" / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    return script
