"""Promotion: what is read is copied up to memory."""

from __future__ import annotations

import asyncio

from kvgate.errors import ArenaFull, CorruptCopy, NotInTier
from kvgate.memory.digest import combine_blocks
from kvgate.metrics import Metrics
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.index import Entry
from kvgate.store.room import Room


class Promotion:
    """Copies entries from lower tiers to memory. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, metrics: Metrics) -> None:
        self._copies = copies
        self._room = room
        self._metrics = metrics
        self._running: dict[Entry, asyncio.Task[Exception | None]] = {}

    def is_running(self, entry: Entry) -> bool:
        """Whether an entry is being copied to memory now."""
        return entry in self._running

    async def promote(self, entry: Entry, rank: int) -> None:
        """Try to copy an entry from a lower tier to memory; concurrent calls for one entry share one copy.

        Afterwards the entry has a copy in memory, or has lost a bad one in the lower tier, or memory has no room.
        Raises a TierError that says nothing about the copy.
        """
        task = self._running.get(entry)
        if task is None:
            task = self._copies.spawn(self._promote(entry, rank))
            self._running[entry] = task
            task.add_done_callback(lambda _: self._running.pop(entry, None))
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def _promote(self, entry: Entry, rank: int) -> None:
        record, copy = entry.record, entry.copies[rank]
        if copy is None or entry.has_copy(MEMORY):
            return
        try:
            lease = self._room.reserve(record.tenant, record.nbytes)
        except ArenaFull:
            return
        reader = self._copies.tiers[rank].open(record, copy)
        try:
            blocks = await reader.read_into(0, lease, record.nbytes)
            if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
                raise CorruptCopy("the bytes do not match the digest of the whole")
            if entry.has_copy(rank) and not entry.has_copy(MEMORY):
                self._copies.add_copy(entry, MEMORY, self._copies.memory.adopt(lease.share(), blocks))
                self._metrics.promoted.inc()
        except (CorruptCopy, NotInTier) as error:
            self._copies.drop_bad_copy(entry, rank, copy, error)
        finally:
            lease.release()
            await reader.close()
