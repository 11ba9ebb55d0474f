"""Many chunks in one answer: in order, each with its own verdict, and leased no longer than needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from awscrt.checksums import crc64nvme

from kvgate.chunk.frame import Status
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.codec.chunk_body import encode_body
from kvgate.messages import views
from kvgate.store.batch_read import BatchRead
from kvgate.store.slice_body import ChunkSlice
from kvgate.tiers.host import HostTier
from tests.client.chunks import SPACE, chunks
from tests.store.conftest import ALPHA, MiB, Opened, OpenStore

PROMPT = chunks(b"salt", 6)
HASHES = [chunk_hash for chunk_hash, _ in PROMPT]
BODIES = [body for _, body in PROMPT]
KEYS = [str(ChunkKey(SPACE.id, chunk_hash.hex())) for chunk_hash in HASHES]


async def store_prompt(opened: Opened, *without: int) -> None:
    await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    for index, (key, body) in enumerate(zip(KEYS, BODIES, strict=True)):
        if index not in without:
            await opened.put(key, body)


async def read(
    opened: Opened,
    hashes: list[bytes] = HASHES,
    select: Callable[[Space], ChunkSlice] | None = None,
    deadline_s: float | None = None,
    **place: str,
) -> BatchRead:
    where = {"tenant": "alpha", "bucket": "bucket", "space": SPACE.id} | place
    return await opened.store.read_chunks(**where, hashes=hashes, select=select, deadline_s=deadline_s)


async def collect(batch: BatchRead, pause_s: float = 0) -> list[tuple[Status, bytes]]:
    got = []
    async for chunk in batch.chunks():
        body = b"" if chunk.body is None else b"".join([bytes(view) async for view in views(chunk.body)])
        assert crc64nvme(body) == chunk.crc64nvme
        got.append((chunk.status, body))
        await asyncio.sleep(pause_s)
    batch.close()
    return got


def leases(opened: Opened) -> list[int]:
    entries = [opened.store._index.get("alpha", "bucket", key) for key in KEYS]
    return [entry.leases for entry in entries if entry is not None]


def damage_in_memory(opened: Opened, key: str) -> None:
    entry = opened.store._index.get("alpha", "bucket", key)
    entry.copies[0].lease.views[0][DATA_START] ^= 1


async def test_chunks_come_in_order_and_missing_ones_are_marked(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await store_prompt(opened, 2)
        asked = [HASHES[4], HASHES[2], HASHES[0], bytes(32), HASHES[0]]
        got = await collect(await read(opened, asked))
        present, missing = Status.PRESENT, (Status.MISSING, b"")
        assert got == [(present, BODIES[4]), missing, (present, BODIES[0]), missing, (present, BODIES[0])]
        assert opened.sample("kvgate_batch_chunks_total", status="present") == 3
        assert opened.sample("kvgate_batch_chunks_total", status="missing") == 2
        assert leases(opened) == [0] * 5


@pytest.mark.parametrize("place", [{"bucket": "elsewhere"}, {"space": "00" * 32}, {"tenant": "beta"}])
@pytest.mark.parametrize("select", [None, lambda space: ChunkSlice.of(space, None, None)])
async def test_what_is_not_the_tenants_looks_like_a_miss(open_test_store: OpenStore, place, select) -> None:
    async with open_test_store() as opened:
        await store_prompt(opened)
        assert await collect(await read(opened, select=select, **place)) == [(Status.MISSING, b"")] * 6


@pytest.mark.parametrize("cold", [False, True])
async def test_slices_are_what_numpy_says(open_test_store: OpenStore, cold: bool) -> None:
    async with open_test_store(ack="disk") as opened:
        await store_prompt(opened)
        if cold:
            for key in KEYS:
                opened.store._placement.copies.drop_copy(opened.store._index.get("alpha", "bucket", key), 0)
        for layers, heads in [(range(1, 3), None), (None, range(2, 3)), (range(3, 4), range(8)), (None, None)]:
            got = await collect(await read(opened, select=lambda space: ChunkSlice.of(space, layers, heads)))  # noqa: B023
            for (status, body), whole in zip(got, BODIES, strict=True):
                tensor = np.frombuffer(whole[DATA_START:], np.uint16).reshape(SPACE.layout.shape)
                picked = tensor[slice(layers.start, layers.stop) if layers else slice(None)]
                picked = picked[:, :, slice(heads.start, heads.stop) if heads else slice(None)]
                assert (status, body) == (Status.PRESENT, picked.tobytes())


@pytest.mark.parametrize("select", [None, lambda space: ChunkSlice.of(space, None, range(1))])
async def test_corrupt_chunk_is_marked_and_no_other(open_test_store: OpenStore, select) -> None:
    async with open_test_store(disk_nbytes=None) as opened:
        await store_prompt(opened)
        damage_in_memory(opened, KEYS[1])
        got = await collect(await read(opened, select=select))
        assert [status for status, _ in got] == [Status.PRESENT, Status.CORRUPT, *[Status.PRESENT] * 4]
        assert [status for status, _ in await collect(await read(opened, HASHES[1:2]))] == [Status.MISSING]
        assert opened.sample("kvgate_corrupt_copies_total", tier="host") == 1


async def test_corrupt_copy_is_made_good_by_the_next_tier(open_test_store: OpenStore) -> None:
    async with open_test_store(ack="disk") as opened:
        await store_prompt(opened)
        damage_in_memory(opened, KEYS[1])
        assert await collect(await read(opened)) == [(Status.PRESENT, body) for body in BODIES]


async def test_only_a_few_chunks_are_leased_ahead(open_test_store: OpenStore) -> None:
    async with open_test_store(read_ahead=2) as opened:
        await store_prompt(opened)
        batch = await read(opened)
        chunks_of = batch.chunks()
        for sent in range(3):
            await anext(chunks_of)
            await asyncio.sleep(0.01)
            assert leases(opened) == [int(sent <= index < sent + 2) for index in range(6)]
        batch.close()
        await asyncio.sleep(0.01)
        assert leases(opened) == [0] * 6
        await chunks_of.aclose()


class Slow:
    """Delays what one tier does to verify a copy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay_s: float) -> None:
        real = HostTier.lease

        async def lease(tier: HostTier, *args: Any) -> Any:
            await asyncio.sleep(delay_s)
            return await real(tier, *args)

        monkeypatch.setattr(HostTier, "lease", lease)


