"""Discovery: objects that other gateways, or this one in an earlier life, have put into a shared tier.

The index knows of them only once they have been asked for: where it has nothing under a key, the shared tiers are
looked up, the fastest first, and what one of them holds becomes an entry like any other. A tier that cannot be asked
counts as one that has nothing, so that a miss stays cheap.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.config import Seconds, option
from kvgate.errors import ConfigError, NoSuchBucket, QuotaExceeded, TierError
from kvgate.metrics import Metrics
from kvgate.store.copies import Copies
from kvgate.store.index import Entry, Index
from kvgate.store.spaces import parse_any_key
from kvgate.tiers.base import HERE, Name, Record, SharedTier

_FIRST_CHUNKS = 8
_MOST_CHUNKS = 256
"""How many chunks of a prompt are looked up at once: few at first, since most prompts end in something new."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How shared tiers are asked for objects that this gateway does not know."""

    absent_ttl: Seconds = option(
        default=Seconds(1.0),
        help="how long what no shared tier had is not looked up again; so long may it take until what another "
        "gateway has written is seen here",
    )
    absent: int = option(default=65_536, help="how many such objects are remembered")

    def __post_init__(self) -> None:
        if not 0 <= self.absent <= 100_000_000:
            raise ConfigError(f"absent: expected 0 to 100000000, got {self.absent}")


class Discovery:
    """Looks objects up in the shared tiers. All methods run on the event loop."""

    def __init__(
        self,
        copies: Copies,
        index: Index,
        config: DiscoveryConfig,
        take_quota: Callable[[Record], None],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """take_quota: counts an object for its tenant; raises QuotaExceeded"""
        self._copies = copies
        self._index = index
        self._config = config
        self._take_quota = take_quota
        self._metrics = metrics
        self._clock = clock
        self._absent: OrderedDict[Name, float] = OrderedDict()  # until when
        self._running: dict[Name, asyncio.Task[Exception | None]] = {}

    def may_find(self, tenant: str, bucket: str, key: str) -> bool:
        """Whether `find` would ask. Cheap where there is no shared tier, and for what the index holds."""
        if not self._copies.shared_ranks:
            return False
        try:
            if key in self._index.objects(tenant, bucket):  # where its end has come, it is still to be removed
                return False
        except NoSuchBucket:
            return False
        name = Name(tenant, bucket, key)
        until = self._absent.get(name)
        if self._copies.is_undeleted(name):
            return False
        if until is not None and self._clock() < until:
            return False
        return self._copies.keys.is_shared(bucket, key)

    async def find(self, names: Iterable[Name]) -> None:
        """Afterwards the index holds those of `names` that a shared tier has. Each is asked for once at a time."""
        wanted = [name for name in dict.fromkeys(names) if name in self._running or self.may_find(*name)]
        new = [name for name in wanted if name not in self._running]
        if new:
            task = self._copies.spawn(self._ask(new))
            for name in new:
                self._running[name] = task

            def ended(_: object) -> None:
                for name in new:
                    del self._running[name]

            task.add_done_callback(ended)
        tasks = {self._running[name] for name in wanted if name in self._running}
        if tasks:
            await asyncio.wait(tasks)

    async def find_leading(self, tenant: str, bucket: str, space: str, hashes: bytes) -> None:
        """Afterwards the index holds the longest prefix of `hashes` that is anywhere. Raises NoSuchBucket.

        As with `match`: 32 bytes each, one after the other
        """
        asked, step = len(hashes) // HASH_NBYTES, _FIRST_CHUNKS
        known = len(self._index.leading_chunks(tenant, bucket, space, hashes))
        while known < asked and self._copies.shared_ranks:
            upto = min(known + step, asked)
            run = [hashes[at * HASH_NBYTES : (at + 1) * HASH_NBYTES].hex() for at in range(known, upto)]
            await self.find([Name(tenant, bucket, str(ChunkKey(space, each))) for each in run])
            known = len(self._index.leading_chunks(tenant, bucket, space, hashes))
            if known < upto:
                return
            step = min(step * 2, _MOST_CHUNKS)

    async def _ask(self, names: Sequence[Name]) -> None:
        left, sure = list(names), True
        for rank in self._copies.shared_ranks:
            tier: SharedTier = self._copies.tiers[rank]  # type: ignore[assignment]
            await self._copies.gone(rank, left)
            lookups = self._metrics.lookups.labels
            try:
                found = await tier.lookup(left)
            except TierError:
                lookups(tier.name, "failed").inc(len(left))
                sure = False
                continue
            records = [record for record in found if record is not None]
            lookups(tier.name, "hit").inc(len(records))
            lookups(tier.name, "miss").inc(len(left) - len(records))
            for record in records:
                self._adopt(record, rank)
            left = [name for name, record in zip(left, found, strict=True) if record is None]
            if not left:
                return
        if sure:
            self._note_absent(left)

    def _adopt(self, record: Record, rank: int) -> None:
        """Make what a shared tier holds visible here."""
        try:
            entry = self._index.objects(record.tenant, record.bucket).get(record.key)
        except NoSuchBucket:
            return
        if entry is not None:  # which has come meanwhile
            if entry.record.same_body(record) and not entry.has_copy(rank):
                self._copies.add_copy(entry, rank, HERE)
            return
        try:
            self._take_quota(record)
        except QuotaExceeded:
            return
        entry = Entry(record, (None,) * len(self._copies.tiers))
        entry.pinned = isinstance(parse_any_key(record.key), ManifestKey)
        self._index.put(entry)
        self._copies.add_copy(entry, rank, HERE)
        self._metrics.discovered.labels(self._copies.tiers[rank].name).inc()

    def _note_absent(self, names: Sequence[Name]) -> None:
        until = self._clock() + self._config.absent_ttl
        for name in names:
            self._absent[name] = until
            self._absent.move_to_end(name)
        while len(self._absent) > self._config.absent:
            self._absent.popitem(last=False)
