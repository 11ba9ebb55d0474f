"""Expiry: what the lifecycle rules of its bucket make expire is deleted, and unfinished uploads likewise."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

from kvgate.errors import NoSuchBucket
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.copies import Copies
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry, Index
from kvgate.store.lifecycle import SETTING, Rule, due, first_expiry, loads, upload_due
from kvgate.store.multipart import Multipart
from kvgate.tiers.base import Record

logger = logging.getLogger(__name__)

_PAGE = 500
"""Objects looked at before others have their turn."""


class Expiry:
    """Goes through the buckets that have rules, again and again. All methods run on the event loop."""

    def __init__(
        self,
        *,
        index: Index,
        copies: Copies,
        multipart: Multipart,
        remove: Callable[[Entry], None],
        metrics: Metrics,
        config: StoreConfig,
        clock: Callable[[], float],
    ) -> None:
        """
        remove: makes an entry invisible, gives back its quota, and has what was said of its key forgotten
        clock:  gives seconds since the epoch
        """
        self._index, self._copies, self._multipart = index, copies, multipart
        self._remove, self._metrics, self._config, self._clock = remove, metrics, config, clock

    async def run(self) -> None:
        """Sweep every `lifecycle_interval`, until cancelled."""
        while True:
            await asyncio.sleep(self._config.lifecycle_interval)
            try:
                await self.sweep()
            except Exception:
                logger.exception("a sweep for expired objects failed")

    async def sweep(self) -> None:
        """Delete everything that has expired by now. What is pinned or leased stays until a sweep after that ends."""
        for (tenant, name), bucket in self._index.all_buckets().items():
            if document := bucket.settings.get(SETTING):
                try:
                    await self._sweep_bucket(tenant, name, _parsed(document))
                except NoSuchBucket:
                    continue  # deleted meanwhile

    def first_of(self, record: Record) -> tuple[int, str] | None:
        """When an object expires, in ms since the epoch, and the id of the rule that says so. Raises NoSuchBucket."""
        document = self._index.bucket(record.tenant, record.bucket).settings.get(SETTING)
        return first_expiry(_parsed(document), record, self._config.lifecycle_day) if document else None

    async def _sweep_bucket(self, tenant: str, bucket: str, rules: tuple[Rule, ...]) -> None:
        day_s = self._config.lifecycle_day
        for upload in self._multipart.uploads(tenant, bucket):
            if upload_due(rules, upload.key, upload.initiated_ms, self._now_ms(), day_s):
                await self._multipart.abort(upload)
        for prefix in _separate({rule.prefix for rule in rules if rule.enabled}):
            after, more = "", True
            while more:
                page = self._index.list(tenant, bucket, prefix, "", after, _PAGE)
                after, more = page.next_after, page.truncated
                now_ms = self._now_ms()
                expired = [record for record in page.records if due(rules, record, now_ms, day_s)]
                await self._delete(expired)
                await asyncio.sleep(0)

    async def _delete(self, records: list[Record]) -> None:
        tasks = []
        for record in records:
            entry = self._index.get(record.tenant, record.bucket, record.key)
            if entry is not None and entry.record is record and not entry.leases and not entry.pinned:
                self._remove(entry)
                tasks += self._copies.drop(entry)
                self._copies.ghosts.note(record, Fate.EXPIRED)
                self._metrics.expired.inc()
        if tasks:
            await asyncio.wait(tasks)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _separate(prefixes: set[str]) -> list[str]:
    """The prefixes without those that begin with another one."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


@functools.lru_cache(maxsize=1024)
def _parsed(document: str) -> tuple[Rule, ...]:
    return loads(document)
