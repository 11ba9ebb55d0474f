"""What the suite asks of a server that it measures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from driver import Exchange
from processes import accepts, end, free_port, wait_until

OBJECTS = 16
"""Objects of a size on each server: at 32 MiB more than caches hold, and two for each of eight connections."""


class Absent(Exception):
    """The server is not installed here; the message says how it would be."""


class Peer(Protocol):
    """A server on a port of this machine, with OBJECTS objects that are overwritten by those of the next size."""

    name: str
    port: int

    @property
    def pid(self) -> int:
        """Of the process that it is, with all below it."""

    def start(self) -> None:
        """Return when it can be used. Raises Absent, and RuntimeError when it does not come up."""

    def stop(self) -> None:
        """End it, whatever state it is in. Idempotent."""

    def get(self, nbytes: int) -> Exchange:
        """Whole objects of that size, each of the OBJECTS once or more."""

    def put(self, nbytes: int) -> Exchange:
        """As `get`."""

    def head(self) -> Exchange:
        """The cheapest question whether an object is there."""


class Program:
    """A peer that is one program: starts it, waits for its port, ends it."""

    name: str

    def __init__(self, folder: Path) -> None:
        """folder: its own, made when it starts."""
        self.port = free_port()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.launch(self.command(), lambda: accepts(self.port))

    def command(self) -> list[str]:
        """The command line. Raises Absent."""
        raise Absent(f"{self.name} has no command")

    def launch(
        self, command: list[str], ready: Callable[[], bool], environment: Mapping[str, str] | None = None
    ) -> None:
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=self.folder)
        wait_until(ready, self._process, log)

    def stop(self) -> None:
        end(self._process, patience_s=1.0)  # what it keeps goes with its folder


def program(name: str, how: str) -> str:
    """The path of a program, in this Python's environment or on the PATH. Raises Absent with `how` to get it."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Absent(f"{name} is not installed ({how})")
    return found


def key_of(number: int) -> str:
    """The name of an object; all are equally long."""
    return f"object-{number:03}"
