"""A tier in one SQLite file that the gateways of a host share: an example of a tier from another package.

Each MiB of a body is a row, under a number that nobody knows until the row of the object names it: that row makes all
of them visible at once, and there is one for each key, so that the first writer wins. It holds kvgate's footer, which
names the object and has the digests of its blocks.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvgate.config import Seconds, option
from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, span_of_blocks, verify_blocks
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.tiers.base import HERE, Arrived, Copy, Name, Record, Usage
from kvgate.tiers.footer import decode_footer, encode_footer

T = TypeVar("T")

_LEFT_OVER_S = 3600
_NO_LIMIT_NBYTES = 1 << 62
_SCHEMA = """
create table if not exists blocks (
    body integer not null, number integer not null, written integer not null, bytes blob not null,
    primary key (body, number)
) without rowid;
create table if not exists objects (
    tenant text not null, bucket text not null, key text not null, body integer not null, footer blob not null,
    primary key (tenant, bucket, key)
) without rowid;
"""
_FIND = "select body, footer from objects where tenant = ? and bucket = ? and key = ?"


@dataclass(frozen=True)
class SqliteConfig:
    """The options of the tier, as `tiers.sqlite` in the configuration has them."""

    path: Path = option(help="the SQLite file, on a disk of this host")
    busy_timeout: Seconds = option(default=Seconds(5.0), help="how long to wait while another gateway writes")


class SqliteTier:
    """See the module, and `kvgate.tiers.base.SharedTier`."""

    name = "sqlite"
    shared = True
    read_only = False
    Config = SqliteConfig

    def __init__(self, config: SqliteConfig) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvgate-sqlite")
        self._used_nbytes = 0
        self._db: sqlite3.Connection | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """A shared tier reports nothing: it is asked with `lookup`."""
        await self.run((), self._open)

    async def close(self) -> None:
        if self._db is not None:
            await self.run((), self._db.close)
        await asyncio.to_thread(self._thread.shutdown)

    def _open(self) -> None:
        self._config.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._config.path, timeout=self._config.busy_timeout, isolation_level=None)
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.executescript(_SCHEMA)
        db.execute(  # of gateways that died in the middle of a write
            "delete from blocks where written < ? and body not in (select body from objects)",
            (int(time.time()) - _LEFT_OVER_S,),
        )
        self._db = db

    async def run(self, leases: Lease | tuple[()], fn: Callable[..., T], *args: Any) -> T:
        """What `fn` gives in the tier's thread, which keeps the lease to its end, also when the caller is gone."""
        try:
            return await run_holding(leases, self._thread, fn, *args)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
                raise TierFull(f"the {self.name} tier is full") from error
            raise TierError(f"the {self.name} tier failed: {error}", transient=True) from error

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None, "the tier is not started"
        return self._db

    # --- room: SQLite has no limit but the disk's ---------------------------------------------------------------------

    def usage(self) -> Usage:
        return Usage(max(0, self._used_nbytes), None)

    def room(self, tenant: str) -> int:
        return _NO_LIMIT_NBYTES

    def limit(self) -> int:
        return _NO_LIMIT_NBYTES

    def take(self, nbytes: int) -> None:
        self._used_nbytes += nbytes

    # --- copies -------------------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, nbytes: int | None) -> SqliteUpload:
        return SqliteUpload(self)

    async def publish(self, record: Record, copy: Copy) -> None:
        """`finish` has done it."""

    def open(self, record: Record, copy: Copy) -> SqliteReader:
        return SqliteReader(self, record)

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        return await self.run((), self._look_up, names)

    def _look_up(self, names: Sequence[Name]) -> list[Record | None]:
        found: list[Record | None] = []
        for name in names:
            row = self.find(name)
            found.append(row[1] if row else None)
        return found

    async def delete(self, record: Record, copy: Copy) -> None:
        if await self.run((), self._delete, record):
            self.take(-record.nbytes)

    def _delete(self, record: Record) -> bool:
        self.db.execute("begin immediate")
        with self.db:
            row = self.find(Name(*record[:3]))
            if row is None or not row[1].same_body(record):
                return False
            self.db.execute("delete from objects where tenant = ? and bucket = ? and key = ?", record[:3])
            self.db.execute("delete from blocks where body = ?", (row[0],))
        return True

    def find(self, name: Name) -> tuple[int, Record, array[int]] | None:
        """The number of the body, the record and the digests of an object; None where there is none that is whole."""
        row = self.db.execute(_FIND, name).fetchone()
        if row is None:
            return None
        body, footer = row
        (nbytes,) = self.db.execute(
            "select coalesce(sum(length(bytes)), 0) from blocks where body = ?", (body,)
        ).fetchone()
        try:
            record, blocks = decode_footer(footer, nbytes + len(footer))
        except CorruptCopy:
            return None
        return (body, record, blocks) if record[:3] == name else None


