"""The real command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Kvgate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kvgate(tmp_path: Path) -> Kvgate:
    """Run `kvgate ARGUMENTS`, with no settings but those in `env`, and with a data folder of its own."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KVGATE", "AWS", "XDG"))
        }
        environment |= {"XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONWARNINGS": "error", "COLUMNS": "120"}
        return subprocess.run(
            [sys.executable, "-m", "kvgate.cli", *map(str, arguments)],
            env=environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run
