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
    stale: copies of versions that were to be deleted when the gateway ended, with the ranks of their tiers; they still
           are, lest one come back once the version that replaced it is gone
    """

    def __init__(self, tiers: int) -> None:
        self._tiers = tiers
        self.timed: list[Entry] = []
        self.stale: list[tuple[int, Record, Copy]] = []
        self._replaced: list[tuple[int, Record]] = []  # those of them that had been taken for the last version
        self._entries: dict[tuple[str, str], dict[str, Entry]] = {}
        self._cold: defaultdict[tuple[int, str], Cold] = defaultdict(Cold)

    def add(self, rank: int, batch: Iterable[tuple[Record, Copy]]) -> None:
        """Note copies in the tier of this rank. Where two tiers hold different versions, the newer one counts.

        Of two that are equally new, that of the faster tier.
        """
        only = around(rank, self._tiers)
        tenant = bucket = None
        for record, copy in batch:
            if record.bucket is not bucket or record.tenant is not tenant:
                tenant, bucket = record.tenant, record.bucket
                entries = self._entries.setdefault((tenant, bucket), {})
                classes = self._cold[rank, tenant].classes
            key = record.key
            entry = entries.get(key)
            if entry is not None and entry.record.mtime_ms < record.mtime_ms and not entry.record.same_body(record):
                self._replace(entry)
                entry = None
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
                self.stale.append((rank, record, copy))
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
            gone = [record.nbytes for at, record in self._replaced if (at, record.tenant) == (rank, tenant)]
            residents[rank].load(tenant, cold, len(sizes) - len(gone), sum(sizes) - sum(gone))

    def _replace(self, entry: Entry) -> None:
        """Take an entry for an older version after all."""
        entry.current = False
        for rank, copy in enumerate(entry.copies):
            if copy is not None:
                entry.set_copy(rank, None)  # so that it is passed over among the cold ones
                self.stale.append((rank, entry.record, copy))
                self._replaced.append((rank, entry.record))
        if entry in self.timed:
            self.timed.remove(entry)
