from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ManifestKey
from kvgate.errors import (
    BucketNotEmpty,
    CorruptCopy,
    IncompleteBody,
    NoSuchBucket,
    NoSuchKey,
    NoSuchLease,
    ObjectTooLarge,
    PreconditionFailed,
    QuotaExceeded,
    StoreFull,
    TooManyBuckets,
)
from kvgate.messages import views
from kvgate.store.retention import Pin
from tests.chunks import SPACE, chunk, chunk_hash
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore, fill


async def test_reads_back_ranges_from_memory_and_from_disk(open_test_store: OpenStore) -> None:
    body = os.urandom(5 * MiB + 123)
    async with open_test_store() as opened:
        await opened.put("k", body)
        for start, stop in [(0, len(body)), (1, 2), (MiB - 1, MiB + 1), (5 * MiB, len(body)), (7, 7)]:
            assert await opened.get("k", start, stop) == body[start:stop]
    async with open_test_store() as opened:
        assert opened.places("k") == ["disk"]
        assert await opened.get("k", MiB - 1, MiB + 1) == body[MiB - 1 : MiB + 1]
        assert opened.places("k") == ["disk"], "a small range does not bring the object to memory"
        assert await opened.get("k") == body
        assert opened.places("k") == ["host", "disk"]


async def test_demotes_in_the_background_and_promotes_on_read(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"body", **{"content-type": "text/plain"})
        await opened.store.flush()
        assert opened.places("k") == ["host", "disk"]
    async with open_test_store() as opened:
        assert opened.store.stat("alpha", "bucket", "k").attributes == {"content-type": "text/plain"}
        assert await opened.get("k") == b"body"
        assert opened.sample("kvgate_promoted_objects_total") == 1


async def test_memory_evicts_the_least_recently_used_and_disk_keeps_them(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB) as opened:
        for number in range(40):
            await opened.put(f"k{number:02}", bytes([number]) * MiB)
            if number > 0:
                await opened.get("k00")
            await opened.store.flush()
        assert opened.places("k00") == ["host", "disk"]
        assert opened.places("k01") == ["disk"]
        assert [await opened.get(f"k{number:02}", 5, 6) for number in range(40)] == [bytes([n]) for n in range(40)]


async def test_disk_evicts_the_least_recently_used(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB) as opened:
        for number in range(60):
            await opened.put(f"k{number:02}", bytes([number]) * MiB)
            await opened.store.flush()
        keys = opened.keys()
        assert "k59" in keys
        assert "k00" not in keys
        assert 24 <= len(keys) <= 48
        assert opened.disk.usage().nbytes <= 32 * MiB
        for key in keys:
            assert await opened.get(key) == bytes([int(key[1:])]) * MiB
        assert opened.store.stats(ALPHA).nbytes == len(keys) * MiB


async def test_pinned_and_leased_objects_are_never_evicted(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB) as opened:
        await opened.put("pinned", b"p" * MiB)
        await opened.put("leased", b"l" * MiB)
        assert await opened.keep("pinned", pin=Pin.HARD) == ["done"]
        read = opened.store.open_read("alpha", "bucket", "leased")
        for number in range(60):
            await opened.put(f"k{number:02}", bytes(MiB))
        assert await opened.get("pinned") == b"p" * MiB
        body = await read.load(0, MiB)
        assert b"".join([bytes(view) async for view in views(body)]) == b"l" * MiB
        body.close()
        await opened.keep("pinned", pin=Pin.NONE)
        for number in range(60):
            await opened.put(f"m{number:02}", bytes(MiB))
        assert not {"pinned", "leased"} & set(opened.keys())


async def test_object_larger_than_memory_goes_straight_to_disk(open_test_store: OpenStore) -> None:
    body = os.urandom(40 * MiB + 11)
    async with open_test_store(memory_nbytes=16 * MiB, window=2 * MiB) as opened:
        await opened.put("big", body)
        assert opened.places("big") == ["disk"]
        assert await opened.get("big") == body
        assert await opened.get("big", 3 * MiB + 5, 30 * MiB + 7) == body[3 * MiB + 5 : 30 * MiB + 7]
        assert opened.places("big") == ["disk"]
        assert opened.memory.arena.used_nbytes == 0
    async with open_test_store(memory_nbytes=16 * MiB) as opened:
        assert await opened.get("big") == body


