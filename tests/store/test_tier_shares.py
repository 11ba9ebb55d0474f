"""What tenants' parts of a tier mean for a store: floors are kept, limits hold, and room that is free is anyone's."""

from __future__ import annotations

import asyncio

import pytest

from kvgate.auth.limits import TierShareConfig
from kvgate.auth.tenants import Tenant
from kvgate.config import Size
from kvgate.errors import ConfigError, QuotaExceeded
from tests.store.conftest import MiB, Opened, OpenStore, fill

OBJECT = MiB - 4096  # with its footer it takes a whole MiB on disk


def tenant(name: str, **tiers: TierShareConfig) -> Tenant:
    return Tenant(name, buckets=("bucket",), tiers=tiers)


def share(limit: int | None = None, floor: int = 0, weight: float | None = None) -> TierShareConfig:
    return TierShareConfig(Size(limit * MiB) if limit is not None else None, Size(floor * MiB), weight)


def usage(opened: Opened, owner: Tenant, tier: str) -> int:
    """Bytes of a tenant in a tier, in MiB."""
    return round(opened.store.stats(owner).tiers[tier].nbytes / MiB)


async def write_many(opened: Opened, owner: Tenant, count: int, prefix: str = "key", nbytes: int = OBJECT) -> None:
    for number in range(count):
        await opened.put(f"{prefix}-{number}", bytes(nbytes), owner)
        if number % 8 == 7:
            await opened.store.flush()
    await opened.store.flush()


@pytest.mark.parametrize("tier", ["host", "disk"])
async def test_a_flood_leaves_the_neighbours_floor(open_test_store: OpenStore, tier: str) -> None:
    quiet, flood = tenant("quiet", **{tier: share(floor=16)}), tenant("flood", **{tier: share(weight=1000)})
    sizes = {"memory_nbytes": 32 * MiB, "disk_nbytes": 512 * MiB if tier == "host" else 40 * MiB}
    async with open_test_store(tenants=(quiet, flood), **sizes) as opened:
        await write_many(opened, quiet, 20)
        await write_many(opened, flood, 80)
        assert 16 <= usage(opened, quiet, tier) <= 20
        assert usage(opened, flood, tier) >= 8
        if tier == "disk":
            assert len(opened.keys(quiet)) >= 16
        await write_many(opened, flood, 20, "more")
        assert usage(opened, quiet, tier) >= 16


async def test_room_that_is_free_is_anyones(open_test_store: OpenStore) -> None:
    quiet, busy = tenant("quiet", disk=share(floor=20)), tenant("busy", disk=share(weight=0.01))
    async with open_test_store(tenants=(quiet, busy), memory_nbytes=16 * MiB, disk_nbytes=40 * MiB) as opened:
        await write_many(opened, busy, 38)
        assert usage(opened, busy, "disk") == 38, "nobody else wants it"
        await write_many(opened, quiet, 24)
        assert usage(opened, quiet, "disk") >= 20, "the floor is there when it is wanted"
        assert usage(opened, busy, "disk") >= 10


async def test_a_tenant_at_its_limit_gives_its_own(open_test_store: OpenStore) -> None:
    bounded, other = tenant("bounded", disk=share(limit=10), host=share(limit=8)), tenant("other")
    async with open_test_store(tenants=(bounded, other)) as opened:
        await write_many(opened, other, 4)
        for round_ in range(3):
            await write_many(opened, bounded, 12, f"round-{round_}")
            assert usage(opened, bounded, "disk") <= 10
            assert opened.memory.used_by("bounded") <= 8 * MiB
        assert usage(opened, bounded, "disk") == 10, "and it has what it may"
        assert usage(opened, other, "disk") == usage(opened, other, "host") == 4
        assert await opened.get("round-2-11", tenant=bounded) == bytes(OBJECT)


async def test_uploads_at_the_same_time_do_not_pass_a_limit_together(open_test_store: OpenStore) -> None:
    bounded = tenant("bounded", host=share(limit=6), disk=share(limit=12))
    async with open_test_store(tenants=(bounded,), window=MiB, ack="disk") as opened:
        worst = {"host": 0, "disk": 0}

        async def write(number: int) -> None:
            async with await opened.store.open_write(bounded, "bucket", f"key-{number}", 2 * MiB) as upload:
                await fill(upload, bytes(2 * MiB))
                await asyncio.sleep(0)
                worst["host"] = max(worst["host"], opened.memory.used_by("bounded"))
                await upload.commit({})
                worst["disk"] = max(worst["disk"], opened.store.stats(bounded).tiers["disk"].nbytes)

        await asyncio.gather(*[write(number) for number in range(16)], return_exceptions=True)
        assert 0 < worst["host"] <= 6 * MiB
        assert 0 < worst["disk"] <= 12 * MiB


async def test_what_no_tier_may_hold_is_refused_and_counted(open_test_store: OpenStore) -> None:
    bounded = tenant("bounded", host=share(limit=4), disk=share(limit=8))
    async with open_test_store(tenants=(bounded,)) as opened:
        await opened.put("key", bytes(8 * MiB), bounded)
        with pytest.raises(QuotaExceeded, match="more than the tenant may have in any tier"):
            await opened.put("large", bytes(8 * MiB + 1), bounded)
        assert opened.sample("kvgate_refusals_total", reason="quota") == 1
        assert await opened.get("key", tenant=bounded) == bytes(8 * MiB)


async def test_an_object_over_the_limit_of_a_lower_tier_stays_in_memory(open_test_store: OpenStore) -> None:
    bounded = tenant("bounded", disk=share(limit=4))
    async with open_test_store(tenants=(bounded,)) as opened:
        await opened.put("large", bytes(5 * MiB), bounded)
        await opened.store.flush()
        assert opened.places("large", bounded) == ["host"]
        assert opened.sample("kvgate_refusals_total", reason="tier_limit") == 1


async def test_a_lower_limit_holds_from_the_next_write_on(open_test_store: OpenStore) -> None:
    before, after = tenant("bounded"), tenant("bounded", disk=share(limit=5))
    async with open_test_store(tenants=(before,)) as opened:
        await write_many(opened, before, 12)
    async with open_test_store(tenants=(after,)) as opened:
        assert usage(opened, after, "disk") == 12
        await write_many(opened, after, 1, "new")
        assert usage(opened, after, "disk") <= 5
        assert "new-0" in opened.keys(after)


async def test_floors_that_do_not_fit_stop_the_start(open_test_store: OpenStore) -> None:
    with pytest.raises(ConfigError, match=r"tenants\.greedy\.tiers\.disk\.floor"):
        async with open_test_store(tenants=(tenant("greedy", disk=share(floor=41)),), disk_nbytes=40 * MiB):
            pass