class SqliteUpload:
    """See `kvgate.tiers.base.Upload`."""

    def __init__(self, tier: SqliteTier) -> None:
        self._tier = tier
        self._body = secrets.randbits(62)
        self._number = 0
        self._rest = bytearray()  # the block that is not complete yet
        self._nbytes = 0
        self._ended = False

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        self._tier.take(stop - start)
        self._nbytes += stop - start
        await self._tier.run(lease, self._write, lease.slices(start, stop))

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        self._ended = True
        try:
            is_new = await self._tier.run((), self._finish, record, encode_footer(record, blocks))
        except BaseException:
            self._ended = False
            raise
        if not is_new:
            self._tier.take(-self._nbytes)
        return HERE

    async def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._tier.take(-self._nbytes)
            await self._tier.run((), self._discard)

    def _write(self, views: list[memoryview]) -> None:
        for view in views:
            self._rest += view
        with self._tier.db:
            while len(self._rest) >= BLOCK_NBYTES:
                self._put(self._rest[:BLOCK_NBYTES])
                del self._rest[:BLOCK_NBYTES]

    def _put(self, block: bytes) -> None:
        self._tier.db.execute(
            "insert into blocks values (?, ?, ?, ?)", (self._body, self._number, int(time.time()), block)
        )
        self._number += 1

    def _finish(self, record: Record, footer: bytes) -> bool:
        """Make the object visible; False when the same one is there already. Raises NotAdmitted for another one."""
        db = self._tier.db
        db.execute("begin immediate")  # from here on no other gateway writes
        with db:
            there = self._tier.find(Name(*record[:3]))
            if there is not None and not there[1].same_body(record):
                raise NotAdmitted("the key has another body there")
            if there is not None:
                db.execute("delete from blocks where body = ?", (self._body,))
                return False
            if self._rest:
                self._put(bytes(self._rest))
            db.execute("insert or replace into objects values (?, ?, ?, ?, ?)", (*record[:3], self._body, footer))
            return True

    def _discard(self) -> None:
        self._tier.db.execute("delete from blocks where body = ?", (self._body,))


class SqliteReader:
    """See `kvgate.tiers.base.Reader`. Nothing stays open between two reads."""

    def __init__(self, tier: SqliteTier, record: Record) -> None:
        self._tier = tier
        self._record = record

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        return await self._tier.run(lease, self._read, start, lease.slices(0, nbytes), nbytes)

    async def close(self) -> None:
        pass

    def _read(self, start: int, views: list[memoryview], nbytes: int) -> array[int]:
        db, record = self._tier.db, self._record
        db.execute("begin")  # one view of the file for all that follows
        try:
            there = self._tier.find(Name(*record[:3]))
            if there is None or not there[1].same_body(record):
                raise NotInTier("there is no such object any more")
            body, _, blocks = there
            wanted = span_of_blocks(start, start + nbytes)
            rows = db.execute(
                "select bytes from blocks where body = ? and number >= ? and number < ? order by number",
                (body, wanted.start, wanted.stop),
            )
            _fill(views, (row[0] for row in rows))
        finally:
            db.execute("rollback")
        if not verify_blocks(views, start, start + nbytes, record.nbytes, blocks):
            raise CorruptCopy("the bytes in the file do not match their digest")
        return blocks[wanted]


def _fill(views: Sequence[memoryview], pieces: Iterable[bytes]) -> None:
    """Copy `pieces` one after the other into `views`; what does not fit is left out."""
    targets = iter(views)
    target = memoryview(b"")
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if not target and not (target := next(targets, memoryview(b""))):
                return
            count = min(len(rest), len(target))
            target[:count] = rest[:count]
            target, rest = target[count:], rest[count:]
