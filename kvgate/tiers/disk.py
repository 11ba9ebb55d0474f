"""The disk tier: one file an object, an index in SQLite, and no trust in either.

Invariants
1. A file is written under `tmp/`, complete with its footer, and renamed into `objects/` before the index names it.
2. The index names a file only after `publish`; a file that it does not name is an orphan, and is removed.
3. File numbers are never used twice while the tier is open, so no two copies share a file.
4. Every read checks the footer against the record, and every block against the footer.
5. A file is never written to again. One that is to be encoded, or not to be any more, gets a successor with a number of
   its own, which the index then names instead of it.

After the death of the process at any point, `start` finds the published copies whole. After a loss of power it finds
them if `fsync` is on; otherwise some may be torn, and their reads raise CorruptCopy.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import logging
import os
import shutil
import sqlite3
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from kvgate.codec.base import Codec
from kvgate.config import MiB, Size, option
from kvgate.errors import ConfigError, CorruptCopy, TierBusy, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import Copy, Record, Usage
from kvgate.tiers.disk_file import describe_file, open_verified
from kvgate.tiers.disk_index import BATCH_ROWS, DiskIndex
from kvgate.tiers.disk_streams import (
    FOOTER_ALLOWANCE_NBYTES,
    PAGE_NBYTES,
    FileReader,
    FileUpload,
    footprint,
    unlink,
)
from kvgate.tiers.quarantine import Quarantine
from kvgate.tiers.recoding import Recoding

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_FILES_PER_FOLDER = 4096
_FREE_SHARE = 0.8
_SWEEP_AFTER_S = 1.0
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TRANSIENT = (errno.EIO, errno.EINTR)


@dataclass(frozen=True)
class DiskConfig:
    """Where the disk tier lies and how much it may take."""

    path: Path = option(help="folder of the disk tier; one gateway at a time uses it")
    capacity: Size | None = option(
        default=None, help="bytes on disk that the tier may take; by default 80 % of what is free at the start"
    )
    fsync: bool = option(
        default=False, help="whether published objects also survive a loss of power, at the price of slower writes"
    )
    threads: int = option(default=4, help="files read or written at the same time")
    quarantine: Size = option(
        default=Size(128 * MiB),
        help="bytes of files found to be corrupt that are kept for you to look at, besides `capacity`, the oldest "
        "leaving first; 0 removes them at once",
    )
    quarantine_files: int = option(default=64, help="how many such files are kept")

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ConfigError(f"threads: expected 1 to 256, got {self.threads}")
        if not 0 <= self.quarantine_files <= 10_000:
            raise ConfigError(f"quarantine_files: expected 0 to 10000, got {self.quarantine_files}")


class DiskTier:
    """Objects as files below one folder. See the module's invariants."""

    name = "disk"
    shared = False
    read_only = False
    Config = DiskConfig

    def __init__(self, config: DiskConfig) -> None:
        self._config = config
        self._objects = config.path / "objects"
        self._temporary = config.path / "tmp"
        self._index = DiskIndex(config.path / "index.sqlite3", durable=config.fsync)
        self._quarantine = Quarantine(config.path / "quarantine", config.quarantine, config.quarantine_files)
        self._strays: dict[int, float] = {}  # files that are no copy of anything, and when that was seen first
        self._threads = started_threads(config.threads, "kvgate-disk")
        self._stored: dict[int, int] = {}  # what the bodies of encoded files take; the others take their length
        self._used_nbytes = 0
        self._capacity_nbytes = 0
        self._file_numbers = itertools.count(1)
        self._folders: set[Path] = set()
        self._lock_fd = -1
        self._sweep: asyncio.Task[None] | None = None
        self._closing = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See Tier. An index that cannot be read is set aside and rebuilt from the files."""
        began = time.monotonic()
        newest = await self.run((), self._prepare)
        try:
            if newest and not self._index.exists():
                raise sqlite3.DatabaseError("it is missing")
            await self.run((), self._index.open)
            live = await self.run((), self._report, found)
        except sqlite3.DatabaseError as error:
            await self.run((), self._rebuild, error)
            live = await self.run((), self._report, found)
        free = shutil.disk_usage(self._config.path).free
        self._capacity_nbytes = self._config.capacity or int((free + self._used_nbytes) * _FREE_SHARE)
        self._file_numbers = itertools.count(newest + 1)
        logger.info("disk tier: %d objects found in %.2f s", len(live), time.monotonic() - began)
        self._sweep = asyncio.create_task(self._remove_orphans_later(live, newest))

    async def close(self) -> None:
        """See Tier."""
        self._closing = True
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._index.close)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _prepare(self) -> int:
        """Make the folders and take the lock; the highest file number in use."""
        self._objects.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = os.open(self._config.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TierError(f"{self._config.path} is in use by another gateway; give each its own folder") from error
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(mode=0o700)
        self._quarantine.open()
        folders = [int(folder.name, 16) for folder in self._objects.iterdir()]
        return max(folders) * _FILES_PER_FOLDER + _FILES_PER_FOLDER if folders else 0

    def _report(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> array[int]:
        """Pass on what the index holds; the numbers of its files.

        All in one thread: a million records that change between two cores take half as long again.
        """
        live: array[int] = array("Q")
        self._used_nbytes = 0
        self._stored = self._index.stored()
        for batch in self._index.rows():
            live.extend([file for _, file in batch])
            sizes = Counter([record.nbytes for record, _ in batch])
            self._used_nbytes += sum(footprint(nbytes) * count for nbytes, count in sizes.items())
            if self._stored:
                encoded = [(record, file) for record, file in batch if file in self._stored]
                self._used_nbytes += sum(self._footprint(*each) - footprint(each[0].nbytes) for each in encoded)
            found(batch)
        return live

    def _rebuild(self, error: Exception) -> None:
        logger.error("the disk index cannot be read (%s); rebuilding it from the files", error)
        self._index.close()
        base = self._config.path / "index.sqlite3"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{base}{suffix}", f"{base}{suffix}.unreadable")
        self._index = DiskIndex(base, durable=self.fsync)
        self._index.open()
        newest: dict[tuple[str, ...], tuple[Record, int]] = {}
        stored: dict[int, int] = {}
        for file, path in self._files():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    record, _, encoding = describe_file(fd)
                finally:
                    os.close(fd)
            except (OSError, CorruptCopy):
                continue  # no row will name it, so that it is removed as an orphan
            known = newest.get(record[:3])
            if known is None or known[1] < file:
                newest[record[:3]] = (record, file)
                if encoding is not None:
                    stored[file] = encoding.stored_nbytes
        rows = list(newest.values())
        for begin in range(0, len(rows), BATCH_ROWS):
            self._index.put_now(rows[begin : begin + BATCH_ROWS], stored)
        logger.warning("the disk index is rebuilt: %d objects", len(rows))

    def _files(self) -> Iterator[tuple[int, str]]:
        for folder in self._objects.iterdir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield int(entry.name, 16), entry.path

    async def _remove_orphans_later(self, live: array[int], newest: int) -> None:
        await asyncio.sleep(_SWEEP_AFTER_S)  # first the gateway has to get ready
        await self.run((), self._remove_orphans, live, newest)

    def _remove_orphans(self, live: array[int], newest: int) -> None:
        """Remove the files up to number `newest` that the index did not name at the start."""
        named = bytearray(newest // 8 + 1)  # a bit a file
        for file in live:
            if file <= newest:
                named[file >> 3] |= 1 << (file & 7)
        removed = 0
        for file, path in self._files():
            if self._closing:
                return
            if file <= newest and not named[file >> 3] >> (file & 7) & 1:
                removed += unlink(Path(path))
        if removed:
            logger.info("disk tier: removed %d files of unfinished writes", removed)

    # --- room ---------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """See Tier."""
        return Usage(self._used_nbytes, self._capacity_nbytes)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return _body_nbytes(self._capacity_nbytes - self._used_nbytes)

    def limit(self) -> int:
        """See Tier."""
        return _body_nbytes(self._capacity_nbytes)

    def take(self, nbytes: int) -> None:
        """Count `nbytes` more as taken, or give back when negative; for this tier's uploads."""
        self._used_nbytes += nbytes

    # --- copies -------------------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, nbytes: int | None) -> FileUpload:
        """See Tier."""
        if nbytes is not None and nbytes > self.room(tenant):
            raise TierFull(f"the disk tier has no room for {nbytes} bytes")
        file = next(self._file_numbers)
        return FileUpload(self, _Place(self, file), file, nbytes or 0)

    async def publish(self, record: Record, copy: Copy) -> None:
        """See Tier."""
        await self._index.put(record, copy, self._stored.get(copy))

    def open(self, record: Record, copy: Copy) -> FileReader:
        """See Tier."""
        return FileReader(self, record, partial(open_verified, str(self.path(copy)), record))

    async def blocks(self, record: Record, copy: Copy) -> array[int]:
        """See Digested."""
        return await self.run((), self._blocks, record, copy)

    async def delete(self, record: Record, copy: Copy) -> None:
        """See Tier."""
        try:
            await self._index.remove(record, copy)
        finally:
            if await self.run((), unlink, self.path(copy)):
                self.take(-self._footprint(record, copy))
                self._stored.pop(copy, None)

    # --- inspection: see Inspected -----------------------------------------------------------------------------------

    def inspect(self, record: Record, copy: Copy) -> FileReader:
        """See Inspected."""
        return FileReader(self, record, partial(open_verified, str(self.path(copy)), record), cached=False)

    async def set_aside(self, record: Record, copy: Copy) -> None:
        """See Inspected."""
        try:
            await self._index.remove(record, copy)
        finally:
            if await self.run((), self._quarantine.take, self.path(copy)):
                self.take(-self._footprint(record, copy))
                self._stored.pop(copy, None)

    # --- encoding: see Encodes ---------------------------------------------------------------------------------------

    def stored_nbytes(self, record: Record, copy: Copy) -> int:
        """See Encodes."""
        return self._stored.get(copy, record.nbytes)

    async def recode(self, record: Record, copy: Copy, codecs: Sequence[Codec]) -> Copy:
        """See Encodes."""
        if bool(codecs) == (copy in self._stored) or (codecs and footprint(record.nbytes) <= footprint(1)):
            return copy
        if record.nbytes > self.room(record.tenant):
            raise TierFull(f"the disk tier has no room for {record.nbytes} bytes")
        file = next(self._file_numbers)
        open_file = partial(open_verified, str(self.path(copy)), record)
        recoding = Recoding(open_file, _Place(self, file), record, codecs, fsync=self.fsync)
        taken_nbytes = footprint(record.nbytes)
        self.take(taken_nbytes)
        try:
            while await self.run((), recoding.step):
                pass
            encoding = await self.run((), recoding.finish)
        except BaseException:
            self.take(-taken_nbytes)
            await self.run((), recoding.discard)
            raise
        if codecs and encoding is None:
            self.take(-taken_nbytes)
            return copy
        if encoding is not None:
            self._stored[file] = encoding.stored_nbytes
        self.take(self._footprint(record, file) - taken_nbytes)
        return file

    def _footprint(self, record: Record, copy: Copy) -> int:
        return footprint(self.stored_nbytes(record, copy))

    async def set_strays_aside(self, age_s: float) -> int:
        """See Inspected."""
        return await self.run((), self._set_strays_aside, age_s)

    def kept_aside(self) -> tuple[int, int]:
        """See Inspected."""
        return self._quarantine.kept

    def _set_strays_aside(self, age_s: float) -> int:
        now = time.monotonic()
        files = dict(self._files())  # before the index, so that it names all of these that it ever will by then
        for file in self._index.files():
            files.pop(file, None)
        self._strays = {file: self._strays.get(file, now) for file in files}
        old = [file for file, seen in self._strays.items() if now - seen >= age_s]
        return sum(self._quarantine.take(Path(files[file])) for file in old)

    def _blocks(self, record: Record, copy: Copy) -> array[int]:
        file = open_verified(str(self.path(copy)), record)
        os.close(file.fd)
        return file.blocks

    # --- for uploads and readers --------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The tier's folder."""
        return self._config.path

    def path(self, file: int) -> Path:
        """Where file number `file` lies."""
        return self._objects / f"{file // _FILES_PER_FOLDER:x}" / f"{file:x}"

    def temporary_path(self, file: int) -> Path:
        """Where file number `file` lies until it is complete."""
        return self._temporary / f"{file:x}"

    def settle(self, file: int) -> None:
        """Move a complete file to its place. Blocks."""
        path = self.path(file)
        if path.parent not in self._folders:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._folders.add(path.parent)
        os.rename(self.temporary_path(file), path)
        if self.fsync:
            for folder in (path.parent, self._objects):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    @property
    def fsync(self) -> bool:
        """Whether files must survive a loss of power."""
        return self._config.fsync

    async def run(self, lease: Lease | tuple[()], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in one of the tier's threads, to its end even when the caller is cancelled.

        The lease is held until then. Raises TierError for what the system refuses.
        """
        with _tier_errors():
            return await run_holding(lease, self._threads, fn, *args, **kwargs)


class _Place:
    """See Place: where file number `file` goes."""

    def __init__(self, tier: DiskTier, file: int) -> None:
        self.temporary = tier.temporary_path(file)
        self._tier = tier
        self._file = file

    def settle(self, record: Record) -> bool:
        """See Place."""
        self._tier.settle(self._file)
        return True

    def discard(self) -> None:
        """See Place."""
        unlink(self.temporary)
        unlink(self._tier.path(self._file))  # where a `finish` that was cancelled may have brought it


def _body_nbytes(room_nbytes: int) -> int:
    """The largest body whose footprint fits into `room_nbytes`, to within two pages."""
    return max(0, room_nbytes - FOOTER_ALLOWANCE_NBYTES - PAGE_NBYTES - 8 * (room_nbytes // BLOCK_NBYTES))


@contextlib.contextmanager
def _tier_errors() -> Iterator[None]:
    """Turn what the system says into what a tier says."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_SPACE:
            raise TierFull(f"the disk is full: {error.strerror}") from error
        if error.errno in _OUT_OF_MEANS:
            raise TierBusy(f"the disk tier cannot do this now: {error.strerror}") from error
        logger.error("the disk tier failed: %s", error)  # noqa: TRY400 - a disk is no defect of ours
        raise TierError(f"the disk tier failed: {error.strerror}", transient=error.errno in _TRANSIENT) from error
