"""A real store over real tiers, in the test's own process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.config import Size
from kvgate.messages import views
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.index import Entry
from kvgate.store.retention import Change
from kvgate.store.store import Store, open_store
from kvgate.tiers.base import Tier
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.host import HostConfig, HostTier
from kvgate.tiers.rules import TierRules

MiB = 1 << 20
ALPHA = Tenant("alpha", buckets=("bucket",))
BETA = Tenant("beta", buckets=("bucket",))

OpenStore = Callable[..., AbstractAsyncContextManager["Opened"]]


class Opened:
    """A store and what it is made of."""

    def __init__(self, store: Store, memory: HostTier, disk: DiskTier | None, metrics: Metrics) -> None:
        self.store, self.memory, self.disk, self.metrics = store, memory, disk, metrics

    async def put(self, key: str, body: bytes, tenant: Tenant = ALPHA, **attributes: str) -> None:
        async with await self.store.open_write(tenant, "bucket", key, len(body)) as write:
            await fill(write, body)
            await write.commit(attributes)

    async def get(self, key: str, start: int = 0, stop: int | None = None, tenant: Tenant = ALPHA) -> bytes:
        with self.store.open_read(tenant.name, "bucket", key, tenant.name) as read:
            body = await read.load(start, read.record.nbytes if stop is None else stop)
            try:
                return b"".join([bytes(view) async for view in views(body)])
            finally:
                body.close()

    async def keep(self, *keys: str, tenant: Tenant = ALPHA, **change: Any) -> list[str]:
        return list(await self.store.keeper.keep(tenant.name, "bucket", keys, Change(**change)))

    def entry(self, key: str, tenant: Tenant = ALPHA) -> Entry:
        entry = self.store._index.get(tenant.name, "bucket", key)
        assert entry is not None
        return entry

    def places(self, key: str, tenant: Tenant = ALPHA) -> list[str]:
        """The tiers that hold a copy."""
        entry = self.entry(key, tenant)
        tiers = self.store._placement.copies.tiers
        return [tier.name for tier, copy in zip(tiers, entry.copies, strict=True) if copy is not None]

    def keys(self, tenant: Tenant = ALPHA) -> list[str]:
        return [record.key for record in self.store.list(tenant.name, "bucket").records]

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def fill(write: Any, body: bytes) -> None:
    at = 0
    while at < len(body):
        view = (await write.views())[0][: min(len(body) - at, 300_000)]
        view[:] = body[at : at + len(view)]
        write.digest(view)
        write.advance()
        at += len(view)


@contextlib.asynccontextmanager
async def open_store_in(
    folder: Path,
    memory_nbytes: int = 64 * MiB,
    disk_nbytes: int | None = 256 * MiB,
    tenants: tuple[Tenant, ...] = (ALPHA, BETA),
    below: Sequence[Tier] = (),
    rules: Mapping[str, TierRules] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Opened]:
    """below: tiers under the disk, if there is one"""
    memory = HostTier(HostConfig(capacity=Size(memory_nbytes), segment=Size(max(MiB, memory_nbytes // 16))))
    disk = DiskTier(DiskConfig(path=folder / "disk", capacity=Size(disk_nbytes))) if disk_nbytes else None
    metrics = Metrics()
    catalog = folder / "disk" / "buckets.json" if disk else None
    config = StoreConfig(**options)
    lower = [disk, *below] if disk else below
    async with open_store(
        memory, lower, tenants, config=config, metrics=metrics, catalog=catalog, rules=rules
    ) as store:
        opened = Opened(store, memory, disk, metrics)
        yield opened
        await opened.store._placement.copies.wait_for_background()


@pytest.fixture
def open_test_store(tmp_path: Path) -> OpenStore:
    return functools.partial(open_store_in, tmp_path)
