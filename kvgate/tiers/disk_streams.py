"""Bytes on their way into and out of a tier of files: one file being written, one file being read."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from kvgate.errors import CorruptCopy, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, span_of_blocks, verify_blocks
from kvgate.memory.lease import Lease
from kvgate.tiers.base import Arrived, Copy, Record
from kvgate.tiers.disk_file import OpenFile, read_all, write_all
from kvgate.tiers.encoded_body import read_blocks
from kvgate.tiers.footer import Encoding, encode_footer

P = ParamSpec("P")
T = TypeVar("T")

PAGE_NBYTES = 4096
FOOTER_ALLOWANCE_NBYTES = 4096
_STEPS = 16
_LONGEST_STEP_NBYTES = 4 << 20
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Files(Protocol):
    """What the streams ask of their tier."""

    @property
    def fsync(self) -> bool:
        """Whether files must survive a loss of power."""

    def room(self, tenant: str) -> int:
        """See Tier."""

    def take(self, nbytes: int) -> None:
        """Count `nbytes` more as taken, or give back when negative."""

    async def run(self, lease: Lease | tuple[()], fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work in a thread, to its end even when the caller is cancelled; the lease is held until then."""


class Place(Protocol):
    """Where one upload goes. The methods block."""

    temporary: Path
    """Its file until it is complete."""

    def settle(self, record: Record) -> bool:
        """Bring the complete file to its place; False when an equal copy was there, and the file is gone."""

    def discard(self) -> None:
        """Remove the file from wherever it is. Idempotent."""


class FileUpload:
    """A file on its way into a tier, which knows its copies by `copy`."""

    def __init__(self, files: Files, place: Place, copy: Copy, nbytes: int) -> None:
        self._files = files
        self._place = place
        self._copy = copy
        self._offset = 0
        self._fd = -1
        self._lock = threading.Lock()  # held by whichever thread uses the descriptor
        self._ended = False
        self._discarded = False
        self._taken_nbytes = footprint(nbytes)
        files.take(self._taken_nbytes)

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        grown = footprint(self._offset + stop - start) - self._taken_nbytes
        if grown > 0:
            if grown > self._files.room(lease.owner):
                raise TierFull(f"there is no room for an object of {self._offset + stop - start} bytes")
            self._taken_nbytes += grown
            self._files.take(grown)
        offset, self._offset = self._offset, self._offset + stop - start
        await self._files.run(lease, self._write, lease.slices(start, stop), offset)

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload."""
        self._ended = True
        try:
            is_new = await self._files.run((), self._finish, record, encode_footer(record, blocks))
        except BaseException:
            self._ended = False
            raise
        self._files.take((footprint(record.nbytes) if is_new else 0) - self._taken_nbytes)
        return self._copy

    async def abort(self) -> None:
        """See Upload."""
        if not self._ended:
            self._ended = True
            self._files.take(-self._taken_nbytes)
            await self._files.run((), self._discard)

    def _write(self, views: list[memoryview], offset: int) -> None:
        with self._lock:
            self._write_locked(views, offset)

    def _write_locked(self, views: list[memoryview], offset: int) -> None:
        if self._discarded:  # the caller was cancelled, and has aborted before this thread came to work
            raise TierError("the upload was aborted")
        if self._fd < 0:
            self._fd = os.open(self._place.temporary, _NEW_FILE, 0o600)
        write_all(self._fd, views, offset)

    def _finish(self, record: Record, footer: bytes) -> bool:
        with self._lock:
            self._write_locked([memoryview(footer)], self._offset)
            if self._files.fsync:
                os.fsync(self._fd)
            self._close_locked()  # a file system of another machine may say only here that it is full
            return self._place.settle(record)

    def _discard(self) -> None:
        with self._lock:
            self._discarded = True
            try:
                self._close_locked()
            finally:
                self._place.discard()

    def _close_locked(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileReader:
    """One open file. Its descriptor keeps the bytes readable after the file has been removed."""

    def __init__(self, files: Files, record: Record, open_file: Callable[[], OpenFile], *, cached: bool = True) -> None:
        """
        open_file: the file that holds `record`
        cached:    whether the system may keep the bytes in memory; else they come from the medium, and are forgotten
        """
        self._cached = cached
        self._files = files
        self._record = record
        self._open_file = open_file
        self._fd = -1
        self._closed = False
        self._blocks: array[int] = array("Q")
        self._encoding: Encoding | None = None
        self._lock = threading.Lock()  # held by whichever thread uses the descriptor

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        return await self._files.run(lease, self._read, start, steps_of(lease, nbytes), arrived)

    async def close(self) -> None:
        """See Reader."""
        if self._lock.acquire(blocking=False):
            try:
                self._close_locked()
            finally:
                self._lock.release()
        else:  # a thread whose caller was cancelled still reads
            await self._files.run((), self._close)

    def _read(self, start: int, steps: list[list[memoryview]], arrived: Arrived | None) -> array[int]:
        with self._lock:
            if self._closed:  # the caller was cancelled, and has closed before this thread came to work
                raise TierError("the reader is closed")
            if self._fd < 0:
                self._fd, self._blocks, self._encoding = self._open_file()
                if not self._cached:
                    os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
                elif len(steps) > 1:
                    os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            at = start
            for number, views in enumerate(steps):
                if arrived is not None and number:
                    arrived(at - start)
                stop = at + sum(map(len, views))
                if self._encoding is None:
                    read_all(self._fd, views, at)
                else:
                    read_blocks(self._fd, self._encoding, views, at)
                if not verify_blocks(views, at, stop, self._record.nbytes, self._blocks):
                    raise CorruptCopy("the bytes of the file do not match their digest")
                at = stop
            return self._blocks[span_of_blocks(start, at)]

    def _close(self) -> None:
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self._cached:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def steps_of(lease: Lease, nbytes: int) -> list[list[memoryview]]:
    """The first `nbytes` bytes of `lease` in the pieces that are read and verified at a time: whole blocks.

    What is sent while the next step is read waits for the last one, so that it should be short; but each step costs
    some tenths of a millisecond to pass on.
    """
    step_nbytes = min(max(nbytes // _STEPS // BLOCK_NBYTES, 1) * BLOCK_NBYTES, _LONGEST_STEP_NBYTES)
    return [lease.slices(at, min(at + step_nbytes, nbytes)) for at in range(0, nbytes, step_nbytes)]


def footprint(nbytes: int) -> int:
    """The room that an object of `nbytes` is counted for: its blocks on disk and an allowance for the footer."""
    with_footer = nbytes + FOOTER_ALLOWANCE_NBYTES + 8 * (nbytes // BLOCK_NBYTES)
    return -(-with_footer // PAGE_NBYTES) * PAGE_NBYTES


def unlink(path: Path) -> bool:
    """Remove a file; False when there is none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
