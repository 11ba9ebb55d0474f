"""One object being read: leased from the lookup until the last byte has left, and verified on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from kvgate.errors import CorruptCopy, NoSuchKey, NotInTier, TierError
from kvgate.memory.digest import block_span
from kvgate.memory.lease import Lease
from kvgate.messages import ResponseBody
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry
from kvgate.store.placement import Placement
from kvgate.tiers.base import Copy, Record

_PROMOTE_SHARE = 2
"""A read of at least a half of an object brings it to memory; a smaller one is served from where it lies."""


class Read:
    """A lease on an object. A context manager; `load` hands the lease on to the body that it returns.

    whole: its other ranges will be read too, so that any read brings it to memory
    """

    def __init__(
        self, placement: Placement, entry: Entry, metrics: Metrics, config: StoreConfig, *, whole: bool = False
    ) -> None:
        self._placement = placement
        self._entry: Entry | None = entry
        self._metrics = metrics
        self._config = config
        self._whole = whole
        self.record: Record = entry.record
        placement.copies.lease(entry)

    async def load(self, start: int, stop: int) -> ResponseBody:
        """The verified bytes [start, stop). Raises NoSuchKey when no good copy is left, TierError, Overloaded.

        The body takes this lease over: closing the body ends it.
        """
        entry = self._entry
        assert entry is not None, "a Read is used once"
        failed: dict[int, TierError] = {}
        while (rank := next((r for r, c in enumerate(entry.copies) if c is not None and r not in failed), -1)) >= 0:
            copy = entry.copies[rank]
            try:
                body = await self._load_from(entry, rank, start, stop)
            except (CorruptCopy, NotInTier) as error:
                self._placement.copies.drop_bad_copy(entry, rank, copy, error)
            except TierError as error:
                failed[rank] = error
            else:
                if body is not None:
                    self._metrics.reads.labels(self._placement.copies.tiers[rank].name).inc()
                    self._entry = None
                    return body
        if failed:
            raise next(iter(failed.values()))
        raise NoSuchKey("there is no good copy of this object any more")

    async def _load_from(self, entry: Entry, rank: int, start: int, stop: int) -> ResponseBody | None:
        """A body from one tier; None when the copies have changed, so that the caller should look again."""
        copy: Copy = entry.copies[rank]
        if rank == MEMORY:
            lease = await self._placement.copies.memory.lease(entry.record, copy, start, stop)
            return LeasedBody(self._placement, entry, lease, start, stop)
        most = self._whole or (stop - start) * _PROMOTE_SHARE >= entry.record.nbytes
        if most and entry.record.nbytes <= self._placement.copies.memory.limit():
            await self._placement.promotion.promote(entry, rank)
            if entry.has_copy(MEMORY) or entry.copies[rank] is not copy:
                return None
        first, last = block_span(start, stop, entry.record.nbytes)
        window_nbytes = min(self._config.window, max(last - first, 1))
        window = await self._placement.room.reserve_window(entry.record.tenant, window_nbytes, self._config.memory_wait)
        body = TierBody(self._placement, entry, rank, copy, start, stop, window)
        try:
            await body.verify()
        except BaseException:
            body.close_streams()
            raise
        return body

    def close(self) -> None:
        """End the lease, unless a body has taken it over. Idempotent."""
        if self._entry is not None:
            self._placement.copies.unlease(self._entry)
            self._entry = None

    def __enter__(self) -> Read:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LeasedBody:
    """Bytes that lie in the arena."""

    def __init__(self, placement: Placement, entry: Entry, lease: Lease, start: int, stop: int) -> None:
        self.nbytes = stop - start
        self._placement = placement
        self._entry: Entry | None = entry
        self._lease = lease
        self._start, self._stop = start, stop

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody."""
        yield self._lease.slices(self._start, self._stop)

    def close(self) -> None:
        """See ResponseBody."""
        if self._entry is not None:
            self._placement.copies.unlease(self._entry)
            self._entry = None
            self._lease.release()


class TierBody:
    """Bytes that stream from a lower tier through one window of memory.

    Every block is verified before the first byte is sent, so that a bad copy is a miss, and again as it is read for
    sending, so that no wrong byte leaves: then `batches` raises CorruptCopy, and the connection has to be broken off.
    """

    def __init__(
        self, placement: Placement, entry: Entry, rank: int, copy: Copy, start: int, stop: int, window: Lease
    ) -> None:
        self.nbytes = stop - start
        self._placement = placement
        self._entry: Entry | None = entry
        self._rank, self._copy = rank, copy
        self._start, self._stop = start, stop
        self._first, self._last = block_span(start, stop, entry.record.nbytes)
        self._window = window
        self._reader = placement.copies.tiers[rank].open(entry.record, copy)
        self._filled = (0, 0)

    async def verify(self) -> None:
        """Read and verify everything once. Raises NotInTier, CorruptCopy or another TierError."""
        for begin in range(self._first, self._last, self._window.nbytes):
            await self._fill(begin)

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody. Raises CorruptCopy when the copy has gone bad since it was verified."""
        assert self._entry is not None, "the body is closed"
        for begin in range(self._first, self._last, self._window.nbytes):
            try:
                await self._fill(begin)
            except (CorruptCopy, NotInTier) as error:
                self._placement.copies.drop_bad_copy(self._entry, self._rank, self._copy, error)
                raise
            start, stop = max(begin, self._start), min(self._filled[1], self._stop)
            yield self._window.slices(start - begin, stop - begin)

    def close(self) -> None:
        """See ResponseBody."""
        if self._entry is not None:
            self._placement.copies.unlease(self._entry)
            self._entry = None
            self.close_streams()

    def close_streams(self) -> None:
        """Give back the window and the reader, but not the lease on the object."""
        self._window.release()
        self._placement.copies.spawn(self._reader.close())

    async def _fill(self, begin: int) -> None:
        end = min(begin + self._window.nbytes, self._last)
        if self._filled != (begin, end):
            self._filled = (0, 0)
            await self._reader.read_into(begin, self._window, end - begin)
            self._filled = (begin, end)