async def test_body_of_unknown_length_grows_in_memory_and_spills_to_disk(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB) as opened:
        for key, nbytes, places in [("small", 3 * MiB + 1, ["host", "disk"]), ("large", 50 * MiB + 1, ["disk"])]:
            body = os.urandom(nbytes)
            async with await opened.store.open_write(ALPHA, "bucket", key, None) as write:
                await fill(write, body)
                await write.commit({})
            await opened.store.flush()
            assert opened.places(key) == places
            assert await opened.get(key) == body


async def test_memory_alone_refuses_what_it_cannot_hold(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=None) as opened:
        with pytest.raises(ObjectTooLarge):
            await opened.store.open_write(ALPHA, "bucket", "big", 17 * MiB)
        reads = []
        for number in range(16):
            await opened.put(f"k{number}", bytes(MiB - 4096))
            reads.append(opened.store.open_read("alpha", "bucket", f"k{number}"))
        with pytest.raises(StoreFull):
            await opened.put("more", bytes(4 * MiB))
        for read in reads:
            read.close()
        await opened.put("more", bytes(4 * MiB))


async def test_nothing_is_left_of_an_aborted_or_failed_upload(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB) as opened:
        await opened.put("kept", b"kept")
        await opened.store.flush()
        before = (opened.disk.usage(), opened.store.stats(ALPHA).nbytes)
        for nbytes, sent in [(100, 99), (4 * MiB, 3 * MiB), (40 * MiB, 20 * MiB), (None, 20 * MiB)]:
            async with await opened.store.open_write(ALPHA, "bucket", "k", nbytes) as write:
                await fill(write, bytes(sent))
                if nbytes is not None:
                    with pytest.raises(IncompleteBody):
                        await write.commit({})
        async with await opened.store.open_write(ALPHA, "bucket", "kept", 5) as write:
            await fill(write, b"other")
            with pytest.raises(PreconditionFailed):
                await write.commit({}, must_not_exist)
        await opened.store._placement.copies.wait_for_background()
        assert (opened.disk.usage(), opened.store.stats(ALPHA).nbytes) == before
        assert await opened.get("kept") == b"kept"
        assert opened.memory.arena.used_nbytes == 4096
        assert not list((opened.disk.folder / "tmp").iterdir())


@pytest.mark.parametrize("ack", ["memory", "disk"])
async def test_of_many_conditional_creates_one_wins(open_test_store: OpenStore, ack: str) -> None:
    async with open_test_store(ack=ack) as opened:

        async def attempt(number: int) -> bool:
            async with await opened.store.open_write(ALPHA, "bucket", "k", 1000) as write:
                await fill(write, bytes([number]) * 1000)
                try:
                    await write.commit({}, must_not_exist)
                except PreconditionFailed:
                    return False
                return True

        won = await asyncio.gather(*[attempt(number) for number in range(64)])
        assert sum(won) == 1
        assert await opened.get("k") == bytes([won.index(True)]) * 1000
    async with open_test_store() as opened:
        assert await opened.get("k") == bytes([won.index(True)]) * 1000


@pytest.mark.parametrize("ack", ["memory", "disk"])
async def test_last_of_many_overwrites_is_the_one_that_survives(open_test_store: OpenStore, ack: str) -> None:
    async with open_test_store(ack=ack) as opened:
        for round_number in range(20):
            await asyncio.gather(*[opened.put("k", bytes([n, round_number]) * 500) for n in range(16)])
            seen = await opened.get("k")
        await opened.store.flush()
        assert opened.store.stats(ALPHA).nbytes == 1000
    async with open_test_store() as opened:
        assert await opened.get("k") == seen
        assert len(opened.keys()) == 1


async def test_reader_sees_the_version_that_it_opened(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"old" * 1000)
        read = opened.store.open_read("alpha", "bucket", "k")
        await opened.put("k", b"new" * 1000)
        body = await read.load(0, 3000)
        assert b"".join([bytes(view) async for view in views(body)]) == b"old" * 1000
        body.close()
        assert await opened.get("k") == b"new" * 1000


async def test_deleted_object_stays_deleted(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"body")
        await opened.store.flush()
        await opened.put("volatile", b"body")
        assert await opened.store.delete("alpha", "bucket", "k")
        assert await opened.store.delete("alpha", "bucket", "volatile")
        assert not await opened.store.delete("alpha", "bucket", "k")
        with pytest.raises(NoSuchKey):
            await opened.get("k")
        await opened.store.flush()
        assert opened.memory.arena.used_nbytes == 0
    async with open_test_store() as opened:
        assert opened.keys() == []
        assert opened.disk.usage().nbytes == 0


