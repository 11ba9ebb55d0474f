"""Bytes on their way into and out of a disk tier: one file being written, one file being read."""

from __future__ import annotations

import os
import threading
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from kvgate.errors import CorruptCopy, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, span_of_blocks, verify_blocks
from kvgate.memory.lease import Lease
from kvgate.tiers.base import Arrived, Copy, Record
from kvgate.tiers.disk_file import open_verified, read_all, write_all
from kvgate.tiers.footer import encode_footer

if TYPE_CHECKING:
    from kvgate.tiers.disk import DiskTier

PAGE_NBYTES = 4096
FOOTER_ALLOWANCE_NBYTES = 4096
_STEPS = 16
_LONGEST_STEP_NBYTES = 4 << 20
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class DiskUpload:
    """A file on its way into the tier."""

    def __init__(self, tier: DiskTier, file: int, nbytes: int) -> None:
        self._tier = tier
        self._file = file
        self._offset = 0
        self._fd = -1
        self._lock = threading.Lock()  # held by whichever thread uses the descriptor
        self._ended = False
        self._discarded = False
        self._taken_nbytes = footprint(nbytes)
        tier.take(self._taken_nbytes)

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        grown = footprint(self._offset + stop - start) - self._taken_nbytes
        if grown > 0:
            if grown > self._tier.room(lease.owner):
                raise TierFull(f"the disk tier has no room for an object of {self._offset + stop - start} bytes")
            self._taken_nbytes += grown
            self._tier.take(grown)
        offset, self._offset = self._offset, self._offset + stop - start
        await self._tier.run(lease, self._write, lease.slices(start, stop), offset)

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload."""
        self._ended = True
        try:
            await self._tier.run((), self._finish, encode_footer(record, blocks))
        except BaseException:
            self._ended = False
            raise
        self._tier.take(footprint(record.nbytes) - self._taken_nbytes)
        return self._file

    async def abort(self) -> None:
        """See Upload."""
        if not self._ended:
            self._ended = True
            self._tier.take(-self._taken_nbytes)
            await self._tier.run((), self._discard)

    def _write(self, views: list[memoryview], offset: int) -> None:
        with self._lock:
            self._write_locked(views, offset)

    def _write_locked(self, views: list[memoryview], offset: int) -> None:
        if self._discarded:  # the caller was cancelled, and has aborted before this thread came to work
            raise TierError("the upload was aborted")
        if self._fd < 0:
            self._fd = os.open(self._tier.temporary_path(self._file), _NEW_FILE, 0o600)
        write_all(self._fd, views, offset)

    def _finish(self, footer: bytes) -> None:
        with self._lock:
            self._write_locked([memoryview(footer)], self._offset)
            if self._tier.fsync:
                os.fsync(self._fd)
            self._close_locked()
            self._tier.settle(self._file)

    def _discard(self) -> None:
        with self._lock:
            self._discarded = True
            self._close_locked()
            unlink(self._tier.temporary_path(self._file))
            unlink(self._tier.path(self._file))  # where a `finish` that was cancelled may have brought it

    def _close_locked(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DiskReader:
    """One open file. Its descriptor keeps the bytes readable after the file has been removed."""

    def __init__(self, tier: DiskTier, record: Record, path: Path) -> None:
        self._tier = tier
        self._record = record
        self._path = path
        self._fd = -1
        self._closed = False
        self._blocks: array[int] = array("Q")
        self._lock = threading.Lock()  # held by whichever thread uses the descriptor

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        step_nbytes = _step_nbytes(nbytes)
        steps = [lease.slices(at, min(at + step_nbytes, nbytes)) for at in range(0, nbytes, step_nbytes)]
        return await self._tier.run(lease, self._read, start, steps, arrived)

    async def close(self) -> None:
        """See Reader."""
        if self._lock.acquire(blocking=False):
            try:
                self._close_locked()
            finally:
                self._lock.release()
        else:  # a thread whose caller was cancelled still reads
            await self._tier.run((), self._close)

    def _read(self, start: int, steps: list[list[memoryview]], arrived: Arrived | None) -> array[int]:
        with self._lock:
            if self._closed:  # the caller was cancelled, and has closed before this thread came to work
                raise TierError("the reader is closed")
            if self._fd < 0:
                self._fd, self._blocks = open_verified(str(self._path), self._record)
                if len(steps) > 1:
                    os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            at = start
            for number, views in enumerate(steps):
                if arrived is not None and number:
                    arrived(at - start)
                stop = at + sum(map(len, views))
                read_all(self._fd, views, at)
                if not verify_blocks(views, at, stop, self._record.nbytes, self._blocks):
                    raise CorruptCopy("the bytes on disk do not match their digest")
                at = stop
            return self._blocks[span_of_blocks(start, at)]

    def _close(self) -> None:
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        self._closed = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _step_nbytes(nbytes: int) -> int:
    """How much of `nbytes` is read and verified at a time: whole blocks.

    What is sent while the next step is read waits for the last one, so that it should be short; but each step costs
    some tenths of a millisecond to pass on.
    """
    return min(max(nbytes // _STEPS // BLOCK_NBYTES, 1) * BLOCK_NBYTES, _LONGEST_STEP_NBYTES)


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
