"""Demotion: what is only in memory is written down to the first lower tier."""

from __future__ import annotations

import asyncio
import logging
from array import array

from kvgate.errors import NotInTier, TierError
from kvgate.memory.lease import Lease
from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry
from kvgate.store.room import Room
from kvgate.tiers.base import Copy

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 4
_RETRY_S = 0.25


class Demotion:
    """Writes entries to lower tiers, in the background or on the way of a PUT. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, backlog: Backlog, metrics: Metrics) -> None:
        self._copies = copies
        self._room = room
        self._backlog = backlog
        self._metrics = metrics
        self._queue: asyncio.Queue[Entry] = asyncio.Queue()  # bounded by what memory holds

    def start(self, tasks: asyncio.TaskGroup, movers: int) -> list[asyncio.Task[None]]:
        """Begin to work in the background; the tasks run until they are cancelled."""
        return [tasks.create_task(self._demote_forever()) for _ in range(movers)]

    def enqueue(self, entry: Entry) -> None:
        """Have an entry that is only in memory written to the first lower tier in the background."""
        if self._copies.lower_ranks:
            self._backlog.begin()
            self._queue.put_nowait(entry)

    async def write(self, entry: Entry, rank: int, lease: Lease, blocks: array[int]) -> Copy:
        """A finished but unpublished copy in a lower tier of what `lease` holds. Raises TierError with nothing left."""
        record = entry.record
        upload = await self._room.begin(rank, record.tenant, record.nbytes)
        try:
            await upload.write(lease, 0, record.nbytes)
            return await upload.finish(record, blocks)
        except BaseException:
            await asyncio.shield(self._copies.spawn(upload.abort()))
            raise

    async def publish(self, entry: Entry, rank: int, copy: Copy) -> None:
        """Note a finished copy of a current entry and make it survive; a copy of a stale entry is deleted.

        Raises TierError after dropping the copy.
        """
        copies = self._copies
        if not entry.current:
            await copies.tiers[rank].delete(entry.record, copy)
            return
        copies.add_copy(entry, rank, copy)
        try:
            await copies.tiers[rank].publish(entry.record, copy)
        except TierError:
            if entry.copies[rank] is copy:
                copies.drop_copy(entry, rank)
                copies.lose_if_bare(entry, Fate.NOT_WRITTEN_BACK, rank)
            raise
        copies.settle(entry)

    async def _demote_forever(self) -> None:
        while True:
            entry = await self._queue.get()
            try:
                await self._demote(entry)
            except Exception:
                logger.exception("a demotion failed")  # a defect; the object stays in memory, the others go on
                self._copies.settle(entry)
            finally:
                self._backlog.end()

    async def _demote(self, entry: Entry) -> None:
        rank = self._copies.lower_ranks[0]
        for attempt in range(_MAX_ATTEMPTS):
            if not entry.current or entry.has_copy(rank) or not entry.has_copy(MEMORY):
                return
            try:
                await self.publish(entry, rank, await self._write_from_memory(entry, rank))
                self._metrics.demoted.inc()
                return
            except TierError as error:
                if not error.transient or attempt == _MAX_ATTEMPTS - 1:
                    self._metrics.stranded.inc()
                    logger.warning("an object stays in memory only: %s", error)
                    self._copies.settle(entry)
                    return
            await asyncio.sleep(_RETRY_S * 2**attempt)

    async def _write_from_memory(self, entry: Entry, rank: int) -> Copy:
        copy = entry.copies[MEMORY]
        if copy is None or copy.lease is None:
            raise NotInTier("the copy in memory is gone")
        with copy.lease.share() as lease:
            return await self.write(entry, rank, lease, copy.blocks)