async def test_chunks_that_cannot_be_had_in_time_are_late(open_test_store: OpenStore, monkeypatch) -> None:
    async with open_test_store(read_ahead=1) as opened:
        await store_prompt(opened)
        Slow(monkeypatch, 0.2)
        start_s = time.monotonic()
        got = await collect(await read(opened, deadline_s=0.5))
        assert time.monotonic() - start_s < 1.0
        assert [status for status, _ in got] == [Status.PRESENT] * 2 + [Status.LATE] * 4
        assert [status for status, _ in await collect(await read(opened, deadline_s=0))] == [Status.LATE] * 6
        await asyncio.sleep(0.25)
        assert leases(opened) == [0] * 6


async def test_batch_that_is_closed_early_leases_nothing(open_test_store: OpenStore, monkeypatch) -> None:
    async with open_test_store(read_ahead=3) as opened:
        await store_prompt(opened)
        Slow(monkeypatch, 0.05)
        batch = await read(opened)
        waiting = asyncio.create_task(anext(batch.chunks()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        batch.close()
        batch.close()
        await asyncio.sleep(0.1)
        assert leases(opened) == [0] * 6


async def test_chunks_larger_than_memory_has_room_for_stream_from_disk(open_test_store: OpenStore) -> None:
    """More is leased than memory holds: the batch goes on through windows."""
    async with open_test_store(memory_nbytes=2 * MiB, ack="disk", window=MiB) as opened:
        await store_prompt(opened)
        got = await collect(await read(opened, select=lambda space: ChunkSlice.of(space, range(1), None)))
        assert [status for status, _ in got] == [Status.PRESENT] * 6
        assert await collect(await read(opened)) == [(Status.PRESENT, body) for body in BODIES]
        assert opened.store._quota.used(ALPHA.name) == sum(map(len, BODIES)) + len(SPACE.canonical_json())


async def test_a_chunk_in_blocks_is_read_whole_and_has_no_slices(open_test_store: OpenStore) -> None:
    kv = bytes(SPACE.layout.nbytes)
    body = b"".join(encode_body(SPACE, HASHES[1], HASHES[0], SPACE.chunk_tokens, kv, lossless="lz4"))
    async with open_test_store() as opened:
        await store_prompt(opened, 1)
        await opened.put(KEYS[1], body)
        assert (await collect(await read(opened)))[1] == (Status.PRESENT, body)
        statuses = [
            status for status, _ in await collect(await read(opened, select=lambda s: ChunkSlice.of(s, None, range(1))))
        ]
        assert statuses == [Status.PRESENT, Status.NO_SLICES, *[Status.PRESENT] * 4]
