"""A lease on an object in the gateway's memory, and the copy that it is good for.

A copy counts only if the ledger says after it that the grant still holds, and its digests are right: a process that was
stopped past its lease, or whose gateway has ended its connection, finds its copy void.
"""

from __future__ import annotations

from array import array
from types import TracebackType
from typing import TYPE_CHECKING

from kvgate.chunk.layout import Runs, Strided
from kvgate.client.local.run_copy import RunCopy
from kvgate.errors import GatewayError, GatewayUnavailable
from kvgate.http.deadline import Deadline
from kvgate.memory import handoff
from kvgate.memory.digest import BLOCK_NBYTES, extend_crc64nvme
from kvgate.memory.mapping import Mapping, address_of, move

if TYPE_CHECKING:
    from kvgate.client.local.attachment import Attachment

_SPLIT_NBYTES = 16 << 20
"""From this size on, a copy is made by two threads where one is free: to wake one takes as long as to copy a MiB, and
where all cores are busy much longer."""

_RELEASE_NBYTES = 4 << 20
"""From this size on, a grant is released at once."""


class Grant:
    """A lease on an object in the gateway's memory. A context manager, which releases.

    nbytes: of the object
    """

    def __init__(self, attachment: Attachment, grant: handoff.Grant) -> None:
        self.nbytes = grant.nbytes
        self._attachment = attachment
        self._number = grant.id
        self._blocks = grant.blocks
        self._extents = grant.extents
        self._released = False

    @property
    def _pieces(self) -> list[tuple[Mapping, int, int]]:
        return self._attachment.pieces(self._extents, self.nbytes)

    @property
    def holds(self) -> bool:
        """Whether the bytes have been the object's so far. Ask after using `views`, not before."""
        return not self._released and self._attachment.holds(self._number)

    @property
    def views(self) -> list[memoryview]:
        """The bytes as they lie, in order, read-only, and not verified.

        What was taken from them is the object's only if `holds` is true afterwards and `verify` finds it right. Views
        outlast the grant: then they show whatever the tenant has there.
        """
        return [mapping.view[start : start + nbytes] for mapping, start, nbytes in self._pieces]

    def verify(self) -> None:
        """Hold the bytes against their digests where they lie. Raises GatewayError: BadDigest, or the grant ended."""
        digests, crc, done = array("Q"), 0, 0
        for view in self.views:
            start = 0
            while start < len(view):
                piece = view[start : start + BLOCK_NBYTES - done % BLOCK_NBYTES]
                crc = extend_crc64nvme(piece, crc)
                start += len(piece)
                done += len(piece)
                if done % BLOCK_NBYTES == 0 or done == self.nbytes:
                    digests.append(crc)
                    crc = 0
        self._check(right=digests == self._blocks)

    def copy_into(self, target: memoryview, deadline: Deadline, runs: Strided | Runs | None = None) -> None:
        """Copy the object to the front of `target`, a writable view of bytes, each MiB verified where it arrives.

        runs: copy these bytes of it instead, one run behind the other; they lie within it. See RunCopy
        Raises DeadlineExceeded, GatewayUnavailable when the grant ended meanwhile, GatewayError BadDigest; what is in
        `target` then is undefined.
        """
        some = RunCopy(self._pieces, self.nbytes, self._blocks, runs) if runs is not None else None
        whole = len(self._blocks) if some is None else len(some.blocks)
        helper = self._attachment.copy_thread if whole * BLOCK_NBYTES >= _SPLIT_NBYTES else None
        right = [True, True]

        def copy(part: int, first: int, last: int) -> None:
            if some is None:
                right[part] = self._copy_blocks(target, first, last, deadline)
            else:
                right[part] = some.copy(target, first, last, deadline)

        if helper is not None and helper.start(lambda: copy(1, whole // 2, whole)):
            try:
                copy(0, 0, whole // 2)
            finally:
                helper.join()
        else:
            copy(0, 0, whole)
        deadline.remaining_s()
        self._check(right=all(right))

    def release(self) -> None:
        """Let the object go. Idempotent."""
        if not self._released:
            self._released = True
            self._attachment.release([self._number], soon=self.nbytes < _RELEASE_NBYTES)

    def __enter__(self) -> Grant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _copy_blocks(self, target: memoryview, first: int, last: int, deadline: Deadline) -> bool:
        """Copy the blocks from `first` to before `last`; False as soon as one is wrong, or the time is over."""
        base = address_of(target)
        pieces = iter(self._pieces)
        mapping, source, left = next(pieces)
        skip = first * BLOCK_NBYTES
        while skip >= left:
            skip -= left
            mapping, source, left = next(pieces)
        source, left = source + skip, left - skip
        for block in range(first, last):
            start = block * BLOCK_NBYTES
            stop = min(start + BLOCK_NBYTES, self.nbytes)
            at = start
            while at < stop:
                if not left:
                    mapping, source, left = next(pieces)
                nbytes = min(left, stop - at)
                move(base + at, mapping.address + source, nbytes)
                at, source, left = at + nbytes, source + nbytes, left - nbytes
            if extend_crc64nvme(target[start:stop], 0) != self._blocks[block]:
                return False
            if deadline.over:
                return False
        return True

    def _check(self, *, right: bool) -> None:
        if not self.holds:
            raise GatewayUnavailable("the grant ended before the copy was complete")
        if not right:
            raise GatewayError("the bytes in shared memory do not match their digest", code="BadDigest")
