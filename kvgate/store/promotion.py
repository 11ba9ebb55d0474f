"""Promotion: what is read is copied up to memory, and can be read there while it arrives."""

from __future__ import annotations

import asyncio
import contextlib

from kvgate.errors import ArenaFull, CorruptCopy, NotInTier, TierError
from kvgate.memory.digest import combine_blocks
from kvgate.metrics import Metrics
from kvgate.store.arrival import Arrival
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.index import Entry
from kvgate.store.room import Room
from kvgate.tiers.base import Copy


class Promotion:
    """Copies entries from lower tiers to memory. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, metrics: Metrics) -> None:
        self._copies = copies
        self._room = room
        self._metrics = metrics
        self._running: dict[Entry, Arrival] = {}

    @property
    def count(self) -> int:
        """How many entries are being copied to memory now."""
        return len(self._running)

    def is_running(self, entry: Entry) -> bool:
        """Whether an entry is being copied to memory now."""
        return entry in self._running

    def begin(self, entry: Entry, rank: int) -> Arrival | None:
        """The copy of an entry from a lower tier to memory, which is under way or begins; None where there is no room.

        It goes on whatever becomes of the caller. If it ends in CorruptCopy or NotInTier, the entry has lost the bad
        copy; in another error, nothing is said about the copy.
        """
        arrival = self._running.get(entry)
        copy = entry.copies[rank]
        if arrival is not None or copy is None or entry.has_copy(MEMORY):
            return arrival
        try:
            lease = self._room.reserve(entry.record.tenant, entry.record.nbytes)
        except ArenaFull:
            return None
        arrival = self._running[entry] = Arrival(lease)

        def ended(task: asyncio.Task[Exception | None]) -> None:
            del self._running[entry]
            lease.release()
            arrival.end(TierError("the gateway is stopping") if task.cancelled() else task.result())

        self._copies.spawn(self._fill(entry, rank, copy, arrival)).add_done_callback(ended)
        return arrival

    async def promote(self, entry: Entry, rank: int) -> None:
        """Try to copy an entry from a lower tier to memory, to the end.

        Afterwards the entry has a copy in memory, or has lost a bad one in the lower tier, or memory has no room.
        Raises a TierError that says nothing about the copy.
        """
        arrival = self.begin(entry, rank)
        if arrival is not None:
            with contextlib.suppress(CorruptCopy, NotInTier):
                await arrival.wait()

    async def _fill(self, entry: Entry, rank: int, copy: Copy, arrival: Arrival) -> None:
        record = entry.record
        loop = asyncio.get_running_loop()
        reader = self._copies.tiers[rank].open(record, copy)

        def arrived(nbytes: int) -> None:
            loop.call_soon_threadsafe(arrival.advance, nbytes)

        try:
            blocks = await reader.read_into(0, arrival.lease, record.nbytes, arrived)
            if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
                raise CorruptCopy("the bytes do not match the digest of the whole")
            if entry.has_copy(rank) and not entry.has_copy(MEMORY):
                self._copies.add_copy(entry, MEMORY, self._copies.memory.adopt(arrival.lease.share(), blocks))
                self._metrics.promoted.inc()
            arrival.advance(record.nbytes)
        except (CorruptCopy, NotInTier) as error:
            self._copies.drop_bad_copy(entry, rank, copy, error)
            raise
        finally:
            await reader.close()
