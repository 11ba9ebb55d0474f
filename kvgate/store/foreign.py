"""Clients of other KV systems: their keys are understood, so that runs are recognised, prefetched and counted by model.

LMCache, vLLM and SGLang look chunks up with HEADs, in the order of the tokens, and read what they found afterwards. So
a HEAD that finds an object announces its GET, and those of what followed it before. A GET of a range announces GETs of
all the others.

What one tenant asks for is learnt from for that tenant only, also where it reads another's bucket: it is led to no key
that it has not named itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from kvgate.chunk.foreign.base import ForeignKey
from kvgate.metrics import Metrics
from kvgate.store.index import Entry, Index
from kvgate.store.placement import Placement
from kvgate.store.prefetch import Prefetch, PrefetchConfig
from kvgate.store.runs import Runs
from kvgate.tiers.base import Record

_OTHER = "other"
"""The model under which those beyond `prefetch.models` are counted."""


class ForeignClients:
    """Watches the requests of every tenant. Synchronous; a key that no parser knows costs two microseconds."""

    def __init__(
        self,
        placement: Placement,
        index: Index,
        config: PrefetchConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = placement.copies.keys
        self._index = index
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self.prefetch = Prefetch(placement, config, metrics, clock)
        self._runs: dict[str, Runs] = {}  # by the tenant whose requests they are
        self._models: set[tuple[str, str]] = set()  # systems and models with metrics of their own

    def note_head(self, caller: str, tenant: str, bucket: str, key: str) -> None:
        """Note that a client of the tenant `caller` asks whether an object is there. Raises NoSuchBucket."""
        foreign = self._keys.foreign(bucket, key)
        if foreign is None:
            return
        entry = self._index.get(tenant, bucket, key)
        self._count(foreign, "HEAD", hit=entry is not None)
        self._learn(caller, tenant, bucket, key, foreign)
        if entry is not None:
            self.prefetch.want(caller, [entry, *self._ahead(caller, entry, foreign)])

    def note_get(self, caller: str, tenant: str, bucket: str, key: str) -> bool:
        """Note that a client reads an object or a range of it; whether all of it will be read. Raises NoSuchBucket."""
        foreign = self._keys.foreign(bucket, key)
        if foreign is None:
            return False
        entry = self._index.get(tenant, bucket, key)
        self._count(foreign, "GET", hit=entry is not None)
        if entry is not None:
            self._learn(caller, tenant, bucket, key, foreign)
            self.prefetch.note_read(entry)
            self.prefetch.want(caller, self._ahead(caller, entry, foreign))
        return True

    def note_put(self, record: Record) -> None:
        """Note that an object of the tenant's own has become visible."""
        foreign = self._keys.foreign(record.bucket, record.key)
        if foreign is not None:
            self._learn(record.tenant, record.tenant, record.bucket, record.key, foreign)

    def expire(self) -> None:
        """Give up what was prefetched in vain. To be called about once a second."""
        self.prefetch.expire()

    def collect(self) -> None:
        """Bring the gauges of the metrics up to date."""
        self._metrics.prefetch_unread_bytes.set(self.prefetch.unread_nbytes)
        self._metrics.run_keys.set(sum(map(len, self._runs.values())))

    def stop(self) -> None:
        """Prefetch nothing more."""
        self.prefetch.stop()

    def _learn(self, caller: str, tenant: str, bucket: str, key: str, foreign: ForeignKey) -> None:
        runs = self._runs.get(caller)
        if runs is None:
            runs = self._runs[caller] = Runs(self._config.keys)
        runs.observe(_series(tenant, bucket, foreign), key, self._clock())

    def _ahead(self, caller: str, entry: Entry, foreign: ForeignKey) -> list[Entry]:
        """What a tenant will probably ask for after an entry, as far as it is there."""
        tenant, bucket, key = entry.record[:3]
        names = self._runs[caller].ahead(_series(tenant, bucket, foreign), key, self._config.ahead)
        entries = [self._index.get(tenant, bucket, name) for name in names]
        return [each for each in entries if each is not None]

    def _count(self, foreign: ForeignKey, method: str, *, hit: bool) -> None:
        kind = foreign.system, foreign.model
        if kind not in self._models:
            if len(self._models) < self._config.models:
                self._models.add(kind)
            else:
                kind = foreign.system, _OTHER
        self._metrics.model_requests.labels(*kind, method, "hit" if hit else "miss").inc()


def _series(tenant: str, bucket: str, foreign: ForeignKey) -> Hashable:
    return tenant, bucket, foreign.system, foreign.model, foreign.series
