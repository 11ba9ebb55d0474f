"""A small SQLite file for what owners ask the store to remember: what was written is there after any crash."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kvgate.errors import TierError
from kvgate.memory.threads import started_threads
from kvgate.tiers.group_commit import GroupCommit

logger = logging.getLogger(__name__)

Statement = tuple[str, Sequence[Any]]
"""SQL with its parameters."""


class DurableFile:
    """One file, or with no path nothing that survives. Except for `write`, methods block."""

    def __init__(self, path: Path | None, schema: str, version: int = 1) -> None:
        """schema: of an empty file; `version` is that of the schema, and a file with another one is set aside."""
        self._path, self._schema, self._version = path, schema, version
        self._db: sqlite3.Connection | None = None
        self._thread = started_threads(1, "kvgate-durable")
        self._changes = GroupCommit(self._thread, self._commit, self._tier_error)

    def open(self) -> None:
        """Open or create the file; one that cannot be used is set aside, and everything in it is forgotten."""
        if self._path is None:
            return
        try:
            self._db = self._connect(self._path)
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".unreadable")
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{suffix}").replace(f"{aside}{suffix}")
            logger.warning("%s cannot be read (%s) and is now %s; what it said is forgotten", self._path, error, aside)
            self._db = self._connect(self._path)

    def close(self) -> None:
        """Finish what is being written and close the file. Idempotent."""
        self._thread.shutdown(wait=True)
        if self._db is not None:
            self._db.close()
            self._db = None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds; nothing where nothing survives."""
        return [] if self._db is None else self._db.execute(query).fetchall()

    async def write(self, statements: Iterable[Statement]) -> None:
        """Carry out statements, all or none of them; durable on return. Raises TierError."""
        statements = list(statements)
        if self._db is None or not statements:
            return
        await self._changes.add(statements)

    def _commit(self, batch: Sequence[Statement]) -> None:
        assert self._db is not None
        self._db.execute("begin immediate")
        try:
            for statement, parameters in batch:
                self._db.execute(statement, parameters)
            self._db.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("rollback")
            raise

    def _tier_error(self, error: BaseException) -> TierError:
        return TierError(f"{self._path} could not be written: {error}", transient=True)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
            (version,) = db.execute("pragma user_version").fetchone()
            if version == 0:
                db.executescript(f"begin; {self._schema}; pragma user_version = {self._version}; commit;")
            elif version != self._version:
                raise sqlite3.DatabaseError(f"it has version {version}, this kvgate reads {self._version}")
        except BaseException:
            db.close()
            raise
        return db
