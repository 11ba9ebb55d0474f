"""Promotion: what is read is copied up to memory, and can be read there while it arrives.

Where several lower tiers hold an object, the fastest is read first. When it fails, or brings nothing for `hedge_after`,
the next one is read too, into other memory, and whichever brings something first is what readers get. What arrives is
verified as it comes, so that it does not matter which of them it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvgate.errors import ArenaFull, CorruptCopy, NotInTier, TierError
from kvgate.memory.digest import combine_blocks
from kvgate.memory.lease import Lease
from kvgate.metrics import Metrics
from kvgate.store.arrival import Arrival
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.index import Entry
from kvgate.store.room import Room
from kvgate.tiers.base import Copy

_MAX_TOUCHED = 65_536


class Promotion:
    """Copies entries from lower tiers to memory. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, metrics: Metrics) -> None:
        self._copies = copies
        self._room = room
        self._metrics = metrics
        self._running: dict[Entry, Arrival] = {}
        self._touched: OrderedDict[Entry, bool] = OrderedDict()  # read once where that is not enough
        self.fill_in: Callable[[Entry, int], None]
        """Has an entry that was brought up from a tier written to those in between."""

    def is_due(self, entry: Entry, rank: int) -> bool:
        """Whether an entry that is read in a tier should come to memory, by the rule of that tier."""
        rule = self._copies.rules[rank].promote
        if rule != "second-touch" or entry in self._running:
            return rule != "never"
        if self._touched.pop(entry, False):
            return True
        self._touched[entry] = True
        if len(self._touched) > _MAX_TOUCHED:
            self._touched.popitem(last=False)
        return False

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
        copies; in another error, nothing is said about them.
        """
        arrival = self._running.get(entry)
        if arrival is not None or entry.copies[rank] is None or entry.has_copy(MEMORY):
            return arrival
        try:
            lease = self._room.reserve(entry.record.tenant, entry.record.nbytes)
        except ArenaFull:
            return None
        arrival = self._running[entry] = Arrival(lease)

        def ended(task: asyncio.Task[Exception | None]) -> None:
            del self._running[entry]
            arrival.lease.release()
            arrival.end(TierError("the gateway is stopping") if task.cancelled() else task.result())

        self._copies.spawn(self._fill(entry, rank, arrival)).add_done_callback(ended)
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

    async def _fill(self, entry: Entry, rank: int, arrival: Arrival) -> None:
        """Read from a tier, and from those that hold the entry too if it fails or is late. Raises the last error."""
        way = _Way(arrival)
        running = {self._start(entry, rank, way, arrival.lease.share())}
        asked = {rank}
        error: Exception | None = None
        try:
            while running:
                hedge_after = self._copies.rules[rank].hedge_after
                following = self._following(entry, asked)
                may_hedge = following is not None and way.source is None
                done, running = await asyncio.wait(
                    running,
                    timeout=hedge_after if may_hedge else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    outcome = task.result()
                    if not isinstance(outcome, Exception):
                        return
                    error = outcome
                if not done and way.source is not None:
                    continue
                following = self._following(entry, asked)
                if following is None or (running and done):
                    continue
                lease = self._reserve(entry)
                if lease is None:
                    continue
                self._metrics.hedged.labels(self._copies.tiers[following].name, "failed" if done else "late").inc()
                rank = following
                asked.add(rank)
                running.add(self._start(entry, rank, way, lease))
        finally:
            for task in running:
                task.cancel()
        raise error or NotInTier("there is no good copy of this object any more")

    def _following(self, entry: Entry, asked: set[int]) -> int | None:
        ranks = (rank for rank in self._copies.lower_ranks if rank not in asked and entry.has_copy(rank))
        return next(ranks, None)

    def _reserve(self, entry: Entry) -> Lease | None:
        try:
            return self._room.reserve(entry.record.tenant, entry.record.nbytes)
        except ArenaFull:
            return None

    def _start(self, entry: Entry, rank: int, way: _Way, lease: Lease) -> asyncio.Task[Exception | None]:
        task = self._copies.spawn(self._read(entry, rank, entry.copies[rank], way, lease))
        task.add_done_callback(lambda _: lease.release())
        return task

    async def _read(self, entry: Entry, rank: int, copy: Copy | None, way: _Way, lease: Lease) -> None:
        """Fill `lease`, which becomes the arrival's if nothing has come from elsewhere before."""
        record = entry.record
        loop = asyncio.get_running_loop()
        source = _Source(way, lease)

        def arrived(nbytes: int) -> None:
            loop.call_soon_threadsafe(source.advance, nbytes)

        if copy is None:  # it was deleted before this began
            raise NotInTier("the copy is gone")
        reader = self._copies.tiers[rank].open(record, copy)
        try:
            blocks = await reader.read_into(0, lease, record.nbytes, arrived)
            if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
                raise CorruptCopy("the bytes do not match the digest of the whole")
            if entry.has_copy(rank) and not entry.has_copy(MEMORY):
                self._copies.add_copy(entry, MEMORY, self._copies.memory.adopt(lease.share(), blocks))
                self._metrics.promoted.inc()
                self.fill_in(entry, rank)
            source.take()
            way.arrival.advance(record.nbytes)
        except TierError as error:
            source.fail()
            if isinstance(error, CorruptCopy | NotInTier):
                self._copies.drop_bad_copy(entry, rank, copy, error)
            raise
        finally:
            await reader.close()


class _Source:
    """One tier's way into an arrival: what it brings counts if it was the first to bring something."""

    def __init__(self, way: _Way, lease: Lease) -> None:
        self._way = way
        self._lease = lease

    def advance(self, nbytes: int) -> None:
        """Note how much has come."""
        if self._way.source is None and not self._way.arrival.ended:
            self.take()
        if self._way.source is self:
            self._way.arrival.advance(nbytes)

    def take(self) -> None:
        """Be the one that counts."""
        if self._way.source is not self:
            self._way.source = self
            if self._lease.views is not self._way.arrival.lease.views:
                self._way.arrival.switch(self._lease.share())

    def fail(self) -> None:
        """Let another source be the one that counts."""
        if self._way.source is self:
            self._way.source = None


@dataclass(slots=True)
class _Way:
    """An arrival, and the source whose bytes are those that readers get."""

    arrival: Arrival
    source: _Source | None = None
