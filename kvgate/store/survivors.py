"""What the tiers still hold when a gateway starts, gathered and made visible at once.

A million objects go through here one by one, so the loops are plain and nothing is looked up twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kvgate.store.cold import AGE_CLASS_BITS, Cold
from kvgate.store.index import Bucket, Entry, Index, around
from kvgate.store.quota import Quota
from kvgate.store.residents import Residents
from kvgate.store.retention import TTL
from kvgate.tiers.base import NO_ATTRIBUTES, Copy, Record


class Survivors:
    """Entries by bucket, as the tiers report their copies, the fastest tier first.

    timed: those whose PUT said when they end
    """

    def __init__(self, tiers: int) -> None:
        self._tiers = tiers
        self.timed: list[Entry] = []
        self._entries: dict[tuple[str, str], dict[str, Entry]] = {}
        self._cold: defaultdict[tuple[int, str], Cold] = defaultdict(Cold)

    def add(self, rank: int, batch: Iterable[tuple[Record, Copy]]) -> None:
        """Note copies in the tier of this rank. Where two tiers hold different versions, the faster tier's counts."""
        only = around(rank, self._tiers)
        tenant = bucket = None
        for record, copy in batch:
            if record.bucket is not bucket or record.tenant is not tenant:
                tenant, bucket = record.tenant, record.bucket
                entries = self._entries.setdefault((tenant, bucket), {})
                classes = self._cold[rank, tenant].classes
            key = record.key
            entry = entries.get(key)
            if entry is None:
                entry = entries[key] = Entry(record, copy, only)
                entry.current = True
                if key.endswith("/manifest.json"):
                    entry.pinned = key.startswith("kv/")
                if record.attributes is not NO_ATTRIBUTES and TTL in record.attributes:
                    self.timed.append(entry)
            elif entry.record.same_body(record):
                entry.set_copy(rank, copy)
            else:
                continue
            classes[record.mtime_ms >> AGE_CLASS_BITS].append(entry)

    def install(self, index: Index, quota: Quota, residents: tuple[Residents, ...]) -> None:
        """Make everything visible."""
        for (tenant, bucket), entries in self._entries.items():
            index.add_bucket(tenant, Bucket(bucket, min(entry.record.mtime_ms for entry in entries.values())))
            index.load(tenant, bucket, entries)
            quota.add(tenant, sum(entry.record.nbytes for entry in entries.values()))
        for (rank, tenant), cold in self._cold.items():
            sizes = [entry.record.nbytes for entries in cold.classes.values() for entry in entries]
            residents[rank].load(tenant, cold, len(sizes), sum(sizes))
