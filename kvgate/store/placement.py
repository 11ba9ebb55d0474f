"""Placement: which copies exist, which go to make room, and what moves between memory and the lower tiers.

Invariants
1. A copy is listed in an entry exactly from the moment it is complete until it is dropped; a dropped copy is deleted
   once, in a task of its own, whatever becomes of the request that dropped it.
2. A copy is evicted only while nothing leases the entry. The last copy of a pinned entry is never evicted, and from
   memory never the last copy of an entry that a lower tier is still to get.
3. Every decision is taken synchronously; I/O follows it.
4. What a new version replaces stays in the lower tiers until the new version has been published there, or never will
   be: after a crash a key has one of its versions, never none.

Rank 0 is memory (the arena); higher ranks are lower tiers, faster ones first.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from kvgate.errors import ArenaFull, CorruptCopy, NotInTier, Overloaded, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest
from kvgate.memory.lease import Lease
from kvgate.metrics import Metrics
from kvgate.store.eviction.base import EvictionPolicy
from kvgate.store.index import Entry, Index
from kvgate.store.quota import Quota
from kvgate.store.residents import Residents
from kvgate.tiers.base import Copy, Tier
from kvgate.tiers.host import HostTier

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY = 0
_MAX_ATTEMPTS = 4
_RETRY_S = 0.25
_MAX_VICTIMS = 4096


class Placement:
    """Carries out where copies lie. All methods run on the event loop."""

    def __init__(
        self,
        memory: HostTier,
        lower: Sequence[Tier],
        index: Index,
        quota: Quota,
        policy: Callable[[], EvictionPolicy[Entry]],
        metrics: Metrics,
    ) -> None:
        self.memory = memory
        self.tiers: tuple[Tier, ...] = (memory, *lower)
        self.lower_ranks = tuple(range(1, len(self.tiers)))
        self.residents = tuple(Residents(rank, policy) for rank in range(len(self.tiers)))
        self._index = index
        self._quota = quota
        self._metrics = metrics
        self._leaving_nbytes = [0] * len(self.tiers)
        self._deletions: tuple[set[asyncio.Task[Exception | None]], ...] = tuple(set() for _ in self.tiers)
        self._promotions: dict[Entry, asyncio.Task[Exception | None]] = {}
        self._dirty: OrderedDict[Entry, None] = OrderedDict()
        self._superseded: dict[Entry, list[Entry]] = {}  # by the version that replaces them
        self._awaited: set[Entry] = set()  # every entry in those lists
        self._moving = 0
        self._moved = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._background: set[asyncio.Task[Any]] = set()

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, tasks: asyncio.TaskGroup, movers: int) -> list[asyncio.Task[None]]:
        """Begin to demote in the background; the tasks run until they are cancelled."""
        self._tasks = tasks
        return [tasks.create_task(self._demote_forever()) for _ in range(movers)] if self.lower_ranks else []

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | Exception]:
        """Run `work` to its end whatever becomes of the caller; an error is the task's result, not its exception."""
        task = self._tasks.create_task(_caught(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def flush(self) -> None:
        """Wait until every object has its copy in a lower tier, or is known to find no room there."""
        while self._dirty or self._moving:
            await self._next_move()

    async def wait_for_background(self) -> None:
        """Wait for the deletions and other work that requests have left behind."""
        while self._background:
            await asyncio.wait(self._background)

    @property
    def dirty(self) -> int:
        """How many objects wait for, or are on, their way to a lower tier."""
        return len(self._dirty) + self._moving

    # --- copies -------------------------------------------------------------------------------------------------------

    def add_copy(self, entry: Entry, rank: int, copy: Copy) -> None:
        """Note a complete copy."""
        entry.set_copy(rank, copy)
        self.residents[rank].insert(entry)

    def touch(self, entry: Entry) -> None:
        """Note a use, in the eviction order of every tier that holds a copy."""
        for rank, copy in enumerate(entry.copies):
            if copy is not None:
                self.residents[rank].touch(entry)

    def drop_copy(self, entry: Entry, rank: int) -> list[asyncio.Task[Exception | None]]:
        """Forget the copy in one tier; the tasks that delete it. Memory needs none."""
        copy = entry.copies[rank]
        if copy is None:
            return []
        entry.set_copy(rank, None)
        self.residents[rank].remove(entry)
        if rank == MEMORY:
            self.memory.drop(copy)
            return []
        self._leaving_nbytes[rank] += entry.record.nbytes
        task = self.spawn(self._delete(entry, rank, copy))
        self._deletions[rank].add(task)
        task.add_done_callback(self._deletions[rank].discard)
        return [task]

    def drop(self, entry: Entry) -> list[asyncio.Task[Exception | None]]:
        """Forget every copy, and those of the versions that it was to replace; the tasks that delete them."""
        self._dirty.pop(entry, None)
        tasks = self._end_superseded(entry)
        return tasks + [task for rank in range(len(self.tiers)) for task in self.drop_copy(entry, rank)]

    def lease(self, entry: Entry) -> None:
        """Keep an entry's copies until `unlease`."""
        entry.leases += 1

    def unlease(self, entry: Entry) -> None:
        """End one lease on an entry; the last one on a replaced entry lets its copies go."""
        entry.leases -= 1
        if not entry.current:
            self._let_go(entry)

    def supersede(self, entry: Entry, old: Entry) -> None:
        """Let the copies of `old` go, whose place `entry` has taken, as soon as they are not needed any more.

        One entry may take the place of many: of the last version of its key, and of the parts that it was made from.
        """
        self._dirty.pop(old, None)
        olds = [*self._superseded.pop(old, ()), old]
        if self.lower_ranks and not entry.settled:
            self._superseded.setdefault(entry, []).extend(olds)
            self._awaited.update(olds)
            if old.leases == 0:
                self.drop_copy(old, MEMORY)
        else:
            for each in olds:
                self._let_go(each)

    def settle(self, entry: Entry) -> None:
        """Note that an entry's way to a lower tier is over; what it replaced is not needed any more."""
        entry.settled = True
        self._end_superseded(entry)

    def _end_superseded(self, entry: Entry) -> list[asyncio.Task[Exception | None]]:
        olds = self._superseded.pop(entry, ())
        self._awaited.difference_update(olds)
        return [task for old in olds for task in self._let_go(old)]

    def _let_go(self, old: Entry) -> list[asyncio.Task[Exception | None]]:
        return self.drop(old) if old.leases == 0 and old not in self._awaited else []

    async def delete(self, entry: Entry) -> None:
        """Forget every copy, and wait until none would be found after a restart. Raises TierError."""
        for task in self.drop(entry):
            error = await asyncio.shield(task)
            if error is not None:
                raise error

    def lose_if_bare(self, entry: Entry) -> None:
        """Make an entry invisible that has no copy left."""
        if entry.current and not any(copy is not None for copy in entry.copies):
            self._index.remove(entry)
            self._quota.give_back(entry.record.tenant, entry.record.nbytes)

    def drop_bad_copy(self, entry: Entry, rank: int, copy: Copy, error: TierError) -> None:
        """Drop a copy that a read found to be wrong or gone, unless that has happened already."""
        if entry.copies[rank] is not copy:
            return
        name = self.tiers[rank].name
        if isinstance(error, CorruptCopy):
            self._metrics.corrupt_copies.labels(name).inc()
            logger.warning("dropped a corrupt copy in the %s tier: %s", name, error)
        self.drop_copy(entry, rank)
        if entry.current and not any(copy is not None for copy in entry.copies):
            self._metrics.lost_objects.inc()
            self.lose_if_bare(entry)

    async def _delete(self, entry: Entry, rank: int, copy: Copy) -> None:
        try:
            await self.tiers[rank].delete(entry.record, copy)
        finally:
            self._leaving_nbytes[rank] -= entry.record.nbytes

    # --- room ---------------------------------------------------------------------------------------------------------

    def reserve(self, tenant: str, nbytes: int) -> Lease:
        """Memory for `nbytes`, after evicting what lower tiers hold too. Raises ArenaFull."""
        while True:
            try:
                return self.memory.reserve(tenant, nbytes)
            except ArenaFull:
                if not self._evict_from_memory(tenant, nbytes):
                    raise

    async def reserve_window(self, tenant: str, nbytes: int, timeout_s: float) -> Lease:
        """Memory to stream an object through: `nbytes`, or less down to one block when there is not so much.

        While objects are on their way to a lower tier, waits up to `timeout_s` for their memory. Raises Overloaded.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            for size in (nbytes, nbytes // 4, BLOCK_NBYTES):
                with contextlib.suppress(ArenaFull):
                    return self.reserve(tenant, max(BLOCK_NBYTES, size - size % BLOCK_NBYTES))
            try:
                async with asyncio.timeout(deadline - time.monotonic() if self.dirty else 0):
                    await self._next_move()
            except TimeoutError:
                raise Overloaded("memory is full of objects in use; try again") from None

    def extend(self, lease: Lease, nbytes: int) -> None:
        """Lengthen a lease by `nbytes`, after evicting what lower tiers hold too. Raises ArenaFull."""
        while True:
            try:
                lease.extend(nbytes)
                return
            except ArenaFull:
                if not self._evict_from_memory(lease.owner, nbytes):
                    raise

    def may_leave_memory(self, entry: Entry) -> bool:
        """Whether an entry's copy in memory may be evicted now."""
        if entry.leases or not (entry.settled or not self.lower_ranks):
            return False
        return not entry.pinned or entry.has_copy(*self.lower_ranks)

    def may_leave(self, rank: int, entry: Entry) -> bool:
        """Whether an entry's copy in a lower tier may be evicted now."""
        return entry.leases == 0 and not entry.pinned

    async def make_room(self, rank: int, tenant: str, nbytes: int) -> None:
        """Evict from a lower tier until an object of `nbytes` fits. Raises TierFull when it cannot."""
        tier = self.tiers[rank]
        if nbytes > tier.limit():
            raise TierFull(f"an object of {nbytes} bytes is larger than the {tier.name} tier")
        while (shortage := nbytes - tier.room(tenant)) > 0:
            shortage -= self._leaving_nbytes[rank]
            victims = self._take_victims(rank, shortage, lambda entry: self.may_leave(rank, entry))
            if not victims and not self._deletions[rank]:
                raise TierFull(
                    f"the {tier.name} tier has no room for {nbytes} bytes: what it holds is leased or pinned"
                )
            for entry in victims:
                self._evict(entry, rank)
            await asyncio.wait(self._deletions[rank], return_when=asyncio.FIRST_COMPLETED)

    def evict_objects(self, tenant: str, nbytes: int, may_go: Callable[[Entry], bool]) -> None:
        """Evict a tenant's least useful objects altogether, until `nbytes` of its bytes are gone or no more may go."""
        freed = 0
        for rank in reversed(range(len(self.tiers))):  # what lies only in low tiers has not been used for longest
            victims = self.residents[rank].victims(may_go, tenant)
            only_here = [entry for entry in itertools.islice(victims, _MAX_VICTIMS) if not entry.has_copy(*range(rank))]
            for entry in only_here:
                if freed >= nbytes:
                    return
                freed += entry.record.nbytes
                self._metrics.evicted.labels("quota").inc()
                self.drop(entry)
                self.lose_if_bare(entry)

    def _evict_from_memory(self, tenant: str, nbytes: int) -> bool:
        """Evict from memory at least as much as is missing; False when nothing may go."""
        if nbytes > self.memory.limit():
            return False
        shortage = max(1, nbytes - self.memory.room(tenant))
        victims = self._take_victims(MEMORY, shortage, self.may_leave_memory)
        for entry in victims:
            self._evict(entry, MEMORY)
        return bool(victims)

    def _take_victims(self, rank: int, shortage: int, may_go: Callable[[Entry], bool]) -> list[Entry]:
        victims = []
        if shortage > 0:
            for entry in self.residents[rank].victims(may_go):
                victims.append(entry)
                shortage -= max(1, entry.record.nbytes)
                if shortage <= 0:
                    break
        return victims

    def _evict(self, entry: Entry, rank: int) -> None:
        self._metrics.evicted.labels(self.tiers[rank].name).inc()
        self.drop_copy(entry, rank)
        self.lose_if_bare(entry)

    # --- promotion ----------------------------------------------------------------------------------------------------

    async def promote(self, entry: Entry, rank: int) -> None:
        """Try to copy an entry from a lower tier to memory; concurrent calls for one entry share one copy.

        Afterwards the entry has a copy in memory, or has lost a bad one in the lower tier, or memory has no room.
        Raises a TierError that says nothing about the copy.
        """
        task = self._promotions.get(entry)
        if task is None:
            task = self.spawn(self._promote(entry, rank))
            self._promotions[entry] = task
            task.add_done_callback(lambda _: self._promotions.pop(entry, None))
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def _promote(self, entry: Entry, rank: int) -> None:
        record, copy = entry.record, entry.copies[rank]
        if copy is None or entry.has_copy(MEMORY):
            return
        try:
            lease = self.reserve(record.tenant, record.nbytes)
        except ArenaFull:
            return
        reader = self.tiers[rank].open(record, copy)
        try:
            await reader.read_into(0, lease, record.nbytes)
            digest = digest_of(lease)
            if digest.value != record.crc64nvme:
                raise CorruptCopy("the bytes do not match the digest of the whole")
            if entry.has_copy(rank) and not entry.has_copy(MEMORY):
                self.add_copy(entry, MEMORY, self.memory.adopt(lease.share(), digest.blocks))
                self._metrics.promoted.inc()
        except (CorruptCopy, NotInTier) as error:
            self.drop_bad_copy(entry, rank, copy, error)
        finally:
            lease.release()
            await reader.close()

    # --- demotion -----------------------------------------------------------------------------------------------------

    def enqueue(self, entry: Entry) -> None:
        """Have an entry that is only in memory written to the first lower tier in the background."""
        if self.lower_ranks:
            self._dirty[entry] = None
            self._wake.set()

    async def write_through(self, entry: Entry, rank: int) -> Copy:
        """A finished but unpublished copy of an entry's bytes in a lower tier. Raises TierError with nothing left."""
        copy = entry.copies[MEMORY]
        if copy is None or copy.lease is None:
            raise NotInTier("the copy in memory is gone")
        lease: Lease = copy.lease.share()
        try:
            return await self.write_lease(entry, rank, lease, copy.blocks)
        finally:
            lease.release()

    async def write_lease(self, entry: Entry, rank: int, lease: Lease, blocks: array[int]) -> Copy:
        """A finished but unpublished copy in a lower tier of what `lease` holds. Raises TierError with nothing left."""
        record = entry.record
        await self.make_room(rank, record.tenant, record.nbytes)
        upload = await self.tiers[rank].begin(record.tenant, record.nbytes)
        try:
            await upload.write(lease, 0, record.nbytes)
            return await upload.finish(record, blocks)
        except BaseException:
            await asyncio.shield(self.spawn(upload.abort()))
            raise

    async def _demote_forever(self) -> None:
        while True:
            while not self._dirty:
                self._wake.clear()
                await self._wake.wait()
            entry, _ = self._dirty.popitem(last=False)
            self._moving += 1
            try:
                await self._demote(entry)
            finally:
                self._moving -= 1
                self._moved.set()

    async def _demote(self, entry: Entry) -> None:
        rank = self.lower_ranks[0]
        for attempt in range(_MAX_ATTEMPTS):
            if not entry.current or entry.has_copy(rank) or not entry.has_copy(MEMORY):
                return
            try:
                copy = await self.write_through(entry, rank)
                await self.publish(entry, rank, copy)
                self._metrics.demoted.inc()
                return
            except TierError as error:
                if not error.transient or attempt == _MAX_ATTEMPTS - 1:
                    self._metrics.stranded.inc()
                    logger.warning("an object stays in memory only: %s", error)
                    self.settle(entry)
                    return
            await asyncio.sleep(_RETRY_S * 2**attempt)

    async def publish(self, entry: Entry, rank: int, copy: Copy) -> None:
        """Note a finished copy of a current entry and make it survive; a copy of a stale entry is deleted.

        Raises TierError after dropping the copy.
        """
        if not entry.current:
            await self.tiers[rank].delete(entry.record, copy)
            return
        self.add_copy(entry, rank, copy)
        try:
            await self.tiers[rank].publish(entry.record, copy)
        except TierError:
            if entry.copies[rank] is copy:
                self.drop_copy(entry, rank)
                self.lose_if_bare(entry)
            raise
        self.settle(entry)

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()


def digest_of(lease: Lease) -> BlockDigest:
    """The digests of all the bytes that a lease holds."""
    digest = BlockDigest()
    for view in lease.views:
        digest.update(view)
    return digest


async def _caught(work: Coroutine[Any, Any, T]) -> T | Exception:
    try:
        return await work
    except TierError as error:
        return error
    except Exception as error:
        logger.exception("work in the background failed")
        return error
