"""One object being read: leased from the lookup until the last byte has left, and verified on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from types import TracebackType

from kvgate.errors import ArenaFull, CorruptCopy, NoSuchKey, NotInTier, TierError
from kvgate.memory.digest import BLOCK_NBYTES, block_span
from kvgate.metrics import Metrics
from kvgate.store.bodies import ArrivingBody, LeasedBody, TierBody
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
    ranks: of the tiers that may be asked; None for all
    """

    def __init__(
        self,
        placement: Placement,
        entry: Entry,
        metrics: Metrics,
        config: StoreConfig,
        *,
        whole: bool = False,
        ranks: Collection[int] | None = None,
    ) -> None:
        self._placement = placement
        self._entry: Entry | None = entry
        self._metrics = metrics
        self._config = config
        self._whole = whole
        self._ranks = placement.copies.all_ranks if ranks is None else ranks
        self.record: Record = entry.record
        placement.copies.lease(entry)

    async def load(self, start: int, stop: int) -> LeasedBody | TierBody:
        """The bytes [start, stop), the first of them verified. Raises NoSuchKey when no good copy is left, TierError,
        Overloaded.

        What comes from a lower tier is verified as it comes, so that its body may raise TierError before its end.
        The body takes this lease over: closing it ends the lease.
        """
        entry = self._entry
        assert entry is not None, "a Read is used once"
        failed: dict[int, TierError] = {}
        while (rank := next((r for r in self._ranks if entry.copies[r] is not None and r not in failed), -1)) >= 0:
            copy = entry.copies[rank]
            try:
                body = await self._load_from(entry, rank, start, stop)
            except (CorruptCopy, NotInTier) as error:
                self._placement.copies.drop_bad_copy(entry, rank, copy, error)
            except TierError as error:
                failed[rank] = error
            else:
                if body is not None:
                    served_from = rank if isinstance(body, TierBody) else MEMORY
                    self._metrics.reads.labels(self._placement.copies.tiers[served_from].name).inc()
                    self._entry = None
                    return body
        if failed:
            raise next(iter(failed.values()))
        raise NoSuchKey("there is no good copy of this object any more")

    async def _load_from(self, entry: Entry, rank: int, start: int, stop: int) -> LeasedBody | TierBody | None:
        """A body from one tier; None when the copies have changed, so that the caller should look again."""
        copy: Copy = entry.copies[rank]
        if rank == MEMORY:
            lease = await self._placement.copies.memory.lease(entry.record, copy, start, stop)
            return LeasedBody(self._placement, entry, lease, start, stop)
        most = self._whole or (stop - start) * _PROMOTE_SHARE >= entry.record.nbytes
        promotion = self._placement.promotion
        fits = entry.record.nbytes <= self._placement.copies.memory.limit()
        if most and fits and promotion.is_due(entry, rank):
            arrival = promotion.begin(entry, rank)
            if arrival is not None:
                body = ArrivingBody(self._placement, entry, arrival, start, stop)
                try:
                    await arrival.reach(min(start + 1, stop))
                except BaseException as error:
                    body.release()
                    if isinstance(error, CorruptCopy | NotInTier):
                        return None  # the promotion has dropped the copy, which need not be the one of this rank
                    raise
                return body
        return await self._stream_from(entry, rank, copy, start, stop)

    async def _stream_from(self, entry: Entry, rank: int, copy: Copy, start: int, stop: int) -> TierBody:
        """A body that needs a window of memory only."""
        room, tenant = self._placement.room, entry.record.tenant
        first, last = block_span(start, stop, entry.record.nbytes)
        window_nbytes = max(last - first, 1)
        if window_nbytes > self._config.window:
            window_nbytes = max(BLOCK_NBYTES, self._config.window // 2)
        windows = [await room.reserve_window(tenant, window_nbytes, self._config.memory_wait)]
        if windows[0].nbytes < last - first:
            with contextlib.suppress(ArenaFull):  # then what is sent and what is read take turns
                windows.append(room.reserve(tenant, windows[0].nbytes))
        body = TierBody(self._placement, entry, rank, copy, start, stop, windows, self._metrics)
        try:
            await body.open()
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
