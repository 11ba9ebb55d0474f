"""The fs tier: a folder that several gateways share, on NFS, CephFS, Lustre or a local disk.

Invariants
1. A file is written under `tmp/`, complete with its footer and closed, before it gets its name under `objects/`.
2. It gets its name only where nothing has it, in one step of the file system: the first writer wins. What lies under a
   name is never written to again.
3. Only a file that was looked at is taken away from its name, and put back if it is another one after all.
4. Every read checks the footer against the record, and every block against the footer.

So whatever dies, and whenever: what lies under a name is whole, or its footer tells that it is not. Anyone may delete
files and folders below `objects/` at any time; that is a miss. A file in `tmp/` that nobody has written to for
`temporary_age`, by the file system's own clock, is of a gateway that is gone, and is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from kvgate.config import GiB, Seconds, Size, option
from kvgate.errors import ConfigError, CorruptCopy, NotInTier, TierBusy, TierError, TierFull
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import HERE, Copy, Name, Record, Usage
from kvgate.tiers.disk_file import OpenFile
from kvgate.tiers.disk_streams import FileReader, FileUpload, footprint, unlink
from kvgate.tiers.fs_files import GONE, name_of, open_object, publish, sync_folders, take_away
from kvgate.tiers.fs_names import file_path

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NO_LIMIT_NBYTES = 1 << 62
_NAMES_AT_ONCE = 32
_FREE_EVERY_S = 1.0
_SWEEPS_AN_AGE = 4


@dataclass(frozen=True)
class FsConfig:
    """Where the shared folder lies, and how it is used."""

    path: Path = option(help="folder of the tier on one file system, the same for all gateways that share it")
    fsync: bool = option(
        default=False, help="whether objects also survive a loss of power of the file system, if writes get slower"
    )
    keep_free: Size = option(
        default=Size(1 * GiB), help="bytes of the file system that are left free; nothing more is written beyond that"
    )
    threads: int = option(default=8, help="files read or written at the same time, and as many looked up")
    temporary_age: Seconds = option(
        default=Seconds(3600.0),
        help="how long an unfinished file lies without a write before any of the gateways removes it; longer than an "
        "upload ever pauses",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ConfigError(f"threads: expected 1 to 256, got {self.threads}")
        if self.temporary_age < 1:
            raise ConfigError("temporary_age: expected at least 1 s")


class FsTier:
    """Objects as files in a folder that other gateways use too. See the module's invariants."""

    name = "fs"
    shared = True
    read_only = False
    Config = FsConfig

    def __init__(self, config: FsConfig) -> None:
        self._config = config
        self._temporary = config.path / "tmp"
        self._threads = started_threads(config.threads, "kvgate-fs")
        self._lookups = started_threads(config.threads, "kvgate-fs-lookup")
        self._mine = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._used_nbytes = 0
        self._free_nbytes = 0
        self._free_at = -_FREE_EVERY_S
        self._sweep: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See SharedTier. Raises TierError when the folder cannot be used."""
        await self.run((), self._prepare)
        self._sweep = asyncio.create_task(self._sweep_often())

    async def close(self) -> None:
        """See Tier."""
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._lookups.shutdown)

    def _prepare(self) -> None:
        for folder in (self._config.path / "objects", self._temporary):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._look_at_free()

    async def _sweep_often(self) -> None:
        while True:
            try:
                removed = await self.run((), self._remove_left_over)
            except TierError as error:
                logger.warning("%s tier: unfinished writes cannot be looked for: %s", self.name, error)
            else:
                if removed:
                    logger.info("%s tier: removed %d files of unfinished writes", self.name, removed)
            await asyncio.sleep(self._config.temporary_age / _SWEEPS_AN_AGE)

    def _remove_left_over(self) -> int:
        """Remove the temporary files that are too old; how many."""
        probe = self.temporary_path()
        fd = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            now = os.fstat(fd).st_mtime  # by the file system's clock, with which this machine's need not agree
        finally:
            os.close(fd)
            unlink(probe)
        removed = 0
        with os.scandir(self._temporary) as entries:
            for entry in entries:
                try:
                    if now - entry.stat(follow_symlinks=False).st_mtime > self._config.temporary_age:
                        removed += unlink(Path(entry.path))
                except OSError as error:
                    if error.errno not in GONE:
                        raise
        return removed

    # --- room ---------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """See Tier."""
        return Usage(max(0, self._used_nbytes), None)

    def room(self, tenant: str) -> int:
        """See Tier: what was free a moment ago."""
        return max(0, self._free_nbytes - self._config.keep_free)

    def limit(self) -> int:
        """See Tier."""
        return _NO_LIMIT_NBYTES

    def take(self, nbytes: int) -> None:
        """See Files."""
        self._used_nbytes += nbytes
        self._free_nbytes -= nbytes

    def _look_at_free(self) -> None:
        self._free_at = time.monotonic()
        there = os.statvfs(self._config.path)
        self._free_nbytes = there.f_bavail * there.f_frsize

    # --- copies -------------------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, nbytes: int | None) -> FileUpload:
        """See Tier."""
        if time.monotonic() - self._free_at >= _FREE_EVERY_S:
            await self.run((), self._look_at_free)
        room = self.room(tenant)
        if not room or (nbytes or 0) > room:
            raise TierFull(f"the file system has no room for {nbytes or 0} bytes (tiers.{self.name}.keep_free)")
        return FileUpload(self, _Place(self), HERE, nbytes or 0)

    async def publish(self, record: Record, copy: Copy) -> None:
        """See SharedTier: `finish` has done it."""

    def open(self, record: Record, copy: Copy) -> FileReader:
        """See Tier."""
        return FileReader(self, record, partial(self._open_version, record))

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """See SharedTier."""
        batches = [names[start : start + _NAMES_AT_ONCE] for start in range(0, len(names), _NAMES_AT_ONCE)]
        with _tier_errors(self.name):
            found = await asyncio.gather(*[run_holding((), self._lookups, self._look_up, batch) for batch in batches])
        return [record for batch in found for record in batch]

    async def delete(self, record: Record, copy: Copy) -> None:
        """See SharedTier."""
        if await self.run((), self._delete, record):
            self.take(-footprint(record.nbytes))

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def fsync(self) -> bool:
        """See Files."""
        return self._config.fsync

    def path(self, name: Name) -> Path:
        """Where the object of this name lies, if it is there."""
        return self._config.path / file_path(name)

    def temporary_path(self) -> Path:
        """Where a file lies that is not complete, or on its way out; each time another path."""
        return self._temporary / f"{self._mine}-{next(self._numbers):x}"

    def settle(self, temporary: Path, record: Record) -> bool:
        """Give a complete file its name. See `fs_files.publish`. Blocks."""
        path = self.path(name_of(record))
        is_new = publish(temporary, path, record, self.temporary_path)
        if self.fsync:
            sync_folders(path, self._config.path)
        return is_new

    async def run(self, lease: Lease | tuple[()], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See Files. Raises TierError for what the system refuses."""
        with _tier_errors(self.name):
            return await run_holding(lease, self._threads, fn, *args, **kwargs)

    def _look_up(self, names: Sequence[Name]) -> list[Record | None]:
        return [self._look_up_one(name) for name in names]

    def _look_up_one(self, name: Name) -> Record | None:
        try:
            fd, record, _ = open_object(self.path(name), name)
        except (NotInTier, CorruptCopy):
            return None
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        os.close(fd)
        return record

    def _open_version(self, record: Record) -> OpenFile:
        """The file that holds `record`. Raises NotInTier, CorruptCopy."""
        name = name_of(record)
        fd, found, blocks = open_object(self.path(name), name)
        if not found.same_body(record):
            os.close(fd)
            raise NotInTier("the file holds another version of the object")
        return OpenFile(fd, blocks)

    def _delete(self, record: Record) -> bool:
        """Remove this version, or what is no object at all; False when it is not there."""
        path = self.path(name_of(record))
        try:
            seen = path.stat()
            os.close(self._open_version(record).fd)
        except NotInTier:
            return False
        except CorruptCopy:
            pass
        except OSError as error:
            if error.errno in GONE:
                return False
            raise
        return take_away(path, seen, self.temporary_path())


class _Place:
    """See Place: the folder for what is unfinished, then the name."""

    def __init__(self, tier: FsTier) -> None:
        self.temporary = tier.temporary_path()
        self._tier = tier

    def settle(self, record: Record) -> bool:
        """See Place."""
        return self._tier.settle(self.temporary, record)

    def discard(self) -> None:
        """See Place. What has its name stays: it is whole, and others may have found it."""
        unlink(self.temporary)


@contextlib.contextmanager
def _tier_errors(name: str) -> Iterator[None]:
    """Turn what the system says into what a tier says."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise NotInTier("the file was removed while it was open") from error
        if error.errno in _OUT_OF_SPACE:
            raise TierFull(f"the file system is full: {error.strerror}") from error
        if error.errno in _OUT_OF_MEANS:
            raise TierBusy(f"the {name} tier cannot do this now: {error.strerror}") from error
        raise TierError(f"the {name} tier failed: {error.strerror}", transient=True) from error
