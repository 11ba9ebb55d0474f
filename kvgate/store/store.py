"""The store: buckets and objects of every tenant, over memory and the tiers below it.

Lookup, quota, eviction and placement are decided synchronously on the event loop; the I/O that follows a decision never
holds up another request. A name means something only together with its tenant: nothing here can be reached from one
tenant's credential that belongs to another's.

`Store.buckets` holds the buckets, `Store.multipart` what is uploaded in parts, and `Store.chunk_writes` the chunks that
come in slices. `Store.explain` says where an object is, or why it is not here, `Store.local` is what other gateways may
read, and `Store.published` what a native data plane answers for by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from kvgate import plugins
from kvgate.auth.tenants import Tenant
from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import RESERVED_PREFIX, ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.errors import InvalidManifest, NoSuchBucket, NoSuchKey, QuotaExceeded, TierAway, UnknownSpace
from kvgate.memory import heap
from kvgate.memory.segment import huge_pages
from kvgate.messages import views
from kvgate.metrics import Metrics
from kvgate.store import job_runner, keeper
from kvgate.store.batch_read import BatchRead
from kvgate.store.buckets import Buckets
from kvgate.store.catalog import Catalog
from kvgate.store.chains import Chains
from kvgate.store.chunk_writes import ChunkWrites
from kvgate.store.config import StoreConfig
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.discovery import Discovery
from kvgate.store.durable import DurableFile
from kvgate.store.expiry import Expiry
from kvgate.store.explain import Explain
from kvgate.store.foreign import ForeignClients
from kvgate.store.ghosts import Fate, Ghosts
from kvgate.store.index import Entry, Index, Listing, lowest
from kvgate.store.job_runner import JobRunner
from kvgate.store.keeper import Keeper
from kvgate.store.known import Known
from kvgate.store.leases import LeaseTable
from kvgate.store.loan import Loan
from kvgate.store.local import Local
from kvgate.store.multipart import Multipart
from kvgate.store.placement import Placement
from kvgate.store.published import Published
from kvgate.store.quota import Quota
from kvgate.store.rates import Rates
from kvgate.store.read import Read
from kvgate.store.recorder import Recorder
from kvgate.store.retention import Retention
from kvgate.store.scrub import Scrubber
from kvgate.store.slice_body import ChunkSlice
from kvgate.store.spaces import Spaces, parse_any_key
from kvgate.store.survivors import Survivors
from kvgate.store.values import Match, Prefetched, TenantStats
from kvgate.store.write import Precondition, Write
from kvgate.tiers.base import Exporting, Name, Record, Tier
from kvgate.tiers.host import HostTier
from kvgate.tiers.rules import TierRules

logger = logging.getLogger(__name__)

_EXPIRE_EVERY_S = 1.0
_PREFETCH_STEP = 2048
_TTL_RULE = "kvgate-ttl"


class Store:
    """See the module. Made by `open_store`, which also runs what works in the background."""

    def __init__(
        self,
        memory: HostTier,
        lower: Sequence[Tier],
        *,
        config: StoreConfig,
        metrics: Metrics,
        catalog: Catalog,
        scrub_state: Path | None = None,
        owners: Path | None = None,
        known: Path | None = None,
        rules: Mapping[str, TierRules] = MappingProxyType({}),
        jobs: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        owners, jobs: the files of what owners ask to be remembered, and of their jobs; without one, until the end
        known:        the folder where it is kept what shared tiers hold; without one it is forgotten at the end
        rules:        by the name of the tier; the default ones for those that are not named
        """
        self._config = config
        self._metrics = metrics
        self._retention = Retention(
            config.retention,
            now_ms=lambda: time.time_ns() // 1_000_000,
            capacity=self._largest_capacity,
        )
        self._index = Index(self._retention)
        self._quota = Quota()
        self._spaces = Spaces()
        policy = plugins.load("kvgate.eviction", config.eviction)
        if config.ack == "disk":
            rules = _written_through(lower, rules)
        copies = Copies(memory, lower, self._index, self._quota, policy, metrics, Ghosts(config.ghosts), rules)
        if known is not None:
            for rank in copies.shared_ranks:
                if not copies.tiers[rank].read_only:
                    copies.known[rank] = Known(known / f"known-{copies.tiers[rank].name}.sqlite3", copies.spawn)
        self._retention.repin = copies.repin
        self._placement = Placement(copies, metrics, config)
        self._refusals = copies.refusals
        self.rates = Rates(self._refusals, clock)
        self._tenants: dict[str, Tenant] = {}
        self._discovery = Discovery(copies, self._index, config.discovery, self._take_found, metrics, clock)
        self._foreign = ForeignClients(self._placement, self._index, config.prefetch, metrics)
        self._leases = LeaseTable(config.max_leases, clock, copies.lease_all, self._end_lease)
        self._chains = Chains(self._index, copies.arrange, clock)
        self._matched: dict[str, tuple[int, int]] = {}
        self.recorder = Recorder(clock)
        self.published = Published(
            config.published,
            index=self._index,
            retention=self._retention,
            copies=copies,
            demotion=self._placement.demotion,
            prefetch=self._foreign.prefetch,
            rates=self.rates,
            recorder=self.recorder,
            distrust=lambda entry: copies.spawn(copies.verify_in_memory(entry)),
        )
        self._placement.room.note_uses = self.published.note_uses
        self._placement.room.is_read = self.published.is_read
        self.multipart = Multipart(
            placement=self._placement,
            index=self._index,
            quota=self._quota,
            metrics=metrics,
            config=config,
            open_write=self._open_write,
            quota_for=self._quota_for,
            find_space=self._space,
        )
        self.chunk_writes = ChunkWrites(
            index=self._index,
            copies=copies,
            metrics=metrics,
            config=config,
            clock=clock,
            find_space=self._space,
            open_write=self._open_slot,
        )
        self._expiry = Expiry(
            index=self._index,
            copies=copies,
            multipart=self.multipart,
            remove=self._expire,
            metrics=metrics,
            config=config,
            clock=time.time,
        )
        self.scrubber = Scrubber(
            index=self._index, placement=self._placement, config=config.scrub, metrics=metrics, state=scrub_state
        )
        self.local = Local(self._placement, self._index, metrics, config)
        self.explain = Explain(self._index, copies, self._space, self.expiry, config.eviction)
        self.keeper = Keeper(
            index=self._index,
            retention=self._retention,
            copies=copies,
            file=DurableFile(owners, keeper.SCHEMA),
            remove=self._expire,
            metrics=metrics,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
        self.buckets = Buckets(self._index, catalog, self.multipart, self.keeper)
        self.jobs = JobRunner(
            index=self._index,
            copies=copies,
            keeper=self.keeper,
            retention=self._retention,
            bring=self._placement.mover.bring,
            recoder=self._placement.recoder,
            delete=self.delete,
            find=self.find,
            file=DurableFile(jobs, job_runner.SCHEMA),
            config=config.jobs,
            metrics=metrics,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )

    # --- objects ------------------------------------------------------------------------------------------------------

    def stat(self, tenant: str, bucket: str, key: str) -> Record:
        """What is known of an object. Raises NoSuchBucket, NoSuchKey."""
        return self._entry(tenant, bucket, key).record

    def may_find(self, tenant: str, bucket: str, key: str) -> bool:
        """Whether an object that is not known here may lie in a shared tier, so that `find` is worth its wait."""
        return self._discovery.may_find(tenant, bucket, key)

    async def find(self, tenant: str, bucket: str, *keys: str) -> None:
        """Look in the shared tiers for what is not known here; `stat` and the others see what was found.

        Raises nothing: a tier that cannot be asked has nothing.
        """
        await self._discovery.find(Name(tenant, bucket, key) for key in keys)

    def head(self, tenant: str, bucket: str, key: str, caller: str | None) -> Record:
        """As `stat`, for a client: those of other KV systems announce their reads so.

        caller: the tenant who asks, from whose requests alone is learnt what to prefetch; None for nobody
        """
        if caller is not None:
            self._foreign.note_head(caller, tenant, bucket, key)
        return self.stat(tenant, bucket, key)

    def list(
        self, tenant: str, bucket: str, *, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> Listing:
        """One page of keys and rolled-up prefixes. Raises NoSuchBucket."""
        return self._index.list(tenant, bucket, prefix, delimiter, after, limit)

    def open_read(self, tenant: str, bucket: str, key: str, caller: str | None = None) -> Read:
        """A lease on an object, to be closed. Raises NoSuchBucket, NoSuchKey.

        caller: as with `head`
        """
        foreign = caller is not None and self._foreign.note_get(caller, tenant, bucket, key)
        entry = self._entry(tenant, bucket, key)
        if not foreign:
            self._foreign.prefetch.note_read(entry)
        if self.recorder.listening:
            self.recorder.note_get(tenant, bucket, key)
        copies = self._placement.copies
        copies.touch(entry)
        if copies.selective:
            self._placement.demotion.offer([entry])
        return Read(self._placement, entry, self._metrics, self._config, whole=foreign)

    def lend(self, tenant: str, bucket: str, key: str, tier: Exporting | None = None) -> Loan | None:
        """An object where it lies in a tier; None when it is not there now. Raises NoSuchBucket, NoSuchKey.

        tier: on the engine's GPU; None for memory
        The caller counts it among the reads, and says so to the eviction policy with `touch`.
        """
        entry = self._entry(tenant, bucket, key)
        copies = self._placement.copies
        copy = entry.copies[MEMORY if tier is None else copies.tiers.index(tier)]
        if copy is None:
            return None
        self._foreign.prefetch.note_read(entry)
        lease, blocks = (copy.lease.share(), copy.blocks) if tier is None else tier.lend(copy)
        return Loan(copies, entry, lease, blocks)

    async def verify(self, tenant: str, bucket: str, key: str, tier: Exporting) -> None:
        """Read what an object has in a tier, if anything: it is dropped where it is bad.

        Raises NoSuchBucket, NoSuchKey, also when that was the last copy, Overloaded, and TierError.
        """
        entry = self._entry(tenant, bucket, key)
        rank = self._placement.copies.tiers.index(tier)
        if not entry.has_copy(rank):
            return
        with Read(self._placement, entry, self._metrics, self._config, ranks=(rank,)) as read:
            body = await read.load(0, entry.record.nbytes)
            try:
                await body.verify()
            finally:
                body.close()

    def exporting(self, device_uuid: bytes) -> Exporting | None:
        """The tier on this GPU; the first of several."""
        tiers = (tier for tier in self._placement.copies.tiers if isinstance(tier, Exporting))
        return next((tier for tier in tiers if tier.device_uuid == device_uuid), None)

    async def bring_to_memory(self, tenant: str, bucket: str, key: str) -> None:
        """Copy an object to memory from where it is, if it has room. Raises NoSuchBucket, NoSuchKey, TierError."""
        if self.may_find(tenant, bucket, key):
            await self.find(tenant, bucket, key)
        entry = self._entry(tenant, bucket, key)
        with Read(self._placement, entry, self._metrics, self._config):
            for rank in self._placement.copies.lower_ranks:
                if entry.has_copy(rank) and not entry.has_copy(MEMORY):
                    await self._placement.promotion.promote(entry, rank)

    async def open_write(
        self,
        tenant: Tenant,
        bucket: str,
        key: str,
        nbytes: int | None,
        *,
        owner: str | None = None,
        whole: bool = False,
    ) -> Write:
        """An upload of `nbytes` bytes, or of a length not known yet.

        owner: of the memory, where another process is to fill it; then it is in memory as a whole, or refused
        whole: the same for this process
        Raises NoSuchBucket, InvalidKey, UnknownSpace, QuotaExceeded, ObjectTooLarge, StoreFull, Overloaded, of which
        one is RateLimited.
        """
        self._index.bucket(tenant.name, bucket)
        kind = parse_any_key(key)
        take_quota = self._quota_for(tenant, evict=isinstance(kind, ChunkKey))
        return await self._open_write(tenant, bucket, key, kind, nbytes, take_quota, owner=owner, whole=whole)

    def takes_plain_puts(self, tenant: str, bucket: str) -> bool:
        """Whether a bucket has no settings, and its owner no rate of requests or of bytes written.

        Raises NoSuchBucket.
        """
        return tenant not in self.rates.uploads_limited and not self._index.bucket(tenant, bucket).settings

    def has_quota(self, tenant: Tenant, nbytes: int) -> bool:
        """Whether `nbytes` more are within a tenant's quota, as things are."""
        return not self._quota.excess(tenant.name, tenant.quota_nbytes, nbytes)

    async def set_attributes(
        self, tenant: Tenant, bucket: str, key: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> Record:
        """Give an object other attributes, its body and its time as they were; what `change` makes of the present ones.

        The body is written anew, so that every tier keeps objects that describe themselves. The tenant's quota is not
        asked for the moment in which there are two.

        Raises NoSuchBucket, NoSuchKey, ObjectChanged, StoreFull, TierError.
        """
        if self.may_find(tenant.name, bucket, key):
            await self.find(tenant.name, bucket, key)
        entry = self._entry(tenant.name, bucket, key)
        record = entry.record
        count = partial(self._quota.add, tenant.name)
        with Read(self._placement, entry, self._metrics, self._config) as read:
            body = await read.load(0, record.nbytes)
            try:
                write = await self._open_write(tenant, bucket, key, parse_any_key(key), record.nbytes, count)
            except BaseException:
                body.close()
                raise
            async with write:
                await write.append(body, record.crc64nvme)
                return await write.commit(change(record.attributes), restated=record)

    async def delete(self, tenant: str, bucket: str, key: str, precondition: Precondition | None = None) -> bool:
        """Delete an object, so that it is gone after a restart too; False when it was not there.

        Raises NoSuchBucket, PreconditionFailed, TierError. One that could not be deleted from a shared tier is gone for
        this gateway, which goes on trying; until it is gone there, this raises TierAway.
        """
        if self.may_find(tenant, bucket, key):
            await self.find(tenant, bucket, key)
        entry = self._index.get(tenant, bucket, key)
        if precondition is not None:
            precondition(entry.record if entry is not None else None)
        if entry is None:
            if self._placement.copies.is_undeleted(Name(tenant, bucket, key)):
                raise TierAway("the object is still to be deleted from a tier that is away")
            return False
        self._remove(entry)
        self._placement.copies.ghosts.note(entry.record, Fate.DELETED)
        await self._placement.copies.delete(entry)
        await self.keeper.forget(entry)
        return True

    def watches_ends(self, record: Record) -> bool:
        """Whether anything in the bucket of an object may end by a lifetime; if not, `expiry` is the lifecycle's."""
        return self._retention.watches(record.tenant, record.bucket)

    def expiry(self, record: Record) -> tuple[int, str] | None:
        """When an object ends, in ms since the epoch, and by which rule; None for never. Raises NoSuchBucket.

        The rule is one of its lifecycle, or _TTL_RULE. While it has a hard pin it does not end.
        """
        first = self._expiry.first_of(record)
        if first is None and not self.watches_ends(record):
            return None
        ends = [first]
        entry = self._index.get(*record[:3])
        if entry is not None and (moment_ms := self._retention.ends_ms(entry)) is not None:
            ends.append((moment_ms, _TTL_RULE))
        moments = [end for end in ends if end is not None]
        if not moments or entry is None or not entry.pinned:
            return min(moments, default=None, key=lambda end: end[0])
        moment_ms, rule = min(moments, key=lambda end: end[0])
        pin_ends_ms = self._retention.pin_ends_ms(entry)
        return None if pin_ends_ms == math.inf else (max(moment_ms, int(pin_ends_ms)), rule)

    # --- chunks -------------------------------------------------------------------------------------------------------

    def match(self, tenant: str, bucket: str, space: str, hashes: bytes, lease_s: float) -> Match:
        """The longest prefix of `hashes` that is present, leased. Raises NoSuchBucket, Overloaded.

        space:   64 hex digits; one that is not known matches nothing
        hashes:  32 bytes each, one after the other
        lease_s: bounded by `store.max_lease`
        """
        self._index.bucket(tenant, bucket)
        entries = self._index.leading_chunks(tenant, bucket, space, hashes)
        asked, found = len(hashes) // HASH_NBYTES, len(entries)
        asked_before, found_before = self._matched.get(tenant, (0, 0))
        self._matched[tenant] = (asked_before + asked, found_before + found)
        self._metrics.match_chunks.labels("hit").inc(found)
        self._metrics.match_chunks.labels("miss").inc(asked - found)
        if found < asked:
            self._chains.expect(tenant, bucket, space, hashes)
        if self.recorder.listening:
            self._record_match(tenant, bucket, space, hashes, found)
        copies = self._placement.copies
        tiers = tuple(tier.name for tier in copies.tiers)
        if not entries:
            return Match(tiers, [], [], "", 0.0)
        lease_s = min(lease_s, self._config.max_lease)
        lease = self._leases.grant(tenant, entries, lease_s)
        copies.touch_all(tenant, entries)
        if copies.selective:
            self._placement.demotion.offer(entries)
        if self._config.prefetch.after_match:
            self._foreign.prefetch.want(tenant, entries[: self._config.prefetch.after_match])
        held = [entry.ranks for entry in entries]
        fastest = {ranks: lowest(ranks) if ranks else MEMORY for ranks in set(held)}
        nbytes = [entry.record.nbytes for entry in entries]
        return Match(tiers, [fastest[ranks] for ranks in held], nbytes, lease, lease_s)

    def _record_match(self, tenant: str, bucket: str, space: str, hashes: bytes, found: int) -> None:
        manifest = self._index.get(tenant, bucket, str(ManifestKey(space)))
        known = self._spaces.get(manifest) if manifest is not None else None
        self.recorder.note_match(tenant, bucket, space, hashes, found, known.chunk_tokens if known is not None else 0)

    def _note_put(self, record: Record) -> None:
        if self.recorder.listening and not record.bucket.startswith(RESERVED_PREFIX):
            self.recorder.note_put(record.tenant, record.bucket, record.key, record.nbytes)
        self._foreign.note_put(record)

    async def match_anywhere(self, tenant: str, bucket: str, space: str, hashes: bytes, lease_s: float) -> Match:
        """As `match`, with what only shared tiers know of. Raises the same."""
        await self._discovery.find_leading(tenant, bucket, space, hashes)
        return self.match(tenant, bucket, space, hashes, lease_s)

    @property
    def has_shared_tiers(self) -> bool:
        """Whether there may be more than the index knows of."""
        return bool(self._placement.copies.shared_ranks)

    async def prefetch(self, tenant: str, bucket: str, space: str, hashes: Sequence[bytes]) -> Prefetched:
        """Have chunks brought to memory that lie in lower tiers, in order, as far as there is room; waits for none.

        Those of an unknown bucket or space are nowhere.
        """
        keys = [str(ChunkKey(space, chunk_hash.hex())) for chunk_hash in hashes]
        await self.find(tenant, bucket, *keys)
        entries: list[Entry | None] = []
        for start in range(0, len(keys), _PREFETCH_STEP):
            with contextlib.suppress(NoSuchBucket):
                entries += [self._index.get(tenant, bucket, key) for key in keys[start : start + _PREFETCH_STEP]]
            await asyncio.sleep(0)
        entries += [None] * (len(keys) - len(entries))
        wanted = self._foreign.prefetch.want(tenant, [entry for entry in entries if entry is not None])
        tiers = tuple(tier.name for tier in self._placement.copies.tiers)
        return Prefetched(tiers, [None if entry is None else entry.fastest() for entry in entries], wanted)

    async def space(self, tenant: str, bucket: str, space: str) -> Space:
        """The space of a manifest that is stored in the bucket. Raises NoSuchBucket, UnknownSpace, TierError."""
        return await self._space(tenant, bucket, space)

    async def read_chunks(
        self,
        tenant: str,
        bucket: str,
        space: str,
        hashes: Sequence[bytes],
        select: Callable[[Space], ChunkSlice] | None,
        deadline_s: float | None,
    ) -> BatchRead:
        """Many chunks, or the slice of each that `select` picks; those of an unknown bucket or space are missing.

        Raises what `select` raises, RateLimited, and TierError when the manifest cannot be read.
        """
        part, known = None, True
        if select is not None:
            try:
                part = select(await self._space(tenant, bucket, space))
            except (NoSuchBucket, UnknownSpace):
                known = False
        self.rates.read.take(tenant, 0)

        def open_read(key: str) -> Read:
            if not known:
                raise NoSuchKey("there is no such space")
            read = self.open_read(tenant, bucket, key)
            self.rates.read.owe(tenant, read.record.nbytes if part is None else part.nbytes)
            return read

        keys = [str(ChunkKey(space, chunk_hash.hex())) for chunk_hash in hashes]
        if known and self.has_shared_tiers:
            await self.find(tenant, bucket, *keys)
        return BatchRead(
            keys,
            part,
            open_read=open_read,
            spawn=self._placement.copies.spawn,
            metrics=self._metrics,
            ahead=self._config.read_ahead,
            deadline_s=deadline_s,
        )

    def release(self, tenant: str, lease: str) -> None:
        """End a lease before its deadline. Raises NoSuchLease, also when it is another tenant's."""
        self._leases.release(tenant, lease)

    def stats(self, tenant: Tenant) -> TenantStats:
        """The tenant's own numbers."""
        self._leases.expire()
        copies = self._placement.copies
        asked, found = self._matched.get(tenant.name, (0, 0))
        return TenantStats(
            objects=sum(
                len(self._index.objects(tenant.name, bucket.name)) for bucket in self.buckets.list(tenant.name)
            ),
            nbytes=self._quota.used(tenant.name),
            quota_nbytes=tenant.quota_nbytes,
            tiers={tier.name: copies.usage(rank, tenant.name) for rank, tier in enumerate(copies.tiers)},
            leases=self._leases.count(tenant.name),
            match_chunks_asked=asked,
            match_chunks_found=found,
            rates=self.rates.of(tenant.name),
            refused=self._refusals.of(tenant.name),
        )

    # --- the gateway's own --------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Wait until every object that a lower tier is to get has its copy there; for shared ones, `stop_timeout`."""
        await self._placement.demotion.flush(self._config.stop_timeout)

    def collect(self) -> None:
        """Bring the gauges of the metrics up to date."""
        placement, metrics = self._placement, self._metrics
        self.published.note_uses()
        metrics.published_objects.set(len(self.published))
        for rank, (tier, residents) in enumerate(zip(placement.copies.tiers, placement.copies.residents, strict=True)):
            usage = tier.usage()
            metrics.tier_used_bytes.labels(tier.name).set(usage.nbytes)
            capacity_nbytes = math.inf if usage.capacity_nbytes is None else usage.capacity_nbytes
            metrics.tier_capacity_bytes.labels(tier.name).set(capacity_nbytes)
            metrics.tier_objects.labels(tier.name).set(residents.total())
            metrics.demotion_queue.labels(tier.name).set(placement.demotion.waiting(rank))
        metrics.ready_bytes.set(placement.copies.memory.arena.ready_nbytes)
        metrics.huge_pages.set(huge_pages())
        metrics.leases.set(self._leases.count())
        self.jobs.collect()
        metrics.pinned_bytes.set(self._retention.pinned_nbytes)
        self.chunk_writes.collect()
        self.scrubber.collect()
        self._foreign.collect()

    async def load(self, tenants: Iterable[Tenant]) -> None:
        """Open the tiers and find what survived; make the buckets of the configuration."""
        began = time.monotonic()
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self.buckets.load(self._tenants.values())
        self.rates.load(self._tenants.values())
        self._retention.set_quotas({name: tenant.quota_nbytes for name, tenant in self._tenants.items()})
        gc.disable()  # nothing of what is made here is garbage, and to look for it takes half the time
        try:
            survivors = Survivors(len(self._placement.copies.tiers))
            for rank, tier in enumerate(self._placement.copies.tiers):
                await tier.start(partial(survivors.add, rank))
                if rank in self._placement.copies.known:
                    await self._placement.copies.known[rank].load(partial(survivors.add, rank))
                shares = self._placement.copies.residents[rank].shares
                shares.load(tier.name, tier.usage().capacity_nbytes, self._tenants.values())
            survivors.install(self._index, self._quota, self._placement.copies.residents)
            self.multipart.load()
            self._placement.copies.ghosts.begin()
            self.keeper.load(survivors.timed)
            for stale in survivors.stale:
                self._placement.copies.delete_stale(*stale)
            await self.jobs.load()
            del survivors
        finally:
            gc.freeze()  # nor need it be looked at later
            gc.enable()
        heap.trim()
        if self._placement.copies.known:
            self._placement.copies.spawn(self._placement.demotion.resume(self._index.entries()))
        await self.scrubber.load()
        logger.info("store: open after %.2f s", time.monotonic() - began)

    def run(self, tasks: asyncio.TaskGroup) -> None:
        """Start what works in the background; it runs until `stop`."""
        self._placement.copies.start(tasks)
        self._workers = self._placement.demotion.start(tasks)
        self._workers.append(tasks.create_task(self._expire_forever()))
        self._workers.append(tasks.create_task(self._expiry.run()))
        self._workers.append(tasks.create_task(self.keeper.run()))
        self._workers.append(self.jobs.begin(tasks))

    def begin_scrub(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to verify, in the background, what the tiers hold; until `stop`."""
        self._workers.append(tasks.create_task(self.scrubber.run()))

    async def stop(self) -> None:
        """Write what is only in memory to the lower tiers, end the background work and close the tiers."""
        await self.jobs.stop()
        self._foreign.stop()
        self.chunk_writes.stop()
        await self._placement.demotion.stop(self._config.stop_timeout)
        for worker in self._workers:
            worker.cancel()
        await self._placement.copies.wait_for_background()
        for tier in self._placement.copies.tiers:
            await tier.close()
        for known in self._placement.copies.known.values():
            await asyncio.to_thread(known.close)
        self.buckets.close()
        self.keeper.close()

    async def _expire_forever(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self.published.note_uses()
            self._leases.expire()
            self._chains.arrange_written()
            self.chunk_writes.expire()
            self.multipart.expire()
            self._foreign.expire()

    async def _open_write(
        self,
        tenant: Tenant,
        bucket: str,
        key: str,
        kind: ChunkKey | ManifestKey | None,
        nbytes: int | None,
        take_quota: Callable[[int], None],
        *,
        pinned: bool = False,
        owner: str | None = None,
        whole: bool = False,
    ) -> Write:
        """An upload to a key that names `kind`; `take_quota` counts its bytes. Raises what `open_write` names."""
        try:
            space = await self._space(tenant.name, bucket, kind.space) if isinstance(kind, ChunkKey) else None
        except UnknownSpace as error:
            self._placement.copies.ghosts.note_refusal(Name(tenant.name, bucket, key), error)
            raise
        write = Write(
            tenant=tenant,
            bucket=bucket,
            key=key,
            kind=kind,
            space=space,
            nbytes=nbytes,
            placement=self._placement,
            index=self._index,
            quota=self._quota,
            spaces=self._spaces,
            config=self._config,
            take_quota=take_quota,
            on_visible=self._note_put,
            pinned=pinned,
            owner=owner,
        )
        await write.open(whole=whole)
        return write

    async def _open_slot(self, tenant: Tenant, bucket: str, key: ChunkKey, space: Space) -> Write:
        """An upload of a chunk whose slot can be filled in any order."""
        take_quota = self._quota_for(tenant, evict=True)
        nbytes = DATA_START + space.stored.nbytes
        return await self._open_write(tenant, bucket, str(key), key, nbytes, take_quota, whole=True)

    def _end_lease(self, entries: Sequence[Entry]) -> None:
        """Let go of what a client's lease kept. What has been read until now belongs to the use that it began with."""
        self.published.note_uses()
        self._placement.copies.unlease_all(entries)

    def _remove(self, entry: Entry) -> None:
        """Make an entry invisible."""
        self._index.remove(entry)
        self._quota.give_back(entry.record.tenant, entry.record.nbytes)

    def _expire(self, entry: Entry) -> None:
        """Make an entry invisible whose end has come, with what was said of its key."""
        self._remove(entry)
        self.keeper.forget_later(entry)

    def _largest_capacity(self) -> float:
        capacities = [tier.usage().capacity_nbytes for tier in self._placement.copies.tiers]
        return max((nbytes for nbytes in capacities if nbytes is not None), default=math.inf)

    def _entry(self, tenant: str, bucket: str, key: str) -> Entry:
        entry = self._index.get(tenant, bucket, key)
        if entry is None:
            raise NoSuchKey("there is no such object")
        return entry

    async def _space(self, tenant: str, bucket: str, space: str) -> Space:
        """The space of a manifest that is stored in the bucket. Raises UnknownSpace."""
        key = str(ManifestKey(space))
        if self.may_find(tenant, bucket, key):
            await self.find(tenant, bucket, key)
        entry = self._index.get(tenant, bucket, key)
        if entry is None:
            raise UnknownSpace(
                f"space {space[:8]} has no manifest in bucket {bucket!r}; first PUT it as kv/{space}/manifest.json"
            )
        known = self._spaces.get(entry)
        if known is not None:
            return known
        with Read(self._placement, entry, self._metrics, self._config) as read:
            try:
                body = await read.load(0, entry.record.nbytes)
            except NoSuchKey:
                raise UnknownSpace(f"the manifest of space {space[:8]} was lost; PUT it again") from None
            try:
                found = Space.from_canonical_json(b"".join([bytes(view) async for view in views(body)]))
            except InvalidManifest as error:
                raise UnknownSpace(f"the manifest of space {space[:8]} cannot be used: {error}") from error
            finally:
                body.close()
        self._spaces.put(entry, found)
        return found

    def _quota_for(self, tenant: Tenant, *, evict: bool) -> Callable[[int], None]:
        """What counts the bytes of one upload of a client. Raises RateLimited, QuotaExceeded.

        evict: whether it may take the place of the tenant's own least useful chunks
        """
        return self.rates.upload(tenant.name, partial(self._take_quota, tenant, evict=evict))

    def _take_found(self, record: Record) -> None:
        """Count an object that a shared tier has. What makes room for it is only forgotten where others may have it."""
        tenant = self._tenants.get(record.tenant)
        if tenant is None:
            raise QuotaExceeded("there is no such tenant here")
        self._take_quota(tenant, record.nbytes, evict=True, here_only=True)

    def _take_quota(self, tenant: Tenant, nbytes: int, *, evict: bool, here_only: bool = False) -> None:
        """Count `nbytes` more for a tenant. Raises QuotaExceeded."""
        copies, room = self._placement.copies, self._placement.room
        excess = self._quota.excess(tenant.name, tenant.quota_nbytes, nbytes)
        try:
            ranks = copies.lower_ranks if self._config.ack == "disk" else copies.all_ranks
            if not room.may_hold(ranks, tenant.name, nbytes):
                raise QuotaExceeded(
                    f"{nbytes} bytes are more than the tenant may have in any tier; send less, or have a limit raised"
                )
            if excess and evict and nbytes <= (tenant.quota_nbytes or 0):
                room.evict_objects(tenant.name, excess, _is_idle_chunk, here_only=here_only)
            self._quota.take(tenant.name, tenant.quota_nbytes, nbytes)
        except QuotaExceeded:
            self._refusals.note(tenant.name, "quota")
            raise


@contextlib.asynccontextmanager
async def open_store(
    memory: HostTier,
    lower: Sequence[Tier],
    tenants: Iterable[Tenant],
    *,
    config: StoreConfig,
    metrics: Metrics,
    catalog: Path | None,
    rules: Mapping[str, TierRules] = MappingProxyType({}),
) -> AsyncIterator[Store]:
    """A running store. Leaving the context writes what is only in memory to the lower tiers."""
    scrub_state = catalog.with_name("scrub.json") if catalog is not None else None
    owners = catalog.with_name("owners.sqlite3") if catalog is not None else None
    known = catalog.parent if catalog is not None else None
    store = Store(
        memory,
        lower,
        config=config,
        metrics=metrics,
        catalog=Catalog(catalog),
        known=known,
        scrub_state=scrub_state,
        owners=owners,
        rules=rules,
        jobs=catalog.with_name("jobs.sqlite3") if catalog is not None else None,
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            store.run(tasks)
            try:
                await store.load(tenants)
                store.begin_scrub(tasks)
                yield store
            finally:
                await store.stop()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:  # what one would see without the task group
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


def _is_idle_chunk(entry: Entry) -> bool:
    return entry.leases == 0 and not entry.pinned and entry.record.key.startswith("kv/")


def _written_through(lower: Sequence[Tier], rules: Mapping[str, TierRules]) -> Mapping[str, TierRules]:
    """The rules with the first private tier written through."""
    home = next((tier.name for tier in lower if not tier.shared), None)
    if home is None:
        return rules
    return {**rules, home: dataclasses.replace(rules.get(home, TierRules()), write="through")}
