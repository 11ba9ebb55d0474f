"""Demotion: what lower tiers should have is written to them in the background, a queue and a few workers for each.

Invariants
1. An entry waits for a tier (`Entry.waiting`) exactly while the tier's queue holds it, or from the decision to write it
   on the way of a PUT until that has ended.
2. What a private tier is to get is never given up for lack of room elsewhere: the queue is bounded by the tier above.
3. Nothing is written in the background that the tier's policy or write budget does not admit. What was refused is
   asked for again when it is used.
4. What a shared tier is to get waits in a bounded journal, also while the tier is away. What falls out of that is
   counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from kvgate.errors import NotAdmitted, NotInTier, TierAway, TierError
from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry
from kvgate.store.mover import Mover
from kvgate.store.write_queue import WriteQueue

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 4
_RETRY_S = 0.25
_RESUMED_AT_ONCE = 1000


class Demotion:
    """Writes entries to lower tiers in the background. All methods run on the event loop."""

    def __init__(self, copies: Copies, mover: Mover, backlog: Backlog, metrics: Metrics) -> None:
        self._copies = copies
        self._mover = mover
        self._backlog = backlog
        self._metrics = metrics
        self._queues = tuple(
            WriteQueue(
                copies.rules[rank].journal if rank in copies.shared_ranks else None,
                copies.residents[rank].shares.weight,
            )
            for rank in range(len(copies.tiers))
        )

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Begin to work in the background; the tasks run until they are cancelled."""
        copies = self._copies
        work = [self._demote_forever(rank) for rank in copies.lower_ranks for _ in range(copies.rules[rank].writers)]
        work += [self._delete_forever(rank) for rank in copies.shared_ranks if not copies.tiers[rank].read_only]
        return [tasks.create_task(each) for each in work]

    def plan(self, entry: Entry) -> list[int]:
        """The lower tiers that a new object is to be written to at once, which it waits for from now on."""
        copies = self._copies
        ranks = []
        for rank in copies.lower_ranks:
            if copies.rules[rank].write in ("back", "through") and copies.takes(rank, entry.record):
                copies.wait_for(entry, rank)
                ranks.append(rank)
        return ranks

    def offer(self, entries: Iterable[Entry]) -> None:
        """Have those written down of which only memory has a copy and which are admitted by now; they are in use."""
        for entry in entries:
            if entry.waiting or entry.fastest() != MEMORY or entry.has_copy(*self._copies.lower_ranks):
                continue
            for rank in self._copies.lower_ranks:
                if self._copies.rules[rank].write == "back" and self._copies.takes(rank, entry.record):
                    self.enqueue(entry, rank)

    def enqueue(self, entry: Entry, rank: int) -> bool:
        """Have an entry written to a lower tier in the background; False when that does not admit it."""
        refusal = self._copies.residents[rank].admits(entry)
        if refusal is not None:
            name = self._copies.tiers[rank].name
            self._metrics.not_admitted.labels(name, refusal).inc()
            self._copies.ghosts.note(entry.record, Fate.REFUSED_BY_ADMISSION, name)
            self._copies.settle(entry, rank)
            return False
        self._copies.wait_for(entry, rank)
        if rank not in self._copies.shared_ranks:
            self._backlog.begin()
        dropped = self._queues[rank].put(entry)
        if dropped is not None:
            self._give_up(dropped, rank, "journal")
        return True

    def spill(self, entry: Entry, rank: int) -> bool:
        """Have an entry that will leave a tier written to the one below that wants it then; False if none takes it."""
        copies = self._copies
        for below in range(rank + 1, len(copies.tiers)):
            wants = copies.rules[below].write == "on-evict" and copies.takes(below, entry.record)
            if wants and (entry.waiting >> below & 1 or self.enqueue(entry, below)):
                return True
        return False

    def fill_in(self, entry: Entry, rank: int) -> None:
        """Have an entry that was brought up from a tier written to those that it has passed."""
        copies = self._copies
        for above in range(1, rank):
            if (
                copies.rules[above].write in ("back", "through")
                and not entry.has_copy(above)
                and not entry.waiting >> above & 1
                and copies.takes(above, entry.record)
            ):
                self.enqueue(entry, above)

    async def resume(self, entries: Iterable[Entry]) -> None:
        """Have what survived a restart written to the shared tiers that do not hold it, as far as the journals go."""
        ranks = [rank for rank in self._copies.shared_ranks if self._copies.rules[rank].write in ("back", "through")]
        for number, entry in enumerate(entries):
            if number % _RESUMED_AT_ONCE == 0:
                await asyncio.sleep(0)
            for rank in ranks:
                room = len(self._queues[rank]) < self._copies.rules[rank].journal
                if entry.current and room and not entry.has_copy(rank) and self._copies.takes(rank, entry.record):
                    self.enqueue(entry, rank)

    def waiting(self, rank: int) -> int:
        """How many entries wait for a tier."""
        return len(self._queues[rank])

    async def flush(self, timeout_s: float) -> None:
        """Wait until private tiers have what they are to get, and shared ones too unless that takes longer."""
        await self._backlog.clear()
        deadline = time.monotonic() + timeout_s
        for rank in self._copies.shared_ranks:
            await self._queues[rank].wait_until_empty(deadline - time.monotonic())

    async def stop(self, timeout_s: float) -> None:
        """As `flush`; what shared tiers have not got then is given up."""
        await self.flush(timeout_s)
        for rank in self._copies.shared_ranks:
            for entry in self._queues[rank].clear():
                self._give_up(entry, rank, "stop")

    async def _demote_forever(self, rank: int) -> None:
        queue = self._queues[rank]
        while True:
            entry = await queue.take()
            try:
                await self._demote(entry, rank)
            except Exception:
                logger.exception("a demotion failed")  # a defect; the object stays where it is, the others go on
            finally:
                queue.end(entry)
                self._copies.settle(entry, rank)
                if rank not in self._copies.shared_ranks:
                    self._backlog.end()

    async def _delete_forever(self, rank: int) -> None:
        while True:
            await asyncio.sleep(self._copies.rules[rank].retry_after)
            try:
                await self._copies.delete_again(rank)
            except Exception:
                logger.exception("a deletion failed")  # a defect; it is tried again

    async def _demote(self, entry: Entry, rank: int) -> None:
        copies = self._copies
        attempt = 0
        while entry.current and not entry.has_copy(rank) and entry.waiting >> rank & 1:
            if rank in copies.shared_ranks and copies.replaces(entry):
                await self._backlog.next(_RETRY_S)  # the tier may hold what this replaces, until it is in the home tier
                continue
            try:
                await self._mover.bring(entry, rank)
                self._metrics.demoted.inc()
                return
            except TierAway:
                await asyncio.sleep(copies.rules[rank].retry_after)  # it waits in the journal, and so do the others
                continue
            except NotInTier:
                break
            except NotAdmitted:
                self._metrics.not_admitted.labels(copies.tiers[rank].name, "other body").inc()
                copies.ghosts.note(entry.record, Fate.REFUSED_BY_ADMISSION, copies.tiers[rank].name)
                break
            except TierError as error:
                attempt += 1
                if not error.transient or attempt == _MAX_ATTEMPTS:
                    self._metrics.stranded.labels(copies.tiers[rank].name, "failed").inc()
                    logger.warning("an object is not written to the %s tier: %s", copies.tiers[rank].name, error)
                    break
            await asyncio.sleep(_RETRY_S * 2**attempt)
        if not entry.has_copy(rank):
            copies.residents[rank].return_budget(entry)

    def _give_up(self, entry: Entry, rank: int, reason: str) -> None:
        self._metrics.stranded.labels(self._copies.tiers[rank].name, reason).inc()
        self._copies.residents[rank].return_budget(entry)
        self._copies.settle(entry, rank)
