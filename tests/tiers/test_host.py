from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvgate.config import Size
from kvgate.errors import CorruptCopy
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import Tier
from kvgate.tiers.host import HostConfig, HostTier
from tests.contracts.tier import TierContract, describe, filled


class TestHostTier(TierContract):
    survives = False
    capacity_nbytes = 64 << 20

    @pytest.fixture
    async def tier(self) -> AsyncIterator[Tier]:
        tier = HostTier(HostConfig(capacity=Size(self.capacity_nbytes), segment=Size(8 << 20)))
        yield tier
        await tier.close()

    async def test_adopted_bytes_are_used_where_they_lie(self, tier: HostTier) -> None:
        body = bytes(range(256)) * 8192
        record, blocks = describe("k", body)
        lease = filled(tier.arena, body)
        extents = lease.extents
        copy = tier.adopt(lease, blocks)
        with await tier.lease(record, copy, 0, len(body)) as shared:
            assert shared.extents == extents
        tier.drop(copy)
        assert tier.arena.used_nbytes == 0

    async def test_flipped_bit_in_memory_is_noticed_in_its_block_only(self, tier: HostTier, arena: Arena) -> None:
        body = bytes(2 * BLOCK_NBYTES)
        record, copy = await self.put(tier, arena, "k", body)
        copy.lease.views[0][BLOCK_NBYTES + 5] ^= 1
        with pytest.raises(CorruptCopy):
            await tier.lease(record, copy, BLOCK_NBYTES, BLOCK_NBYTES + 1)
        (await tier.lease(record, copy, 0, BLOCK_NBYTES)).release()
        tier.drop(copy)


async def test_a_started_tier_keeps_memory_ready_for_the_next_objects() -> None:
    tier = HostTier(HostConfig(capacity=Size(64 << 20), segment=Size(8 << 20), prefault=Size(20 << 20)))
    await tier.start(lambda _: None)
    async with asyncio.timeout(20):
        while tier.arena.ready_nbytes < 16 << 20:
            await asyncio.sleep(0.01)
    assert tier.usage().nbytes == 0
    assert tier.room("anyone") == tier.limit() == 64 << 20
    await tier.close()
