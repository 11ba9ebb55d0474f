"""Room: what is evicted so that something else fits.

A copy is evicted only while nothing leases its entry, nor reads it in memory. The last copy of a pinned entry is never
evicted, nor the last copy of an entry that a private tier is still to get. What a shared tier is still to get may go,
and is counted: the engine computes it again, and nobody waits for a tier that is slow or away.

Where a tier below takes what is evicted from one above, the next to go are written there ahead of time.

Where there is a lower tier, no object takes all of memory: there is room for a window beside it, to copy it through.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial

from kvgate.errors import ArenaFull, Overloaded, TierFull
from kvgate.memory.allocator import whole_pages
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.memory.lease import Lease
from kvgate.memory.owner import tenant_of
from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.ghosts import Fate
from kvgate.store.incoming import CountedUpload, Incoming
from kvgate.store.index import Entry
from kvgate.store.residents import Residents
from kvgate.tiers.base import Upload

_MAX_VICTIMS = 4096
_SPILL_SHARE = 8
"""One part in so many of a tier is kept free or written below ahead, where what is evicted goes to a lower tier."""


_SPILL_WAIT_S = 5.0
"""How long a write to a full tier waits for what leaves that for the one below."""


class Room:
    """Makes room in memory and in the lower tiers. All methods run on the event loop."""

    def __init__(self, copies: Copies, backlog: Backlog, metrics: Metrics) -> None:
        self._copies = copies
        self._backlog = backlog
        self._metrics = metrics
        self._incoming = tuple(Incoming() for _ in copies.tiers)
        self.spill_to: Callable[[Entry, int], bool]
        """Has an entry that is going to leave a tier written to a lower one; False when none takes it."""
        self.waiting_for: Callable[[int], int]
        """How many entries wait to be written to a tier."""
        self.note_uses: Callable[[], None] = lambda: None
        """Notes the uses that the order of eviction does not know of yet."""
        self.is_read: Callable[[Entry], bool] = lambda _: False
        """Whether an entry is read without a lease: it is not evicted either."""
        rules = copies.rules
        self._spills = tuple(
            tuple(below for below in copies.lower_ranks if below > rank and rules[below].write == "on-evict")
            for rank in copies.all_ranks
        )
        """By rank, the lower tiers that are to get what leaves it."""
        self._unspilled_nbytes = [0] * len(copies.tiers)  # by rank, what has come since the last `_spill_ahead`

    def reserve(self, owner: str, nbytes: int) -> Lease:
        """Memory for `nbytes`, after evicting what lower tiers hold too. Raises ArenaFull."""
        self._leave_a_window(nbytes)
        self._keep_to_memory_limit(tenant_of(owner), nbytes)
        self._spill_ahead(MEMORY, owner, nbytes)
        while True:
            try:
                return self._copies.memory.reserve(owner, nbytes)
            except ArenaFull:
                if not self._evict_from_memory(owner, nbytes):
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
            if not self._backlog.count or not await self._backlog.next(deadline - time.monotonic()):
                raise Overloaded("memory is full of objects in use; try again")

    def extend(self, lease: Lease, nbytes: int) -> None:
        """Lengthen a lease by `nbytes`, after evicting what lower tiers hold too. Raises ArenaFull."""
        self._leave_a_window(lease.nbytes + nbytes)
        self._keep_to_memory_limit(tenant_of(lease.owner), nbytes)
        while True:
            try:
                lease.extend(nbytes)
                return
            except ArenaFull:
                if not self._evict_from_memory(lease.owner, nbytes):
                    raise

    async def begin(self, rank: int, tenant: str, nbytes: int | None) -> Upload:
        """An upload to a lower tier, for which room has been made; where its length is not known, `make` makes it.

        Raises TierFull when there is none.
        """
        incoming, counted = self._incoming[rank], nbytes or 0
        self._keep_to_limit(rank, tenant, counted)
        incoming.add(tenant, counted)  # before anything is waited for, so that others see it
        try:
            await self._make(rank, tenant, counted)
            upload = await self._copies.tiers[rank].begin(tenant, nbytes)
        except BaseException:
            incoming.add(tenant, -counted)
            raise
        return CountedUpload(upload, incoming, tenant, counted)

    async def make(self, rank: int, tenant: str, nbytes: int) -> None:
        """Evict from a lower tier until `nbytes` more of an upload fit. Raises TierFull when they cannot."""
        self._keep_to_limit(rank, tenant, nbytes)
        await self._make(rank, tenant, nbytes)

    async def make_spare(self, rank: int, tenant: str, nbytes: int) -> None:
        """As `make`, for what takes the place of what is there: the tenant's limit has it counted. Raises TierFull."""
        await self._make(rank, tenant, nbytes)

    def may_hold(self, ranks: Iterable[int], tenant: str, nbytes: int) -> bool:
        """Whether one of the tiers may have an object of this length of a tenant, as far as its limits say."""
        for rank in ranks:  # noqa: SIM110 - the first says yes, as a rule: not worth a generator for every upload
            if self._copies.residents[rank].shares.excess(tenant, 0, nbytes) == 0:
                return True
        return False

    async def _make(self, rank: int, tenant: str, nbytes: int) -> None:
        tier = self._copies.tiers[rank]
        if nbytes > tier.limit():
            raise TierFull(f"an object of {nbytes} bytes is larger than the {tier.name} tier")
        self._spill_ahead(rank, tenant, nbytes)
        deadline = time.monotonic() + _SPILL_WAIT_S
        while (shortage := nbytes - tier.room(tenant)) > 0:
            shortage -= self._copies.leaving_nbytes[rank]
            asks_nbytes = max(nbytes, self._incoming[rank].of(tenant))
            victims = self._take_victims(rank, shortage, tenant, asks_nbytes)
            if not victims and not self._copies.deletions[rank]:
                if await self._spill_has_ended(rank, deadline - time.monotonic()):
                    continue
                raise TierFull(
                    f"the {tier.name} tier has no room for {nbytes} bytes: what it holds is leased or pinned"
                )
            for entry in victims:
                self._evict(entry, rank)
            await asyncio.wait(self._copies.deletions[rank], return_when=asyncio.FIRST_COMPLETED)

    async def _spill_has_ended(self, rank: int, timeout_s: float) -> bool:
        """Wait until one of those that leave a tier for a private one below has got there; False if none does."""
        private = [below for below in self._spills[rank] if below not in self._copies.shared_ranks]
        return any(self.waiting_for(below) for below in private) and await self._backlog.next(max(0.0, timeout_s))

    def evict_objects(
        self, tenant: str, nbytes: int, may_go: Callable[[Entry], bool], *, here_only: bool = False
    ) -> None:
        """Evict a tenant's least useful objects altogether, until `nbytes` of its bytes are gone or no more may go.

        here_only: leave what lies in shared tiers there, for other gateways, and only forget it
        """
        freed = 0
        # What lies only in low tiers has not been used for longest.
        for rank in reversed(range(len(self._copies.tiers))):
            victims = self._residents(rank).victims_of(tenant, may_go)
            only_here = [entry for entry in itertools.islice(victims, _MAX_VICTIMS) if not entry.has_copy(*range(rank))]
            for entry in only_here:
                if freed >= nbytes:
                    return
                if self.is_read(entry):
                    continue
                freed += entry.record.nbytes
                self._metrics.evicted.labels("quota").inc()
                if here_only:
                    self._copies.forget_shared(entry)
                self._copies.drop(entry)
                self._copies.lose_if_bare(entry, Fate.EVICTED_BY_QUOTA, rank)

    def _leave_a_window(self, nbytes: int) -> None:
        """Raises ArenaFull for a lease that would leave no room for a window."""
        if self._copies.lower_ranks and nbytes > max(self._copies.memory.limit() - BLOCK_NBYTES, BLOCK_NBYTES):
            raise ArenaFull(f"{nbytes} bytes would leave no room in memory to stream anything")

    def _residents(self, rank: int) -> Residents:
        """Those of a tier, in an order that knows of every use."""
        self.note_uses()
        return self._copies.residents[rank]

    def _is_idle(self, entry: Entry) -> bool:
        return entry.leases == 0 and not entry.pinned and not self.is_read(entry)

    def _may_leave(self, rank: int, entry: Entry) -> bool:
        """Whether an entry's copy in a tier may be evicted now."""
        if entry.leases or (entry.pinned and not (rank == MEMORY and entry.has_copy(*self._copies.lower_ranks))):
            return False
        if rank == MEMORY and self.is_read(entry):
            return False
        if not entry.waiting and not self._spills[rank]:
            return True
        return self._is_elsewhere(entry, rank) or not self._is_owed(entry, rank)

    def _is_elsewhere(self, entry: Entry, rank: int) -> bool:
        return any(copy is not None for each, copy in enumerate(entry.copies) if each != rank)

    def _is_owed(self, entry: Entry, rank: int) -> bool:
        """Whether a private tier is still to get an entry; from now on, one that should as it leaves waits for it."""
        copies = self._copies
        if any(entry.waiting >> each & 1 for each in copies.lower_ranks if each not in copies.shared_ranks):
            return True
        return any(each not in copies.shared_ranks for each in self._spills[rank]) and self.spill_to(entry, rank)

    def _spill_ahead(self, rank: int, tenant: str, nbytes: int) -> None:
        """Before `nbytes` come to a tier, have those written below that are the next to leave it."""
        if not self._spills[rank]:
            return
        tier = self._copies.tiers[rank]
        ahead_nbytes = tier.limit() // _SPILL_SHARE
        self._unspilled_nbytes[rank] += nbytes
        if self._unspilled_nbytes[rank] < ahead_nbytes // 4 or tier.room(tenant) >= ahead_nbytes:
            return
        self._unspilled_nbytes[rank] = 0
        refused = []
        for entry in itertools.islice(self._residents(rank).victims(self._is_idle), _MAX_VICTIMS):
            ahead_nbytes -= entry.record.nbytes
            if not self._is_elsewhere(entry, rank) and not self.spill_to(entry, rank):
                refused.append(entry)
            if ahead_nbytes <= 0:
                break
        for entry in refused:
            self._evict(entry, rank)

    def _keep_to_memory_limit(self, tenant: str, nbytes: int) -> None:
        """Evict a tenant's own from memory until `nbytes` more are within its limit. Raises ArenaFull."""
        if (limit := self._copies.residents[MEMORY].shares.of(tenant).limit_nbytes) is None:
            return
        nbytes = whole_pages(nbytes)
        excess = self._copies.memory.used_by(tenant) + nbytes - limit
        if nbytes > limit or not self._evict_own(MEMORY, tenant, excess):
            raise ArenaFull(
                f"{nbytes} bytes more would pass the tenant's limit in memory: it is lower, or what it has is in use"
            )

    def _keep_to_limit(self, rank: int, tenant: str, nbytes: int) -> None:
        """Evict a tenant's own from a lower tier until `nbytes` more are within its limit. Raises TierFull."""
        residents = self._copies.residents[rank]
        if (limit := residents.shares.of(tenant).limit_nbytes) is None:
            return
        used_nbytes = residents.usage(tenant)[1] + self._incoming[rank].of(tenant)
        excess = used_nbytes + nbytes - limit
        if nbytes > limit or not self._evict_own(rank, tenant, excess):
            self._copies.refusals.note(tenant, "tier_limit")
            raise TierFull(
                f"{nbytes} bytes more would pass the tenant's limit in the {self._copies.tiers[rank].name} tier: "
                "it is lower, or what it has there is leased or pinned"
            )

    def _evict_own(self, rank: int, tenant: str, nbytes: int) -> bool:
        """Evict so many bytes of a tenant from a tier; False, with nothing evicted, when not so many may go."""
        victims = []
        if nbytes > 0:
            for entry in self._residents(rank).victims_of(tenant, partial(self._may_leave, rank)):
                victims.append(entry)
                nbytes -= whole_pages(entry.record.nbytes) if rank == MEMORY else entry.record.nbytes
                if nbytes <= 0:
                    break
            else:
                return False
        for entry in victims:
            self._evict(entry, rank)
        return True

    def _evict_from_memory(self, owner: str, nbytes: int) -> bool:
        """Evict from memory at least as much as is missing; False when nothing may go."""
        if nbytes > self._copies.memory.limit():
            return False
        tenant, memory = tenant_of(owner), self._copies.memory
        shortage = max(1, nbytes - memory.room(owner))
        in_flight_nbytes = max(0, memory.used_by(tenant) - self._copies.residents[MEMORY].usage(tenant)[1])
        victims = self._take_victims(MEMORY, shortage, tenant, in_flight_nbytes + nbytes)
        for entry in victims:
            self._evict(entry, MEMORY)
        return bool(victims)

    def _take_victims(self, rank: int, shortage: int, tenant: str, asks_nbytes: int) -> list[Entry]:
        victims, may_go = [], partial(self._may_leave, rank)
        if shortage > 0:
            for entry in self._residents(rank).victims(may_go, tenant, asks_nbytes):
                victims.append(entry)
                shortage -= max(1, entry.record.nbytes)
                if shortage <= 0:
                    break
        return victims

    def _unwritten(self, entry: Entry, rank: int) -> list[int]:
        """The lower tiers that should have got what leaves a tier, and have not."""
        spills = self._spills[rank]
        return [each for each in self._copies.lower_ranks if entry.waiting >> each & 1 or each in spills]

    def _evict(self, entry: Entry, rank: int) -> None:
        name = self._copies.tiers[rank].name
        self._metrics.evicted.labels(name).inc()
        unwritten = [] if self._is_elsewhere(entry, rank) else self._unwritten(entry, rank)
        for below in unwritten:
            self._metrics.stranded.labels(self._copies.tiers[below].name, "evicted").inc()
        from_memory = rank == MEMORY and self._copies.lower_ranks  # which could have had it, and did not take it
        self._copies.drop_copy(entry, rank)
        self._copies.lose_if_bare(entry, Fate.NOT_WRITTEN_BACK if unwritten or from_memory else Fate.EVICTED, rank)
