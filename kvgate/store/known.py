"""What this gateway knows shared tiers to hold, kept across restarts in a file a tier beside the disk tier.

A shared tier reports nothing when a gateway starts: without this, a restart would forget which objects are there, and
until each was asked for again a tenant's usage would be too low, and what was cut off on its way to the tier would
never get there. It is knowledge, not truth: what it names and the tier has not got any more is a miss, and a file that
cannot be read is begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from kvgate.tiers.base import HERE, Copy, Record
from kvgate.tiers.disk_index import DiskIndex

logger = logging.getLogger(__name__)

_NO_FILE = 0


class Known:
    """The objects that one shared tier is known to hold. `note` returns at once."""

    def __init__(self, path: Path, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._path = path
        self._index = DiskIndex(path, durable=False)
        self._spawn = spawn
        self._open = False

    async def load(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """Report what is known, in batches and in another thread."""
        try:
            await asyncio.to_thread(self._load, found)
        except sqlite3.DatabaseError as error:
            logger.warning(
                "%s cannot be read (%s); what the tier holds is found again when it is asked for",
                *(self._path.name, error),
            )
            await asyncio.to_thread(self._begin_anew)
        self._open = True

    def note(self, record: Record) -> None:
        """Remember an object."""
        if self._open:
            self._spawn(self._index.put(record, _NO_FILE))

    async def forget(self, record: Record) -> None:
        """Forget an object; return when no restart would bring it back. Raises TierError."""
        if self._open:
            await self._index.remove(record, _NO_FILE)

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._open = False
        self._index.close()

    def _load(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        self._index.open()
        for batch in self._index.rows():
            found([(record, HERE) for record, _ in batch])

    def _begin_anew(self) -> None:
        self._index.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").unlink()
        self._index = DiskIndex(self._path, durable=False)
        self._index.open()
