"""The durable index of a disk tier: which file holds which object, in SQLite.

Writes are gathered (`group_commit.py`) and take effect in the order of the calls. WAL with synchronous=NORMAL survives
the death of the process at any point; FULL also survives the loss of power.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from kvgate.errors import TierError, TierFull
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import NO_ATTRIBUTES, Record
from kvgate.tiers.group_commit import GroupCommit

BATCH_ROWS = 20_000

_VERSION = 2
_SCHEMA = f"""
create table namespaces (id integer primary key, tenant text not null, bucket text not null, unique (tenant, bucket));
create table objects (
    namespace integer not null, key text not null, file integer not null, nbytes integer not null,
    crc64nvme integer not null, mtime_ms integer not null, attributes text, stored integer,
    primary key (namespace, key)
) without rowid;
create index encoded on objects (file, stored) where stored is not null;
pragma user_version = {_VERSION};
"""
"""`stored` is what an encoded body takes, and null where the body lies as it was sent."""

_FROM_VERSION_1 = f"""
begin immediate;
alter table objects add column stored integer;
create index encoded on objects (file, stored) where stored is not null;
pragma user_version = {_VERSION};
commit;
"""
_PUT = """insert into objects values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (namespace, key) do update set
    file = excluded.file, nbytes = excluded.nbytes, crc64nvme = excluded.crc64nvme, mtime_ms = excluded.mtime_ms,
    attributes = excluded.attributes, stored = excluded.stored"""
_REMOVE = "delete from objects where namespace = ? and key = ? and file = ?"
_ALL = """select key, nbytes, crc64nvme, mtime_ms, attributes, file from objects where namespace = ? order by key"""
_STORED = "select file, stored from objects where stored is not null and typeof(stored) = 'integer' and stored >= 0"


class DiskIndex:
    """The index file of one disk tier. Except for `put` and `remove`, methods block and run in the caller's thread."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._thread = started_threads(1, "kvgate-disk-index")
        self._namespaces: dict[tuple[str, str], int] = {}
        self._changes = GroupCommit(self._thread, self._commit, _tier_error)
        self._db: sqlite3.Connection

    def exists(self) -> bool:
        """Whether there is an index file that is not empty."""
        return self._path.exists() and self._path.stat().st_size > 0

    def open(self) -> None:
        """Open or create the index. Raises sqlite3.DatabaseError when the file is no usable index."""
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("pragma journal_mode = wal")
            self._db.execute(f"pragma synchronous = {'full' if self._durable else 'normal'}")
            (version,) = self._db.execute("pragma user_version").fetchone()
            if version == 0:
                self._db.executescript(_SCHEMA)
            elif version == 1:
                self._db.executescript(_FROM_VERSION_1)
            elif version != _VERSION:
                raise TierError(f"{self._path} has index version {version}; this kvgate reads up to {_VERSION}")
            for number, tenant, bucket in self._db.execute("select id, tenant, bucket from namespaces"):
                self._namespaces[tenant, bucket] = number
        except UnicodeDecodeError as error:  # SQLite has cited what it could not read
            self._db.close()
            raise sqlite3.DatabaseError(f"the schema cannot be read: {error}") from error
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._thread.shutdown(wait=True)
        with contextlib.suppress(AttributeError):  # never opened
            self._db.close()

    def rows(self) -> Iterator[list[tuple[Record, int]]]:
        """Every object and its file, in batches sorted by key within a bucket. Raises sqlite3.DatabaseError."""
        texts: dict[str, Any] = {}
        lengths: dict[int, int] = {}  # equal ones share one object, as most chunks have one of a few
        for (tenant, bucket), namespace in list(self._namespaces.items()):
            cursor = self._db.execute(_ALL, (namespace,))
            while batch := cursor.fetchmany(BATCH_ROWS):
                if len(lengths) > BATCH_ROWS:
                    lengths.clear()
                try:
                    yield [
                        (
                            Record(
                                tenant,
                                bucket,
                                key,
                                lengths.setdefault(nbytes, nbytes),
                                crc & _U64,
                                mtime,
                                NO_ATTRIBUTES if text is None else _attributes(text, texts),
                            ),
                            file,
                        )
                        for key, nbytes, crc, mtime, text, file in batch
                        if nbytes >= 0 <= file
                    ]
                except (TypeError, ValueError) as error:
                    raise sqlite3.DatabaseError(f"a row cannot be read: {error}") from error

    def files(self) -> list[int]:
        """Every file that the index names. Raises TierError when it cannot be read."""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True)) as db:
                return [file for (file,) in db.execute("select file from objects")]
        except sqlite3.Error as error:
            raise TierError(f"the disk index could not be read: {error}", transient=True) from error

    def stored(self) -> dict[int, int]:
        """What the bodies of encoded files take, by file. Raises sqlite3.DatabaseError."""
        return dict(self._db.execute(_STORED))

    def put_now(self, rows: list[tuple[Record, int]], stored: Mapping[int, int] = MappingProxyType({})) -> None:
        """Record a batch of objects in the calling thread; used to rebuild the index before anything else runs.

        stored: what the bodies of those files take that are encoded
        """
        self._commit([(_PUT, record, file, stored.get(file)) for record, file in rows])

    async def put(self, record: Record, file: int, stored: int | None = None) -> None:
        """Record that `file` holds the current version of an object; durable on return. Raises TierError.

        stored: what the body takes when it is encoded
        """
        await self._changes.add([(_PUT, record, file, stored)])

    async def remove(self, record: Record, file: int) -> None:
        """Forget an object, if `file` is the one that the index has for it; durable on return. Raises TierError."""
        await self._changes.add([(_REMOVE, record, file, None)])

    def _commit(self, batch: list[tuple[str, Record, int, int | None]]) -> None:
        self._db.execute("begin immediate")
        try:
            for statement, record, file, stored in batch:
                namespace = self._namespace(record.tenant, record.bucket)
                if statement is _REMOVE:
                    self._db.execute(_REMOVE, (namespace, record.key, file))
                    continue
                text = json.dumps(dict(record.attributes), separators=(",", ":")) if record.attributes else None
                crc = record.crc64nvme - (1 << 64) if record.crc64nvme >> 63 else record.crc64nvme
                row = (namespace, record.key, file, record.nbytes, crc, record.mtime_ms, text, stored)
                self._db.execute(_PUT, row)
            self._db.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("rollback")
            self._forget_unsaved_namespaces()
            raise

    def _namespace(self, tenant: str, bucket: str) -> int:
        number = self._namespaces.get((tenant, bucket))
        if number is None:
            row = self._db.execute(
                "insert into namespaces (tenant, bucket) values (?, ?) returning id", (tenant, bucket)
            )
            (number,) = row.fetchone()
            self._namespaces[tenant, bucket] = number
        return number

    def _forget_unsaved_namespaces(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            saved = self._db.execute("select tenant, bucket, id from namespaces").fetchall()
            self._namespaces = {(tenant, bucket): number for tenant, bucket, number in saved}


_U64 = (1 << 64) - 1


def _attributes(text: str, known: dict[str, Any]) -> Any:
    """The attributes in a row; equal ones share one mapping, since a million chunks differ little in them."""
    if text not in known:
        if len(known) > BATCH_ROWS:
            known.clear()
        known[text] = json.loads(text)
    return known[text]


def _tier_error(error: BaseException) -> TierError:
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    message = f"the disk index could not be written: {error}"
    return TierFull(message) if full else TierError(message, transient=True)
