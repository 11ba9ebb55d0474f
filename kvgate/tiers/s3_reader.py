"""Bytes on their way from the S3 store into memory: parts of an object, several at a time, each block verified.

Invariants
1. All parts of one read are of one version: the entity tag pins it where it is known, and all answers have to agree.
2. Blocks are held against a footer that was read from the store with the bytes, or before them.
3. A thread of the read stops at the first failure of another one, or when whoever waits for it is cancelled.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from typing import TYPE_CHECKING

from kvgate.errors import CorruptCopy, NotInTier, TierError
from kvgate.http.deadline import Deadline
from kvgate.memory.digest import BLOCK_NBYTES, extend_crc64nvme, span_of_blocks
from kvgate.memory.lease import Lease, slice_views
from kvgate.tiers.base import Arrived, Name, Record
from kvgate.tiers.footer import MAX_FOOTER_NBYTES, TAIL_NBYTES, decode_footer, footer_nbytes
from kvgate.tiers.s3_calls import ConditionFailed
from kvgate.tiers.s3_footers import WRITER, Found

if TYPE_CHECKING:
    from kvgate.tiers.s3 import S3Tier

_PART = frozenset({206})


class S3Reader:
    """One object in the store. It holds nothing open."""

    def __init__(self, tier: S3Tier, record: Record) -> None:
        self._tier = tier
        self._record = record
        self._known: Found | None = None
        self._closed = False

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        if self._closed:
            raise TierError("the reader is closed")
        tier, record = self._tier, self._record
        known = self._known or tier.footers.seen(record)
        try:
            for _ in range(2):
                if known is None and (start + nbytes < record.nbytes or nbytes == 0):
                    known = await self._look()
                if nbytes == 0:
                    return array("Q")
                parts = Parts(tier, record, start, nbytes, lease, known, arrived)
                try:
                    await tier.in_threads(lease, parts.threads, parts.fetch)
                    return parts.verified()
                except ConditionFailed:
                    if parts.told:
                        break  # what is there and verified may be on its way to a client: nothing is read over it
                    known = await self._look()  # what was remembered is an older version, or the same body anew
            raise NotInTier("the object in the S3 store was replaced while it was read")
        except CorruptCopy:
            self._known = None
            await self._look()  # raises NotInTier where another version lies there by now
            raise

    async def close(self) -> None:
        """See Reader."""
        self._closed = True

    async def _look(self) -> Found:
        """The footer of this very body. Raises NotInTier, CorruptCopy, TierError."""
        found = await self._tier.in_thread((), self._tier.footers.look, Name(*self._record[:3]))
        if not found.record.same_body(self._record):
            raise NotInTier("the S3 store has another version of the object")
        self._known = found
        return found


class Parts:
    """The parts of one read, which some threads fetch side by side, in order."""

    def __init__(
        self,
        tier: S3Tier,
        record: Record,
        start: int,
        nbytes: int,
        lease: Lease,
        known: Found | None,
        arrived: Arrived | None,
    ) -> None:
        """known: None when the footer is to be read with the last part, which ends with the object then"""
        self._tier = tier
        self._record = record
        self._key = tier.footers.key(Name(*record[:3]))
        self._start, self._nbytes = start, nbytes
        self._known = known
        self._arrived = arrived
        self._lock = threading.Lock()
        self._version = ("", 0) if known is None else (known.etag, known.total_nbytes)
        self._footer = b""
        self._writer = ""
        self._blocks = array("Q", bytes(8 * -(-nbytes // BLOCK_NBYTES)))
        self._done = bytearray(len(self._blocks))
        self._told = 0
        part = tier.part_nbytes
        self._waiting = deque(
            (first, lease.slices(first - start, min(first + part, start + nbytes) - start))
            for first in range(start, start + nbytes, part)
        )
        self.threads = min(len(self._waiting), tier.parallel)

    @property
    def told(self) -> bool:
        """Whether `arrived` has been told that something is there."""
        return self._told > 0 and self._arrived is not None

    def fetch(self, scope: Deadline) -> None:
        """Fetch parts until none is left. For a thread."""
        while True:
            try:
                first, views = self._waiting.popleft()
            except IndexError:
                return
            self._fetch(first, views, scope)

    def verified(self) -> array[int]:
        """The blocks' crc64nvme, when all threads are done. Raises CorruptCopy, NotInTier."""
        if self._known is None:
            self._check_footer()
        return self._blocks

    def _fetch(self, first: int, views: list[memoryview], scope: Deadline) -> None:
        stop = first + sum(map(len, views))
        with_footer = self._known is None and stop == self._record.nbytes
        headers = {"range": f"bytes={first}-" if with_footer else f"bytes={first}-{stop - 1}"}
        if etag := self._version[0]:
            headers["if-match"] = etag
        with self._tier.calls.ask("GET", self._key, scope, headers=headers, accept=_PART) as answer:
            span = answer.span
            self._agree(answer.etag, span.total)
            if span[:2] != (first, span.total if with_footer else stop) or span.stop < stop:
                raise CorruptCopy("the object in the S3 store has another length")
            for at in range(first, stop, BLOCK_NBYTES):
                crc = 0
                for view in slice_views(views, at - first, min(at + BLOCK_NBYTES, stop) - first):
                    answer.fill(view)
                    crc = extend_crc64nvme(view, crc)
                self._note(at, crc)
            if with_footer:
                if span.stop - stop > MAX_FOOTER_NBYTES + TAIL_NBYTES:
                    raise CorruptCopy("the object in the S3 store is longer than it may be")
                footer = bytearray(span.stop - stop)
                answer.fill(memoryview(footer))
                self._footer, self._writer = bytes(footer), answer.headers.get(WRITER)

    def _note(self, at: int, crc: int) -> None:
        """Take note of a block that is there."""
        number = (at - self._start) // BLOCK_NBYTES
        self._blocks[number] = crc
        if self._known is not None:
            if crc != self._known.blocks[at // BLOCK_NBYTES]:
                raise CorruptCopy("the bytes in the S3 store do not match their digest")
            self._tell(number)

    def _tell(self, number: int) -> None:
        """Pass on how far all bytes from the first one are there, but for the last block."""
        with self._lock:
            self._done[number] = 1
            if self._arrived is None or not self._done[self._told]:
                return
            whole = self._done.find(0, self._told)
            self._told = (len(self._done) if whole < 0 else whole) - (whole < 0)
            if self._told:
                self._arrived(self._told * BLOCK_NBYTES)

    def _agree(self, etag: str, total_nbytes: int) -> None:
        """Raises CorruptCopy when an answer is of another version than the first one."""
        with self._lock:
            if self._version[1] == 0:
                self._version = (etag, total_nbytes)
            elif self._version != (etag, total_nbytes):
                raise CorruptCopy("the object in the S3 store changed while it was read")

    def _check_footer(self) -> None:
        etag, total_nbytes = self._version
        if footer_nbytes(self._footer, total_nbytes) != len(self._footer):
            raise CorruptCopy("the object in the S3 store has another length")
        found, blocks = decode_footer(self._footer, total_nbytes)
        if found[:3] != self._record[:3]:
            raise CorruptCopy("the object in the S3 store is another one's")
        if not found.same_body(self._record):
            raise NotInTier("the S3 store has another version of the object")
        if blocks[span_of_blocks(self._start, self._start + self._nbytes)] != self._blocks:
            raise CorruptCopy("the bytes in the S3 store do not match their digest")
        self._tier.footers.remember(Found(found, blocks, etag, total_nbytes, self._writer))