async def test_corrupt_copy_is_a_miss_and_is_dropped(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", bytes(3 * MiB))
    async with open_test_store() as opened:
        flip_stored(opened, "k", 100)
        assert await opened.get("k", 2 * MiB, 2 * MiB + 100) == bytes(100), "the other blocks are good"
        with pytest.raises(NoSuchKey):
            await opened.get("k")
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1
        assert opened.keys() == []
        await opened.store._placement.copies.wait_for_background()
        assert opened.disk.usage().nbytes == 0
        assert opened.store.stats(ALPHA).nbytes == 0


async def test_corrupt_copy_in_memory_is_replaced_from_disk(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"good" * 1000)
        await opened.store.flush()
        entry = opened.store._index.get("alpha", "bucket", "k")
        entry.copies[0].lease.views[0][10] ^= 1
        assert await opened.get("k") == b"good" * 1000
        assert opened.sample("kvgate_corrupt_copies_total", tier="host") == 1
        assert opened.places("k") == ["host", "disk"]


async def test_object_that_goes_bad_while_it_streams_is_broken_off(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, window=MiB) as opened:
        await opened.put("big", bytes(40 * MiB))
        with opened.store.open_read("alpha", "bucket", "big") as read:
            body = await read.load(0, 40 * MiB)
            pieces = views(body)
            await anext(pieces)
            flip_stored(opened, "big", 30 * MiB)
            with pytest.raises(CorruptCopy):
                await read_zeros(pieces)
            body.close()
        assert opened.keys() == []


async def test_concurrent_readers_share_one_promotion(open_test_store: OpenStore) -> None:
    body = os.urandom(8 * MiB)
    async with open_test_store() as opened:
        await opened.put("k", body)
    async with open_test_store() as opened:
        assert all(got == body for got in await asyncio.gather(*[opened.get("k") for _ in range(16)]))
        assert opened.sample("kvgate_promoted_objects_total") == 1


async def test_cancelled_requests_leave_nothing_leased(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=32 * MiB) as opened:
        for number in range(6):
            await opened.put(f"k{number}", bytes(4 * MiB))
        await opened.store.flush()
        for delay in range(30):
            tasks = [asyncio.create_task(opened.get(f"k{n % 6}")) for n in range(6)]
            tasks += [asyncio.create_task(opened.put(f"new{n}", bytes(6 * MiB))) for n in range(3)]
            await asyncio.sleep(delay / 3000)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        for record in opened.store.list("alpha", "bucket").records:
            assert opened.store._index.get("alpha", "bucket", record.key).leases == 0
            await opened.store.delete("alpha", "bucket", record.key)
        while opened.memory.arena.used_nbytes:
            await asyncio.sleep(0.01)
        assert opened.disk.usage().nbytes == 0
        assert opened.store.stats(ALPHA).nbytes == 0


# --- tenants and quota ------------------------------------------------------------------------------------------------


async def test_same_key_of_two_tenants_is_two_objects(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"alpha's", tenant=ALPHA)
        with pytest.raises(NoSuchKey):
            await opened.get("k", tenant=BETA)
        await opened.put("k", b"beta's", tenant=BETA)
        assert await opened.get("k", tenant=ALPHA) == b"alpha's"
        assert await opened.store.delete("beta", "bucket", "k")
        assert await opened.get("k", tenant=ALPHA) == b"alpha's"
        entry = opened.store._index.get("alpha", "bucket", "k")
        own = {segment.id for segment in opened.memory.arena.segments("alpha")}
        assert {extent.segment_id for extent in entry.copies[0].lease.extents} <= own


async def test_quota_counts_every_object_once_and_uploads_at_once(open_test_store: OpenStore) -> None:
    limited = Tenant("limited", buckets=("bucket",), quota_nbytes=10 * MiB)
    async with open_test_store(tenants=(limited,)) as opened:
        await opened.put("a", bytes(4 * MiB), tenant=limited)
        await opened.put("a", bytes(5 * MiB), tenant=limited)
        assert opened.store.stats(limited).nbytes == 5 * MiB
        async with await opened.store.open_write(limited, "bucket", "b", 5 * MiB):
            with pytest.raises(QuotaExceeded):
                await opened.store.open_write(limited, "bucket", "c", 1)
        async with await opened.store.open_write(limited, "bucket", "d", None) as write:
            with pytest.raises(QuotaExceeded):
                await fill(write, bytes(6 * MiB))
        assert opened.store.stats(limited).nbytes == 5 * MiB
    async with open_test_store(tenants=(limited,)) as opened:
        assert opened.store.stats(limited).nbytes == 5 * MiB


async def test_flood_of_one_tenant_evicts_its_own_objects_first(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=64 * MiB) as opened:
        await opened.put("small", b"b" * MiB, tenant=BETA)
        for number in range(150):
            await opened.put(f"k{number}", bytes(MiB), tenant=ALPHA)
        await opened.store.flush()
        assert await opened.get("small", tenant=BETA) == b"b" * MiB


# --- buckets ----------------------------------------------------------------------------------------------------------


async def test_buckets_survive_a_restart(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        assert await opened.store.buckets.create(ALPHA, "made-here")
        assert not await opened.store.buckets.create(ALPHA, "made-here")
        assert await opened.store.buckets.create(ALPHA, "deleted")
        await opened.store.buckets.delete("alpha", "deleted")
        created_ms = opened.store.buckets.get("alpha", "made-here").created_ms
    async with open_test_store() as opened:
        assert [bucket.name for bucket in opened.store.buckets.list("alpha")] == ["bucket", "made-here"]
        assert opened.store.buckets.get("alpha", "made-here").created_ms == created_ms
        with pytest.raises(NoSuchBucket):
            opened.store.buckets.get("beta", "made-here")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"buckets": [1]}', b'{"buckets": [{"tenant": "alpha"}]}', b"\xff"])
async def test_unreadable_list_of_buckets_is_set_aside(
    open_test_store: OpenStore, tmp_path: Path, damage: bytes
) -> None:
    async with open_test_store() as opened:
        await opened.store.buckets.create(ALPHA, "made-here")
        async with await opened.store.open_write(ALPHA, "made-here", "k", 0) as write:
            await write.commit({})
        await opened.store.buckets.create(ALPHA, "empty")
    (tmp_path / "disk" / "buckets.json").write_bytes(damage)
    async with open_test_store() as opened:
        assert [bucket.name for bucket in opened.store.buckets.list("alpha")] == ["bucket", "made-here"]
        assert (tmp_path / "disk" / "buckets.unreadable").read_bytes() == damage


async def test_bucket_limits(open_test_store: OpenStore) -> None:
    few = Tenant("few", buckets=("bucket",), max_buckets=2)
    async with open_test_store(tenants=(few,)) as opened:
        await opened.put("k", b"", tenant=few)
        with pytest.raises(BucketNotEmpty):
            await opened.store.buckets.delete("few", "bucket")
        await opened.store.buckets.create(few, "second")
        with pytest.raises(TooManyBuckets):
            await opened.store.buckets.create(few, "third")


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_match_finds_the_longest_prefix_and_leases_it(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        hashes = b"".join([chunk_hash(number) for number in range(5)])
        assert opened.store.match("alpha", "bucket", SPACE.id, hashes, 30.0).nbytes == []
        await put_chunks(opened, 0, 1, 3)
        match = opened.store.match("alpha", "bucket", SPACE.id, hashes, 30.0)
        assert match.nbytes == [len(chunk(0)[1])] * 2
        assert opened.store.match("beta", "bucket", SPACE.id, hashes, 30.0).nbytes == []
        entry = opened.store._index.get("alpha", "bucket", chunk(0)[0])
        assert entry.leases == 1
        with pytest.raises(NoSuchLease):
            opened.store.release("beta", match.lease)
        opened.store.release("alpha", match.lease)
        with pytest.raises(NoSuchLease):
            opened.store.release("alpha", match.lease)
        assert entry.leases == 0
        stats = opened.store.stats(ALPHA)
        assert (stats.match_chunks_asked, stats.match_chunks_found, stats.leases) == (10, 2, 0)


async def test_lease_ends_at_its_deadline(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_chunks(opened, 0)
        match = opened.store.match("alpha", "bucket", SPACE.id, chunk_hash(0), 0.05)
        entry = opened.store._index.get("alpha", "bucket", chunk(0)[0])
        assert (entry.leases, opened.store.stats(ALPHA).leases) == (1, 1)
        await asyncio.sleep(0.06)
        assert (opened.store.stats(ALPHA).leases, entry.leases) == (0, 0)
        with pytest.raises(NoSuchLease):
            opened.store.release("alpha", match.lease)


async def put_chunks(opened: Opened, *numbers: int) -> None:
    await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    for number in numbers:
        await opened.put(*chunk(number))


async def read_zeros(views: Any) -> None:
    async for view in views:
        assert bytes(view) == bytes(len(view))


def must_not_exist(current: object) -> None:
    if current is not None:
        raise PreconditionFailed("If-None-Match")


def flip_stored(opened: Any, key: str, offset: int) -> None:
    entry = opened.store._index.get("alpha", "bucket", key)
    path = opened.disk.path(entry.copies[1])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x01")
