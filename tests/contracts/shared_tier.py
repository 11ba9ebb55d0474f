"""The contract of a shared tier: that of every tier, and what holds when several gateways use one place.

A subclass gives the `tier` fixture, started, on an empty place, and `other`, a second tier on the same place as another
gateway would have it, started too. `capacity_nbytes` is None where the tier has no limit of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from kvgate.errors import NotAdmitted, NotInTier
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import HERE, Copy, Name, Record, SharedTier
from tests.contracts.tier import TierContract, describe, filled


def name_of(record: Record) -> Name:
    return Name(record.tenant, record.bucket, record.key)


class SharedTierContract(TierContract):
    survives = True
    capacity_nbytes: int | None  # type: ignore[assignment]

    @pytest.fixture
    async def other(self, tier: SharedTier) -> AsyncIterator[SharedTier]:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def written(self, tier: SharedTier) -> AsyncIterator[list[tuple[Record, Copy]]]:
        self.items: list[tuple[Record, Copy]] = []
        yield self.items
        for record, copy in self.items:
            await tier.delete(record, copy)

    # --- what one gateway writes, the other finds -------------------------------------------------------------------

    async def test_start_reports_nothing(self, tier: SharedTier, other: SharedTier, arena: Arena) -> None:
        await self.put(tier, arena, "k", b"body")
        assert await self.found(other) == {}

    async def test_lookup_finds_what_another_gateway_wrote(
        self, tier: SharedTier, other: SharedTier, arena: Arena
    ) -> None:
        bodies = {f"kv/{number}/é %2F": os.urandom(number * 700_000) for number in range(4)}
        records = [(await self.put(tier, arena, key, body))[0] for key, body in bodies.items()]
        absent = [Name("tenant", "bucket", "absent"), Name("other", "bucket", records[0].key)]
        found = await other.lookup([absent[0], *map(name_of, records), absent[1]])
        assert found == [None, *records, None]
        for record, body in zip(records, bodies.values(), strict=True):
            assert await self.get(other, arena, record, HERE) == body
            assert (
                await self.get(other, arena, record, HERE, record.nbytes // BLOCK_NBYTES * BLOCK_NBYTES)
                == (body[record.nbytes // BLOCK_NBYTES * BLOCK_NBYTES :])
            )

    async def test_lookup_of_nothing_and_of_very_many(self, tier: SharedTier, arena: Arena) -> None:
        assert await tier.lookup([]) == []
        record, _ = await self.put(tier, arena, "k", b"body")
        names = [Name("tenant", "bucket", f"absent{number}") for number in range(300)]
        assert await tier.lookup([*names, name_of(record)]) == [*[None] * 300, record]

    async def test_names_that_look_alike_are_kept_apart(self, tier: SharedTier, arena: Arena) -> None:
        keys = ["a/b", "a%2Fb", "a", "a/", "A", "a:b", "a b", "a+b", "é", "e\u0301", "a" * 1024]
        written = [(await self.put(tier, arena, key, key.encode()))[0] for key in keys]
        assert await tier.lookup([name_of(record) for record in written]) == written

    async def test_unfinished_upload_is_not_found(self, tier: SharedTier, other: SharedTier, arena: Arena) -> None:
        record, _ = describe("k", b"x" * 1000)
        upload = await tier.begin(record.tenant, 1000)
        with filled(arena, b"x" * 1000) as lease:
            await upload.write(lease, 0, 1000)
        assert await other.lookup([name_of(record)]) == [None]
        await upload.abort()
        assert await other.lookup([name_of(record)]) == [None]

    # --- one key, several writers -----------------------------------------------------------------------------------

    async def test_equal_body_is_adopted(self, tier: SharedTier, other: SharedTier, arena: Arena) -> None:
        body = os.urandom(2 * BLOCK_NBYTES + 3)
        record, copy = await self.put(tier, arena, "k", body)
        again, same = await self.put(other, arena, "k", body)
        assert (copy, same) == (HERE, HERE)
        assert record.same_body(again)
        assert await self.get(other, arena, record, HERE) == body

    async def test_copies_of_one_key_are_independent(  # type: ignore[override]
        self, tier: SharedTier, other: SharedTier, arena: Arena
    ) -> None:
        """The first writer wins: what it wrote stays, and the second is told."""
        record, _ = await self.put(tier, arena, "k", b"first")
        with pytest.raises(NotAdmitted):
            await self.put(other, arena, "k", b"second")
        assert await other.lookup([name_of(record)]) == [record]
        assert await self.get(other, arena, record, HERE) == b"first"

    async def test_of_many_writers_at_once_one_wins(self, tier: SharedTier, other: SharedTier, arena: Arena) -> None:
        bodies = [os.urandom(1000) for _ in range(8)]
        ended = await asyncio.gather(
            *[self.put(each, arena, "k", body) for body, each in zip(bodies, [tier, other] * 4, strict=True)],
            return_exceptions=True,
        )
        won = [result[0] for result in ended if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert all(isinstance(error, NotAdmitted) for error in ended if isinstance(error, BaseException))
        assert await tier.lookup([name_of(won[0])]) == won
        assert await self.get(tier, arena, won[0], HERE) == bodies[[type(each) for each in ended].index(tuple)]

    async def test_deletes_the_version_in_the_record_only(
        self, tier: SharedTier, other: SharedTier, arena: Arena
    ) -> None:
        old, copy = await self.put(tier, arena, "k", b"old")
        await tier.delete(old, copy)
        new, _ = await self.put(other, arena, "k", b"new")
        await tier.delete(old, copy)
        assert await tier.lookup([name_of(new)]) == [new]
        with pytest.raises(NotInTier):
            await self.get(tier, arena, old, copy)

    async def test_open_reader_outlives_its_copy(  # type: ignore[override]
        self, tier: SharedTier, other: SharedTier, arena: Arena
    ) -> None:
        """A reader whose copy is deleted elsewhere has the right bytes or none."""
        body = os.urandom(2 * BLOCK_NBYTES)
        record, copy = await self.put(tier, arena, "k", body)
        reader = tier.open(record, copy)
        with arena.reserve(record.tenant, BLOCK_NBYTES) as lease:
            await reader.read_into(0, lease, BLOCK_NBYTES)
            await other.delete(record, copy)
            try:
                await reader.read_into(BLOCK_NBYTES, lease, BLOCK_NBYTES)
            except NotInTier:
                pass
            else:
                assert b"".join(bytes(view) for view in lease.views) == body[BLOCK_NBYTES:]
        await reader.close()

    async def test_full_tier_takes_nothing_more(self, tier: SharedTier, arena: Arena) -> None:  # type: ignore[override]
        if self.capacity_nbytes is None:
            assert tier.usage().capacity_nbytes is None
            pytest.skip("this tier has no limit of its own")
        await super().test_full_tier_takes_nothing_more(tier, arena)

    test_only_published_copies_survive = None  # `test_start_reports_nothing` and the lookups say what survives
