"""The contract of a tier: every implementation and every wrapper passes it.

A subclass gives the `tier` fixture, started, and says in `survives` whether published copies outlive the tier. If they
do, `reopen` ends a tier without ceremony and gives a fresh one on the same place, not started.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from kvgate.errors import NotInTier, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest
from kvgate.memory.lease import Lease
from kvgate.tiers.base import Copy, Record, Tier

SIZES = [0, 1, 4095, 4096, BLOCK_NBYTES - 1, BLOCK_NBYTES, BLOCK_NBYTES + 1, 3 * BLOCK_NBYTES + 17]


class TierContract:
    survives: bool
    capacity_nbytes: int

    @pytest.fixture
    async def tier(self) -> AsyncIterator[Tier]:
        raise NotImplementedError

    def reopen(self, tier: Tier) -> Tier:
        raise NotImplementedError

    @pytest.fixture
    def arena(self) -> Iterable[Arena]:
        arena = Arena(64 << 20)
        yield arena
        assert arena.lease_count == 0
        arena.close()

    @pytest.fixture(autouse=True)
    async def written(self, tier: Tier) -> AsyncIterator[list[tuple[Record, Copy]]]:
        self.items: list[tuple[Record, Copy]] = []
        yield self.items
        for record, copy in self.items if not self.survives else ():
            await tier.delete(record, copy)

    # --- what a test does -------------------------------------------------------------------------------------------

    async def put(
        self, tier: Tier, arena: Arena, key: str, body: bytes, *, publish: bool = True
    ) -> tuple[Record, Copy]:
        record, blocks = describe(key, body)
        with filled(arena, body) as lease:
            upload = await tier.begin(record.tenant, len(body))
            half = len(body) // 2
            await upload.write(lease, 0, half)
            await upload.write(lease, half, len(body))
        copy = await upload.finish(record, blocks)
        await upload.abort()  # does nothing after finish
        self.items.append((record, copy))
        if publish:
            await tier.publish(record, copy)
        return record, copy

    async def get(
        self, tier: Tier, arena: Arena, record: Record, copy: Copy, start: int = 0, stop: int | None = None
    ) -> bytes:
        stop = record.nbytes if stop is None else stop
        reader = tier.open(record, copy)
        try:
            with arena.reserve(record.tenant, stop - start) as lease:
                blocks = await reader.read_into(start, lease, stop - start)
                read = content(lease)
                digest = BlockDigest()
                digest.update(memoryview(read))
                assert list(blocks) == list(digest.blocks)
                return read
        finally:
            await reader.close()

    async def found(self, tier: Tier) -> dict[str, tuple[Record, Copy]]:
        items: dict[str, tuple[Record, Copy]] = {}
        await tier.start(lambda batch: items.update({record.key: (record, copy) for record, copy in batch}))
        return items

    # --- the contract -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("nbytes", SIZES)
    async def test_reads_back_what_was_written(self, tier: Tier, arena: Arena, nbytes: int) -> None:
        body = os.urandom(nbytes)
        record, copy = await self.put(tier, arena, "k", body)
        assert await self.get(tier, arena, record, copy) == body

    async def test_reads_any_run_of_blocks(self, tier: Tier, arena: Arena) -> None:
        body = os.urandom(3 * BLOCK_NBYTES + 100)
        record, copy = await self.put(tier, arena, "k", body)
        for start, stop in [(0, BLOCK_NBYTES), (BLOCK_NBYTES, 3 * BLOCK_NBYTES), (3 * BLOCK_NBYTES, len(body))]:
            assert await self.get(tier, arena, record, copy, start, stop) == body[start:stop]

    async def test_takes_a_body_of_unknown_length(self, tier: Tier, arena: Arena) -> None:
        body = os.urandom(2 * BLOCK_NBYTES + 5)
        record, blocks = describe("k", body)
        upload = await tier.begin(record.tenant, None)
        with filled(arena, body) as lease:
            for start in range(0, len(body), 100_000):
                await upload.write(lease, start, min(start + 100_000, len(body)))
        copy = await upload.finish(record, blocks)
        self.items.append((record, copy))
        assert await self.get(tier, arena, record, copy) == body

    async def test_copies_of_one_key_are_independent(self, tier: Tier, arena: Arena) -> None:
        old = await self.put(tier, arena, "k", b"old")
        new = await self.put(tier, arena, "k", b"new")
        assert await self.get(tier, arena, *old) == b"old"
        await tier.delete(*old)
        assert await self.get(tier, arena, *new) == b"new"

    async def test_deleted_copy_is_not_there(self, tier: Tier, arena: Arena) -> None:
        record, copy = await self.put(tier, arena, "k", b"body")
        await tier.delete(record, copy)
        await tier.delete(record, copy)
        with pytest.raises(NotInTier):
            await self.get(tier, arena, record, copy)

    async def test_open_reader_outlives_its_copy(self, tier: Tier, arena: Arena) -> None:
        body = os.urandom(2 * BLOCK_NBYTES)
        record, copy = await self.put(tier, arena, "k", body)
        reader = tier.open(record, copy)
        with arena.reserve(record.tenant, BLOCK_NBYTES) as lease:
            await reader.read_into(0, lease, BLOCK_NBYTES)
            await tier.delete(record, copy)
            await reader.read_into(BLOCK_NBYTES, lease, BLOCK_NBYTES)
            assert content(lease) == body[BLOCK_NBYTES:]
        await reader.close()
        await reader.close()

    async def test_room_is_conserved(self, tier: Tier, arena: Arena) -> None:
        before = tier.usage().nbytes
        kept = [await self.put(tier, arena, f"k{number}", os.urandom(50_000 * number)) for number in range(5)]
        upload = await tier.begin("tenant", 1 << 20)
        with filled(arena, bytes(1000)) as lease:
            await upload.write(lease, 0, 1000)
        await upload.abort()
        await upload.abort()
        growing = await tier.begin("tenant", None)
        await growing.abort()
        assert tier.usage().nbytes > before
        for record, copy in kept:
            await tier.delete(record, copy)
        assert tier.usage().nbytes == before

    async def test_full_tier_takes_nothing_more(self, tier: Tier, arena: Arena) -> None:
        with pytest.raises(TierFull):
            await tier.begin("tenant", self.capacity_nbytes + 1)
        kept = []
        while (room := tier.room("tenant")) > 0:
            kept.append(await self.put(tier, arena, f"k{len(kept)}", os.urandom(min(room, 5 << 20))))
        used = tier.usage()
        assert used.nbytes <= used.capacity_nbytes
        with pytest.raises(TierFull):
            await tier.begin("tenant", 4096)
        growing = await tier.begin("tenant", None)
        with filled(arena, bytes(1 << 20)) as lease, pytest.raises(TierFull):
            await growing.write(lease, 0, 1 << 20)
        await growing.abort()
        assert tier.usage() == used
        for record, copy in kept:
            await tier.delete(record, copy)

    async def test_cancelled_write_and_read_hold_their_lease_until_the_copy_has_ended(
        self, tier: Tier, arena: Arena
    ) -> None:
        body = os.urandom(16 << 20)
        record, copy = await self.put(tier, arena, "k", body)
        for _ in range(10):
            lease = arena.reserve(record.tenant, len(body))
            reader = tier.open(record, copy)
            task = asyncio.create_task(reader.read_into(0, lease, len(body)))
            await asyncio.sleep(0)
            task.cancel()
            lease.release()
            await asyncio.gather(task, return_exceptions=True)
            await reader.close()
            lease = filled(arena, body)
            upload = await tier.begin(record.tenant, len(body))
            task = asyncio.create_task(upload.write(lease, 0, len(body)))
            await asyncio.sleep(0)
            task.cancel()
            lease.release()
            await asyncio.gather(task, return_exceptions=True)
            await upload.abort()
        while arena.lease_count:
            await asyncio.sleep(0.01)
        assert await self.get(tier, arena, record, copy) == body

    async def test_only_published_copies_survive(self, tier: Tier, arena: Arena) -> None:
        if not self.survives:
            pytest.skip("nothing survives in this tier")
        bodies = {f"k{number}": os.urandom(number * 1000) for number in range(20)}
        for key, body in bodies.items():
            await self.put(tier, arena, key, os.urandom(10))
            await self.put(tier, arena, key, body)
        deleted = await self.put(tier, arena, "deleted", b"gone")
        await tier.delete(*deleted)
        await self.put(tier, arena, "unpublished", b"invisible", publish=False)
        again = self.reopen(tier)
        found = await self.found(again)
        assert found.keys() == bodies.keys()
        for key, (record, copy) in found.items():
            assert record.attributes == {"content-type": "text/plain", "x-amz-meta-a": "é"}
            assert await self.get(again, arena, record, copy) == bodies[key]
        await again.close()


def describe(key: str, body: bytes) -> tuple[Record, Any]:
    digest = BlockDigest()
    digest.update(memoryview(body))
    attributes = {"content-type": "text/plain", "x-amz-meta-a": "é"}
    return Record("tenant", "bucket", key, len(body), digest.value, 1_700_000_000_000, attributes), digest.blocks


def filled(arena: Arena, body: bytes) -> Lease:
    lease = arena.reserve("tenant", len(body))
    at = 0
    for view in lease.views:
        view[:] = body[at : at + len(view)]
        at += len(view)
    return lease


def content(lease: Lease) -> bytes:
    return b"".join(bytes(view) for view in lease.views)
