"""What lies on this gateway itself, in memory and in its private tiers: all that other gateways are told of.

Shared tiers are not looked at, so that a gateway which asks this one never makes it ask a third.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from kvgate.errors import CorruptCopy, NoSuchBucket, NoSuchKey, NotInTier, TierError
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry, Index
from kvgate.store.placement import Placement
from kvgate.store.read import Read
from kvgate.tiers.base import Digested, Record

_AT_ONCE = 16


class Described(NamedTuple):
    """An object, and the crc64nvme of its blocks."""

    record: Record
    blocks: array[int]


class Local:
    """See the module."""

    def __init__(self, placement: Placement, index: Index, metrics: Metrics, config: StoreConfig) -> None:
        self._placement = placement
        self._index = index
        self._metrics = metrics
        self._config = config
        tiers = placement.copies.tiers
        self._ranks = tuple(rank for rank, tier in enumerate(tiers) if not tier.shared)

    async def describe(self, tenant: str, bucket: str, keys: Sequence[str]) -> list[Described | None]:
        """What is here of each key, in their order; None where nothing is, as in a bucket that there is not."""
        entries = [self._entry(tenant, bucket, key) for key in keys]
        described = [_in_memory(entry) if entry is not None else None for entry in entries]
        below = [at for at, entry in enumerate(entries) if entry is not None and described[at] is None]
        for start in range(0, len(below), _AT_ONCE):
            batch = below[start : start + _AT_ONCE]
            found = await asyncio.gather(*[self._below(entry) for at in batch if (entry := entries[at]) is not None])
            for at, each in zip(batch, found, strict=True):
                described[at] = each
        return described

    def open_read(self, tenant: str, bucket: str, key: str, version: tuple[int, int]) -> Read:
        """A lease on an object, to be closed.

        version: the length and the crc64nvme of the body that is meant
        Raises NoSuchKey, also when there is another body, or no copy here.
        """
        entry = self._entry(tenant, bucket, key)
        if entry is None or (entry.record.nbytes, entry.record.crc64nvme) != version:
            raise NoSuchKey("there is no such object on this gateway")
        self._placement.copies.touch(entry)
        return Read(self._placement, entry, self._metrics, self._config, ranks=self._ranks)

    def _entry(self, tenant: str, bucket: str, key: str) -> Entry | None:
        try:
            self._index.bucket(tenant, bucket)  # one that clients see
            entry = self._index.get(tenant, bucket, key)
        except NoSuchBucket:
            return None
        return entry if entry is not None and entry.has_copy(*self._ranks) else None

    async def _below(self, entry: Entry) -> Described | None:
        """An object as a private tier below memory has it."""
        copies = self._placement.copies
        copies.lease(entry)
        try:
            for rank in self._ranks:
                copy, tier = entry.copies[rank], copies.tiers[rank]
                if copy is None or not isinstance(tier, Digested):
                    continue
                try:
                    return Described(entry.record, await tier.blocks(entry.record, copy))
                except (CorruptCopy, NotInTier) as error:
                    copies.drop_bad_copy(entry, rank, copy, error)
                except TierError:
                    continue
        finally:
            copies.unlease(entry)
        return None


def _in_memory(entry: Entry) -> Described | None:
    copy = entry.copies[MEMORY]
    return Described(entry.record, copy.blocks) if copy is not None else None
