"""Copies: which tiers hold what, and how a copy comes and goes.

Invariants
1. A copy is listed in an entry exactly from the moment it is complete until it is dropped; a dropped copy is deleted
   once, in a task of its own, whatever becomes of the request that dropped it.
2. What a new version replaces stays in the lower tiers until the new version has been published in the home tier, or
   never will be: after a crash a key has one of its versions, never none.
3. An entry that is current has a copy; `lose_if_bare` follows every drop that may take the last one.

Rank 0 is memory (the arena); higher ranks are lower tiers, faster ones first. The home tier is the first lower tier
that takes every object: a private one that is written to. Decisions are taken synchronously.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kvgate import plugins
from kvgate.chunk.key import KV_PREFIX
from kvgate.errors import CorruptCopy, KVGateError, NotInTier, TierError
from kvgate.metrics import Metrics
from kvgate.store.ghosts import Fate, Ghosts
from kvgate.store.index import Entry, Index
from kvgate.store.keys import Keys
from kvgate.store.known import Known
from kvgate.store.quota import Quota
from kvgate.store.refusals import Refusals
from kvgate.store.residents import Policy, Residents
from kvgate.store.values import TierUsage
from kvgate.store.walks import add_leases
from kvgate.store.write_budget import WriteBudget
from kvgate.tiers.base import HERE, Copy, Inspected, Name, Record, Tier
from kvgate.tiers.host import HostTier
from kvgate.tiers.rules import TierRules

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY = 0


class Copies:
    """Carries out what is decided about copies. All methods run on the event loop.

    rules: by rank
    home:  the rank of the home tier; None without one
    leaving_nbytes, deletions: by rank, the bytes and tasks of copies that are being deleted
    """

    def __init__(
        self,
        memory: HostTier,
        lower: Sequence[Tier],
        index: Index,
        quota: Quota,
        policy: Policy,
        metrics: Metrics,
        ghosts: Ghosts,
        rules: Mapping[str, TierRules],
    ) -> None:
        """rules: by the names of tiers; those that are not named have the default ones"""
        self.memory = memory
        self.keys = Keys()
        self.tiers: tuple[Tier, ...] = (memory, *lower)
        self.all_ranks = tuple(range(len(self.tiers)))
        self.lower_ranks = self.all_ranks[1:]
        self.rules = tuple(rules.get(tier.name, TierRules()) for tier in self.tiers)
        self.shared_ranks = tuple(rank for rank in self.lower_ranks if self.tiers[rank].shared)
        private = (rank for rank in self.lower_ranks if rank not in self.shared_ranks)
        self.home = next((rank for rank in private if self._writes(rank)), None)
        self.residents = tuple(
            Residents(rank, _policy(tier_rules) or policy, tier.room, _budget(tier_rules))
            for rank, (tier, tier_rules) in enumerate(zip(self.tiers, self.rules, strict=True))
        )
        self._remembering = tuple(residents for residents in self.residents if residents.remembers)
        self.selective = any(
            self.residents[rank].remembers or self.rules[rank].write_budget is not None for rank in self.lower_ranks
        )
        """Whether a lower tier may refuse what it took at another time."""
        self.leaving_nbytes = [0] * len(self.tiers)
        self.deletions: tuple[set[asyncio.Task[Exception | None]], ...] = tuple(set() for _ in self.tiers)
        self.known: dict[int, Known] = {}
        """By the ranks of shared tiers, where it is kept what they hold."""
        self._index = index
        self._quota = quota
        self._metrics = metrics
        self.refusals = Refusals(metrics)
        self.left_memory: Callable[[Entry], None] = lambda _: None
        """Told of each entry that has lost its copy in memory, before the memory is given back."""
        self.ghosts = ghosts
        self.undeleted: dict[int, OrderedDict[Name, Record]] = {rank: OrderedDict() for rank in self.shared_ranks}
        """What is still to be deleted from shared tiers that were away; found there, it counts as gone."""
        self._leaving: dict[tuple[int, Name], asyncio.Task[Exception | None]] = {}  # from shared tiers
        self._superseded: dict[Entry, list[Entry]] = {}  # by the version that replaces them
        self._awaited: set[Entry] = set()  # every entry in those lists
        self._tasks: asyncio.TaskGroup
        self._background: set[asyncio.Task[Any]] = set()

    def _writes(self, rank: int) -> bool:
        return self.rules[rank].write != "never" and not self.tiers[rank].read_only

    def takes(self, rank: int, record: Record) -> bool:
        """Whether a lower tier is written to, and objects with this key may lie in it."""
        return self._writes(rank) and (rank not in self.shared_ranks or self.keys.is_shared(record.bucket, record.key))

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Take the task group that work in the background belongs to."""
        self._tasks = tasks

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | Exception]:
        """Run `work` to its end whatever becomes of the caller; an error is the task's result, not its exception."""
        task = self._tasks.create_task(_caught(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(lambda _: work.close())  # for one that is cancelled before its first step
        return task

    async def wait_for_background(self) -> None:
        """Wait for the deletions and other work that requests have left behind."""
        while self._background:
            await asyncio.wait(self._background)

    def add_copy(self, entry: Entry, rank: int, copy: Copy) -> None:
        """Note a complete copy."""
        if not entry.ranks:
            for residents in self._remembering:  # the object is new: this is its first use
                residents.note(entry)
        entry.set_copy(rank, copy)
        self.residents[rank].insert(entry)
        if rank in self.undeleted:
            self.undeleted[rank].pop(Name(*entry.record[:3]), None)
        if rank in self.known:
            self.known[rank].note(entry.record)

    def touch(self, entry: Entry, own_leases: int = 0) -> None:
        """Note a use, in the eviction order of every tier that holds a copy; the others may remember it.

        A chunk that is leased has been matched, or is being read: this belongs to the same use. If it counted again,
        the links of a chain would come into the order in which they are read.

        own_leases: how many leases on it are the caller's
        """
        if entry.leases > own_leases and entry.record.key.startswith(KV_PREFIX):
            return
        for rank, copy in enumerate(entry.copies):
            if copy is not None:
                self.residents[rank].touch(entry)
            elif self._remembering:
                self.residents[rank].note(entry)

    def touch_all(self, tenant: str, entries: Sequence[Entry]) -> None:
        """`touch` of many entries of one tenant, the links of a chain, head first."""
        held = [entry.ranks for entry in entries]
        alike = held.count(held[0]) == len(held)  # as a rule; hundreds of thousands of entries come here in a second
        for rank, residents in enumerate(self.residents):
            if alike:
                there = entries if held[0] >> rank & 1 else []
            else:
                there = [entry for entry, ranks in zip(entries, held, strict=True) if ranks >> rank & 1]
            residents.touch_all(tenant, there)
            if residents.remembers and len(there) < len(entries):
                for entry in reversed(entries):
                    if not entry.ranks >> rank & 1:
                        residents.note(entry)

    def arrange(self, tenant: str, entries: Sequence[Entry]) -> None:
        """Have the links of a chain, head first, go tail first in every tier. Counts as no use."""
        for residents in self.residents:
            residents.arrange(tenant, entries)

    def repin(self, entry: Entry) -> None:
        """Note that the pin of an entry has changed, in the eviction order of every tier that holds a copy."""
        for rank, copy in enumerate(entry.copies):
            if copy is not None:
                self.residents[rank].repin(entry)

    def usage(self, rank: int, tenant: str) -> TierUsage:
        """What a tenant has in a tier, and may have."""
        residents, capacity_nbytes = self.residents[rank], self.tiers[rank].usage().capacity_nbytes
        share = residents.shares.of(tenant)
        fair_nbytes = None if capacity_nbytes is None else residents.shares.fair_nbytes(tenant, capacity_nbytes)
        return TierUsage(*residents.usage(tenant), share.limit_nbytes, share.floor_nbytes, share.weight, fair_nbytes)

    def drop_copy(self, entry: Entry, rank: int, *, aside: bool = False) -> list[asyncio.Task[Exception | None]]:
        """Forget the copy in one tier; the tasks that delete it. Memory needs none.

        aside: keep what it is for people to look at, in a tier that can
        """
        copy = entry.copies[rank]
        if copy is None:
            return []
        entry.set_copy(rank, None)
        self.residents[rank].remove(entry)
        if rank == MEMORY:
            self.left_memory(entry)
            self.memory.drop(copy)
            return []
        self.leaving_nbytes[rank] += entry.record.nbytes
        task = self.spawn(self._delete(entry, rank, copy, aside=aside))
        self.deletions[rank].add(task)
        task.add_done_callback(self.deletions[rank].discard)
        if rank in self.shared_ranks:
            place = rank, Name(*entry.record[:3])
            self._leaving[place] = task
            task.add_done_callback(lambda _: self._leaving.get(place) is task and self._leaving.pop(place))
        return [task]

    def forget_shared(self, entry: Entry) -> None:
        """Forget the copies in shared tiers, and leave them there for other gateways."""
        for rank in self.shared_ranks:
            if entry.has_copy(rank):
                entry.set_copy(rank, None)
                self.residents[rank].remove(entry)
                if rank in self.known:
                    self.spawn(self.known[rank].forget(entry.record))

    async def gone(self, rank: int, names: Iterable[Name]) -> None:
        """Wait until what is being deleted from a shared tier under these names is gone, lest it be found again."""
        if tasks := {task for name in names if (task := self._leaving.get((rank, name))) is not None}:
            await asyncio.wait(tasks)

    def hand_over(self, old: Entry, entry: Entry) -> None:
        """Give the copies in shared tiers to the entry that takes another's place with the same body and attributes."""
        if not old.has_copy(*self.shared_ranks):
            return
        same = old.record.same_body(entry.record) and old.record.attributes == entry.record.attributes
        for rank in self.shared_ranks:
            copy = old.copies[rank]
            if copy is not None and old.leases == 0 and same:
                old.set_copy(rank, None)
                self.residents[rank].remove(old)
                self.add_copy(entry, rank, copy)

    def drop(self, entry: Entry) -> list[asyncio.Task[Exception | None]]:
        """Forget every copy, and those of the versions that it was to replace; the tasks that delete them."""
        tasks = self._end_superseded(entry) if entry in self._superseded else []
        for rank in self.all_ranks:
            if entry.ranks >> rank & 1:
                tasks += self.drop_copy(entry, rank)
        return tasks

    def lease(self, entry: Entry) -> None:
        """Keep an entry's copies until `unlease`."""
        entry.leases += 1

    def lease_all(self, entries: Sequence[Entry]) -> None:
        """`lease` of each."""
        add_leases(entries, 1)

    def unlease_all(self, entries: Sequence[Entry]) -> None:
        """`unlease` of each."""
        add_leases(entries, -1)
        for old in [entry for entry in entries if not entry.current]:
            self._let_go(old)

    def unlease(self, entry: Entry) -> None:
        """End one lease on an entry; the last one on a replaced entry lets its copies go."""
        entry.leases -= 1
        if not entry.current:
            self._let_go(entry)

    def supersede(self, entry: Entry, old: Entry) -> None:
        """Let the copies of `old` go, whose place `entry` has taken, as soon as they are not needed any more.

        One entry may take the place of many: of the last version of its key, and of the parts that it was made from.
        """
        olds = [*self._superseded.pop(old, ()), old]
        if self.home is not None and entry.waiting >> self.home & 1:
            self._superseded.setdefault(entry, []).extend(olds)
            self._awaited.update(olds)
            if old.leases == 0:
                self.drop_copy(old, MEMORY)
        else:
            for each in olds:
                self._let_go(each)

    def replaces(self, entry: Entry) -> bool:
        """Whether what an entry replaced is kept until it is in the home tier."""
        return entry in self._superseded

    def wait_for(self, entry: Entry, rank: int) -> None:
        """Note that an entry waits to be written to a tier."""
        entry.waiting |= 1 << rank

    def settle(self, entry: Entry, rank: int) -> None:
        """Note that an entry's way to a tier is over. Once it was the home tier, what it replaced is not needed."""
        entry.waiting &= ~(1 << rank)
        if rank == self.home:
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

    def lose_if_bare(self, entry: Entry, fate: Fate, rank: int) -> None:
        """Make an entry invisible that has no copy left, and remember what became of the last one and in which tier."""
        if entry.current and not entry.ranks:
            self._index.remove(entry)
            self._quota.give_back(entry.record.tenant, entry.record.nbytes)
            if not (fate is Fate.NOT_WRITTEN_BACK and self.ghosts.was_refused_by_a_tier(entry.record)):
                self.ghosts.note(entry.record, fate, self.tiers[rank].name)

    def drop_bad_copy(self, entry: Entry, rank: int, copy: Copy, error: TierError) -> None:
        """Drop a copy that a read found to be wrong or gone, unless that has happened already."""
        if entry.copies[rank] is not copy:
            return
        name = self.tiers[rank].name
        if isinstance(error, CorruptCopy):
            self._metrics.corrupt_copies.labels(name).inc()
            logger.warning("dropped a corrupt copy in the %s tier: %s", name, error)
        self.drop_copy(entry, rank, aside=isinstance(error, CorruptCopy))
        if entry.current and not any(copy is not None for copy in entry.copies):
            self._metrics.lost_objects.inc()
            self.lose_if_bare(entry, Fate.CORRUPT if isinstance(error, CorruptCopy) else Fate.GONE, rank)

    async def verify_in_memory(self, entry: Entry) -> None:
        """Hold the copy in memory against its digest, and drop it where it is bad."""
        copy = entry.copies[MEMORY]
        if copy is None:
            return
        try:
            (await self.memory.lease(entry.record, copy, 0, entry.record.nbytes)).release()
        except (CorruptCopy, NotInTier) as error:
            self.drop_bad_copy(entry, MEMORY, copy, error)

    async def _delete(self, entry: Entry, rank: int, copy: Copy, *, aside: bool) -> None:
        tier = self.tiers[rank]
        try:
            if rank in self.known:
                await self.known[rank].forget(entry.record)  # first, so that nothing is known that is not there
            if aside and isinstance(tier, Inspected):
                await tier.set_aside(entry.record, copy)
            elif not tier.read_only:  # else it is forgotten here, and stays where it is
                await tier.delete(entry.record, copy)
        except TierError as error:
            if error.transient and rank in self.undeleted:
                self._delete_later(rank, entry.record)
            raise
        finally:
            self.leaving_nbytes[rank] -= entry.record.nbytes

    def delete_stale(self, rank: int, record: Record, copy: Copy) -> None:
        """Delete, in the background, a copy of a version that was replaced before the gateway started."""
        if rank in self.known:  # another gateway may count on what is in the tier; this one does not
            self.spawn(self.known[rank].forget(record))
        else:
            self.spawn(self.tiers[rank].delete(record, copy))

    def is_undeleted(self, name: Name) -> bool:
        """Whether an object that was deleted still lies in a shared tier that was away."""
        return any(name in undeleted for undeleted in self.undeleted.values())

    async def delete_again(self, rank: int) -> None:
        """Try once more to delete from a shared tier what is still to be deleted there."""
        for name, record in list(self.undeleted[rank].items()):
            try:
                await self.tiers[rank].delete(record, HERE)
            except TierError as error:
                if error.transient:
                    return
            if self.undeleted[rank].get(name) is record:
                del self.undeleted[rank][name]

    def _delete_later(self, rank: int, record: Record) -> None:
        undeleted = self.undeleted[rank]
        undeleted[Name(*record[:3])] = record
        if len(undeleted) > self.rules[rank].journal:
            undeleted.popitem(last=False)
            self._metrics.stranded.labels(self.tiers[rank].name, "delete").inc()


def _policy(rules: TierRules) -> Policy | None:
    """The tier's own policy. Raises ConfigError."""
    policy: Policy | None = plugins.load("kvgate.eviction", rules.eviction) if rules.eviction else None
    return policy


def _budget(rules: TierRules) -> WriteBudget | None:
    if rules.write_budget is None:
        return None
    return WriteBudget(rules.write_budget, rules.write_burst, time.monotonic)


async def _caught(work: Coroutine[Any, Any, T]) -> T | Exception:
    try:
        return await work
    except KVGateError as error:  # for whoever waits for the task to judge
        return error
    except Exception as error:
        logger.exception("work in the background failed")
        return error
