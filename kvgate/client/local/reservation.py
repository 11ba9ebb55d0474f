"""Memory of the gateway that an engine fills with an object."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from kvgate.http.deadline import Deadline
from kvgate.memory.allocator import Extent
from kvgate.memory.digest import BLOCK_NBYTES

if TYPE_CHECKING:
    from kvgate.client.local.attachment import Attachment


class Reservation:
    """Memory of the gateway to fill with an object. A context manager, which aborts what was not committed."""

    def __init__(self, attachment: Attachment, number: int, nbytes: int, extents: tuple[Extent, ...]) -> None:
        self.nbytes = nbytes
        self._attachment = attachment
        self._number = number
        self._pieces = attachment.pieces(extents, nbytes)
        self._ended = False

    @property
    def views(self) -> list[memoryview]:
        """The memory, writable, in order; `nbytes` in all. Nothing may be written there after `commit`."""
        return [mapping.view[start : start + nbytes] for mapping, start, nbytes in self._pieces]

    def fill(self, sources: Sequence[memoryview], deadline: Deadline) -> None:
        """Copy `sources`, which have `nbytes` in all, into the memory. Raises DeadlineExceeded."""
        targets = iter(self.views)
        target = next(targets)
        for source in sources:
            done = 0
            while done < len(source):
                deadline.remaining_s()
                if not target:
                    target = next(targets)
                nbytes = min(len(source) - done, len(target), BLOCK_NBYTES)
                target[:nbytes] = source[done : done + nbytes]
                target = target[nbytes:]
                done += nbytes

    def commit(self, deadline: Deadline) -> str:
        """Make the object visible; its entity tag. Raises GatewayError with the gateway's refusal."""
        self._ended = True
        return self._attachment.commit(self._number, deadline)

    def abort(self) -> None:
        """Give the memory back. Idempotent; nothing after `commit`."""
        if not self._ended:
            self._ended = True
            self._attachment.abort(self._number)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()
