from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.errors import (
    ImmutableConflict,
    InvalidChunk,
    InvalidKey,
    InvalidPart,
    InvalidPartOrder,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PartTooSmall,
    PreconditionFailed,
    QuotaExceeded,
    TooManyBuckets,
    UnknownSpace,
)
from kvgate.store.multipart import UPLOADS, MultipartUpload
from kvgate.tiers.base import Record
from tests.client.chunks import SPACE, chunks
from tests.store.conftest import ALPHA, BETA, MiB, OpenStore, fill


def attributes_of(upload: MultipartUpload, parts: Sequence[Record]) -> Mapping[str, str]:
    return upload.attributes


async def begin(opened: Any, key: str = "k", tenant: Tenant = ALPHA, **attributes: str) -> MultipartUpload:
    upload: MultipartUpload = await opened.store.multipart.create(tenant, "bucket", key, attributes)
    return upload


async def send(opened: Any, upload: MultipartUpload, number: int, body: bytes, tenant: Tenant = ALPHA) -> str:
    """Upload one part; its etag."""
    multipart = opened.store.multipart
    async with await multipart.open_part(tenant, upload, number, len(body)) as write:
        await fill(write, body)
        record: Record = await write.commit({}, multipart.while_open(upload))
    return record.etag


async def complete(
    opened: Any, upload: MultipartUpload, listed: list[tuple[int, str]], tenant: Tenant = ALPHA, **options: Any
) -> Record:
    record: Record = await opened.store.multipart.complete(
        tenant, upload.bucket, upload.key, upload.id, listed, describe=attributes_of, **options
    )
    return record


async def send_all(
    opened: Any, bodies: list[bytes], key: str = "k", tenant: Tenant = ALPHA
) -> tuple[MultipartUpload, list[tuple[int, str]]]:
    upload = await begin(opened, key, tenant)
    listed = [(number, await send(opened, upload, number, body, tenant)) for number, body in enumerate(bodies, 1)]
    return upload, listed


def files(folder: Path) -> int:
    return sum(1 for path in (folder / "objects").rglob("*") if path.is_file())


# --- completing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[0], [5], [MiB, MiB, 0], [3 * MiB, 3 * MiB, 7], [MiB + 1, 2 * MiB - 3, 4 * MiB + 5]])
async def test_parts_become_one_object(open_test_store: OpenStore, sizes: list[int], tmp_path: Path) -> None:
    bodies = [os.urandom(size) for size in sizes]
    async with open_test_store(min_part=MiB) as opened:
        upload = await begin(opened, **{"content-type": "a/b"})
        listed = [(3 * number, await send(opened, upload, 3 * number, body)) for number, body in enumerate(bodies, 1)]
        await send(opened, upload, 9999, b"not listed")
        assert opened.keys() == []
        record = await complete(opened, upload, listed)
        assert (record.nbytes, record.attributes) == (sum(sizes), {"content-type": "a/b"})
        assert await opened.get("k") == b"".join(bodies)
        assert opened.keys() == ["k"]
        assert opened.store.stats(ALPHA).nbytes == sum(sizes)
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert files(tmp_path / "disk") == 1
        assert opened.memory.arena.used_nbytes <= sum(sizes) + 4096
    async with open_test_store() as opened:
        assert await opened.get("k") == b"".join(bodies)
        assert opened.store.multipart.uploads("alpha", "bucket") == []


async def test_an_object_equals_the_same_bytes_sent_at_once(open_test_store: OpenStore) -> None:
    body = os.urandom(3 * MiB + 5)
    async with open_test_store(min_part=MiB) as opened:
        await opened.put("whole", body)
        upload, listed = await send_all(opened, [body[: MiB + 7], body[MiB + 7 :]])
        record = await complete(opened, upload, listed)
        assert record.etag == opened.store.stat("alpha", "bucket", "whole").etag


async def test_object_larger_than_memory(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(5 * MiB + 3) for _ in range(8)]
    async with open_test_store(memory_nbytes=16 * MiB, window=2 * MiB) as opened:
        upload, listed = await send_all(opened, bodies)
        await complete(opened, upload, listed)
        assert await opened.get("k") == b"".join(bodies)
        assert opened.places("k") == ["disk"]


async def test_the_list_of_parts_is_checked(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(MiB) for _ in range(3)]
    async with open_test_store(min_part=MiB) as opened:
        upload, listed = await send_all(opened, bodies)
        one, two, three = listed
        small = (4, await send(opened, upload, 4, b"small"))
        for wrong, error in [
            ([two, one], InvalidPartOrder),
            ([one, one], InvalidPartOrder),
            ([(0, one[1])], InvalidPartOrder),
            ([one, (2, one[1])], InvalidPart),
            ([one, (5, one[1])], InvalidPart),
            ([one, two, small, (5, three[1])], InvalidPart),
        ]:
            with pytest.raises(error):
                await complete(opened, upload, wrong)
        await send(opened, upload, 5, bodies[0])
        with pytest.raises(PartTooSmall):
            await complete(opened, upload, [one, small, (5, one[1])])
        assert [part.number for part in opened.store.multipart.parts(upload)] == [1, 2, 3, 4, 5]
        await complete(opened, upload, [one, three, small])
        assert await opened.get("k") == bodies[0] + bodies[2] + b"small"


async def test_the_last_part_of_a_number_counts(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload = await begin(opened)
        first, second = await send(opened, upload, 1, b"first"), await send(opened, upload, 1, b"second")
        with pytest.raises(InvalidPart):
            await complete(opened, upload, [(1, first)])
        assert opened.store.stats(ALPHA).nbytes == 6
        await complete(opened, upload, [(1, second)])
        assert await opened.get("k") == b"second"


async def test_completing_again_gives_the_same_while_the_object_is_there(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload, listed = await send_all(opened, [b"body"])
        records = await asyncio.gather(*[complete(opened, upload, listed, precondition=absent) for _ in range(5)])
        assert all(record is records[0] for record in records)
        assert await complete(opened, upload, listed, precondition=absent) is records[0]
        with pytest.raises(NoSuchUpload):
            await opened.store.multipart.complete(ALPHA, "bucket", "other", upload.id, listed, describe=attributes_of)
        await opened.put("k", b"body")
        with pytest.raises(NoSuchUpload):
            await complete(opened, upload, listed)


async def test_one_of_many_completions_wins_an_absent_key(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        uploads = [await send_all(opened, [f"body {number}".encode()]) for number in range(16)]
        results = await asyncio.gather(
            *[complete(opened, upload, listed, precondition=absent) for upload, listed in uploads],
            return_exceptions=True,
        )
        won = [number for number, result in enumerate(results) if isinstance(result, Record)]
        assert len(won) == 1
        assert all(isinstance(result, PreconditionFailed | Record) for result in results)
        assert await opened.get("k") == f"body {won[0]}".encode()
        assert len(opened.store.multipart.uploads("alpha", "bucket")) == 15


async def test_a_failed_completion_loses_nothing(open_test_store: OpenStore) -> None:
    def refuse(upload: MultipartUpload, parts: Sequence[Record]) -> Mapping[str, str]:
        raise PreconditionFailed("of the test")

    async with open_test_store() as opened:
        upload, listed = await send_all(opened, [b"body"])
        nbytes = opened.store.stats(ALPHA).nbytes
        with pytest.raises(PreconditionFailed):
            await opened.store.multipart.complete(ALPHA, "bucket", "k", upload.id, listed, describe=refuse)
        with pytest.raises(PreconditionFailed):
            await complete(opened, upload, listed, precondition=refused_at_the_second_look())
        assert (opened.keys(), opened.store.stats(ALPHA).nbytes) == ([], nbytes)
        await complete(opened, upload, listed)
        assert await opened.get("k") == b"body"


async def test_a_cancelled_completion_loses_nothing(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(5 * MiB) for _ in range(4)]
    async with open_test_store() as opened:
        upload, listed = await send_all(opened, bodies)
        await opened.store.flush()
        before = opened.memory.arena.used_nbytes
        for turns in range(1, 20, 3):
            running = asyncio.create_task(complete(opened, upload, listed))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (opened.keys(), opened.memory.arena.used_nbytes) == ([], before)
        await complete(opened, upload, listed)
        assert await opened.get("k") == b"".join(bodies)


async def test_a_lost_part_is_named_and_can_be_sent_again(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(MiB), os.urandom(MiB)]
    async with open_test_store(min_part=MiB) as opened:
        upload, listed = await send_all(opened, bodies)
    async with open_test_store(min_part=MiB) as opened:
        upload = opened.store.multipart.get("alpha", "bucket", "k", upload.id)
        entry = opened.store._index.get("alpha", UPLOADS, f"{upload.id}/00002")
        with opened.disk.path(entry.copies[1]).open("r+b") as file:
            file.write(bytes(100))
        for _ in range(2):
            with pytest.raises(InvalidPart):
                await complete(opened, upload, listed)
        assert opened.store.stats(ALPHA).nbytes == MiB
        assert opened.keys() == []
        await send(opened, upload, 2, bodies[1])
        await complete(opened, upload, listed)
        assert await opened.get("k") == b"".join(bodies)


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_an_aborted_upload_leaves_nothing(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store() as opened:
        upload, listed = await send_all(opened, [bytes(MiB), bytes(MiB)])
        await opened.store.flush()
        await opened.store.multipart.abort(upload)
        await opened.store.multipart.abort(upload)
        assert opened.store.stats(ALPHA).nbytes == opened.memory.arena.used_nbytes == files(tmp_path / "disk") == 0
        with pytest.raises(NoSuchUpload):
            await complete(opened, upload, listed)
        assert opened.store.multipart.uploads("alpha", "bucket") == []


async def test_a_part_in_flight_ends_with_its_upload(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload = await begin(opened)
        multipart = opened.store.multipart
        async with await multipart.open_part(ALPHA, upload, 1, 4) as write:
            await fill(write, b"late")
            await multipart.abort(upload)
            with pytest.raises(NoSuchUpload):
                await write.commit({}, multipart.while_open(upload))
        assert opened.store.stats(ALPHA).nbytes == opened.memory.arena.used_nbytes == 0


async def test_an_abort_overtakes_a_completion(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload, listed = await send_all(opened, [bytes(5 * MiB)] * 4)
        running = asyncio.create_task(complete(opened, upload, listed))
        for _ in range(5):
            await asyncio.sleep(0)
        await opened.store.multipart.abort(upload)
        with pytest.raises((NoSuchUpload, InvalidPart)):
            await running
        await opened.store.flush()  # a part on its way to disk holds its memory
        assert opened.keys() == []
        assert opened.store.stats(ALPHA).nbytes == opened.memory.arena.used_nbytes == 0


async def test_stale_uploads_are_given_up(open_test_store: OpenStore) -> None:
    async with open_test_store(upload_ttl=0.5) as opened:
        await send_all(opened, [b"part"])
        assert len(opened.store.multipart.uploads("alpha", "bucket")) == 1
        await asyncio.sleep(2)
        assert opened.store.multipart.uploads("alpha", "bucket") == []
        assert opened.store.stats(ALPHA).nbytes == 0
    async with open_test_store(upload_ttl=3600) as opened:
        await send_all(opened, [b"part"])
        opened.store.multipart.expire()
        assert len(opened.store.multipart.uploads("alpha", "bucket")) == 1


async def test_a_deleted_bucket_takes_its_uploads_with_it(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload, listed = await send_all(opened, [b"part"])
        await opened.store.buckets.delete("alpha", "bucket")
        with pytest.raises(NoSuchBucket):
            await complete(opened, upload, listed)
        await opened.store.buckets.create(ALPHA, "bucket")
        with pytest.raises(NoSuchUpload):
            await complete(opened, upload, listed)
        assert opened.store.stats(ALPHA).nbytes == 0


# --- surviving --------------------------------------------------------------------------------------------------------


async def test_uploads_survive_a_restart(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(MiB), os.urandom(MiB + 5), b"end"]
    async with open_test_store(min_part=MiB) as opened:
        upload = await begin(opened, "kept", **{"x-amz-meta-a": "1"})
        listed = [(number, await send(opened, upload, number, bodies[number - 1])) for number in (1, 2)]
        await begin(opened, "another")
    async with open_test_store(min_part=MiB) as opened:
        assert [each.key for each in opened.store.multipart.uploads("alpha", "bucket")] == ["another", "kept"]
        assert opened.store.multipart.get("alpha", "bucket", "kept", upload.id) == upload
        listed.append((3, await send(opened, upload, 3, bodies[2])))
        record = await complete(opened, upload, listed)
        assert record.attributes == {"x-amz-meta-a": "1"}
        assert await opened.get("kept") == b"".join(bodies)


async def test_parts_without_an_upload_are_deleted_at_the_start(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store() as opened:
        upload, _ = await send_all(opened, [b"part"])
        await opened.store.flush()
        await opened.store.delete("alpha", UPLOADS, f"{upload.id}/upload")
    async with open_test_store() as opened:
        assert opened.store.stats(ALPHA).nbytes == 0
        await opened.store._placement.copies.wait_for_background()
        assert files(tmp_path / "disk") == 0


async def test_parts_are_never_evicted(open_test_store: OpenStore) -> None:
    bodies = [os.urandom(5 * MiB) for _ in range(3)]
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=48 * MiB) as opened:
        upload, listed = await send_all(opened, bodies)
        for number in range(80):
            await opened.put(f"k{number:02}", bytes(MiB))
        assert len(opened.store.multipart.parts(upload)) == 3
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=48 * MiB) as opened:
        for number in range(80):
            await opened.put(f"k{number:02}", bytes(MiB))
        await complete(opened, upload, listed)
        assert await opened.get("k") == b"".join(bodies)


async def test_parts_stay_on_disk_until_the_object_is_there(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"the version before")
        upload, listed = await send_all(opened, [os.urandom(5 * MiB), b"end"])
        await opened.store.flush()
        await complete(opened, upload, listed)
        assert opened.places("k") == ["host"]
        await asyncio.sleep(0)
        assert files(tmp_path / "disk") >= 4, "the parts, the upload and the version before"
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert (opened.places("k"), files(tmp_path / "disk")) == (["host", "disk"], 1)


# --- whose, and how much ----------------------------------------------------------------------------------------------


async def test_uploads_belong_to_tenant_bucket_and_key(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        upload = await begin(opened)
        multipart = opened.store.multipart
        await opened.store.buckets.create(ALPHA, "other")
        for tenant, bucket, key in [("beta", "bucket", "k"), ("alpha", "other", "k"), ("alpha", "bucket", "l")]:
            with pytest.raises(NoSuchUpload):
                multipart.get(tenant, bucket, key, upload.id)
        assert multipart.uploads("beta", "bucket") == multipart.uploads("alpha", "other") == []
        with pytest.raises(NoSuchUpload):
            await complete(opened, upload, [(1, "x")], tenant=BETA)


async def test_the_bucket_of_uploads_is_never_seen(open_test_store: OpenStore, tmp_path: Path) -> None:
    few = Tenant("few", buckets=("bucket",), max_buckets=2)
    for _ in range(2):
        async with open_test_store(tenants=(few,)) as opened:
            await send_all(opened, [b"part"], tenant=few)
            store = opened.store
            assert "_uploads" not in [bucket.name for bucket in store.buckets.list("few")]
            with pytest.raises(NoSuchBucket):
                store.buckets.get("few", UPLOADS)
            with pytest.raises(NoSuchBucket):
                store.match("few", UPLOADS, "ab" * 32, bytes(32), 30.0)
            with pytest.raises(NoSuchBucket):
                await store.open_write(few, UPLOADS, "k", 1)
            await store.buckets.create(few, "second")
            with pytest.raises(TooManyBuckets):
                await store.buckets.create(few, "third")
            assert store.stats(few).objects == 0
    catalog = json.loads((tmp_path / "disk" / "buckets.json").read_text())
    assert [row["bucket"] for row in catalog["buckets"]] == ["bucket", "second"]


async def test_parts_count_against_the_quota_and_the_object_needs_none_besides(open_test_store: OpenStore) -> None:
    limited = Tenant("limited", buckets=("bucket",), quota_nbytes=10 * MiB)
    async with open_test_store(tenants=(limited,)) as opened:
        upload, listed = await send_all(opened, [bytes(5 * MiB), bytes(5 * MiB)], tenant=limited)
        with pytest.raises(QuotaExceeded):
            await send(opened, upload, 3, b"x", tenant=limited)
        await complete(opened, upload, listed, tenant=limited)
        assert opened.store.stats(limited).nbytes == 10 * MiB
    async with open_test_store(tenants=(limited,)) as opened:
        assert opened.store.stats(limited).nbytes == 10 * MiB
        await opened.store.delete("limited", "bucket", "k")
        assert opened.store.stats(limited).nbytes == 0


async def test_an_upload_that_replaces_an_object_gives_its_bytes_back(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", bytes(MiB))
        upload, listed = await send_all(opened, [b"part"])
        await complete(opened, upload, listed)
        assert opened.store.stats(ALPHA).nbytes == 4


@pytest.mark.parametrize("ack", ["memory", "disk"])
async def test_uploads_in_any_order_leave_the_books_balanced(
    open_test_store: OpenStore, tmp_path: Path, ack: str
) -> None:
    choose = random.Random(20261122)
    bodies = {number: os.urandom(choose.choice([0, 5, 70_000, MiB + 1])) for number in range(1, 6)}

    async def work(opened: Any) -> None:
        upload = await begin(opened, choose.choice("abc"))
        try:
            for number in choose.sample(range(1, 6), 3):
                await send(opened, upload, number, bodies[number])
            if choose.random() < 0.3:
                await opened.store.multipart.abort(upload)
            parts = opened.store.multipart.parts(upload)[: choose.randrange(1, 4)]
            record = await complete(opened, upload, [(part.number, part.record.etag) for part in parts])
            assert record.nbytes == sum(len(bodies[part.number]) for part in parts)
            if choose.random() < 0.2:
                await opened.store.delete("alpha", "bucket", upload.key)
        except NoSuchUpload:
            pass

    async with open_test_store(min_part=0, ack=ack) as opened:
        for _ in range(12):
            await asyncio.gather(*[work(opened) for _ in range(8)])
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert opened.store.multipart.uploads("alpha", "bucket") == []
        records = opened.store.list("alpha", "bucket").records
        assert opened.store.stats(ALPHA).nbytes == sum(record.nbytes for record in records)
        assert files(tmp_path / "disk") == len(records)
        assert opened.store.stats(ALPHA).tiers["disk"].objects == len(records)
        pages = sum(-(-record.nbytes // 4096) for record in records)
        assert opened.memory.arena.used_nbytes <= pages * 4096
        assert not opened.store._placement.copies._superseded
        assert not opened.store._placement.copies._awaited


# --- keys under kv/ ---------------------------------------------------------------------------------------------------


async def test_keys_are_checked_before_a_byte_is_sent(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        unknown = f"kv/{SPACE.id}/{'0' * 64}"
        for key, error in [("a/../b", InvalidKey), ("kv/other", InvalidKey), (unknown, UnknownSpace)]:
            with pytest.raises(error):
                await begin(opened, key)
        with pytest.raises(NoSuchBucket):
            await opened.store.multipart.create(ALPHA, "never", "k", {})
        assert opened.store.buckets.list("alpha")[0].name == "bucket"


async def test_a_chunk_in_parts_is_held_to_the_rules_of_chunks(open_test_store: OpenStore) -> None:
    async with open_test_store(min_part=1024) as opened:
        await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        (own, body), (other, wrong) = chunks(ALPHA.salt, 2)
        key, cut = str(ChunkKey(SPACE.id, own.hex())), len(body) // 3
        upload, listed = await send_all(opened, [wrong[:cut], wrong[cut:]], key)
        with pytest.raises(InvalidChunk):
            await complete(opened, upload, listed)
        assert opened.keys() == [str(ManifestKey(SPACE.id))]
        upload, listed = await send_all(opened, [body[:cut], body[cut:-1]], key)
        with pytest.raises(InvalidChunk):
            await complete(opened, upload, listed)
        upload, listed = await send_all(opened, [body[:cut], body[cut:]], key)
        record = await complete(opened, upload, listed)
        assert await opened.get(key) == body
        again, listed = await send_all(opened, [body[: 2 * cut], body[2 * cut :]], key)
        assert (await complete(opened, again, listed)) is record
        different, listed = await send_all(opened, [body[:-1] + bytes([body[-1] ^ 1])], key)
        with pytest.raises(ImmutableConflict):
            await complete(opened, different, listed)
        assert opened.store.match("alpha", "bucket", SPACE.id, own + other, 1.0).nbytes[0] == len(body)


async def test_parts_of_a_chunk_take_the_place_of_idle_chunks(open_test_store: OpenStore) -> None:
    prompt = chunks(ALPHA.salt, 6)
    size = len(prompt[0][1])
    manifest = SPACE.canonical_json()
    limited = Tenant("limited", buckets=("bucket",), quota_nbytes=4 * size + len(manifest))
    async with open_test_store(tenants=(limited,), min_part=1024) as opened:
        await opened.put(str(ManifestKey(SPACE.id)), manifest, tenant=limited)
        for own, body in prompt[:4]:
            await opened.put(str(ChunkKey(SPACE.id, own.hex())), body, tenant=limited)
        own, body = prompt[5]
        key = str(ChunkKey(SPACE.id, own.hex()))
        upload, listed = await send_all(opened, [body[:5000], body[5000:]], key, limited)
        await complete(opened, upload, listed, limited)
        assert await opened.get(key, tenant=limited) == body
        assert opened.store.stats(limited).nbytes <= limited.quota_nbytes
        opaque, _ = await send_all(opened, [b""], "opaque", limited)
        with pytest.raises(QuotaExceeded):
            await send(opened, opaque, 2, bytes(3 * size), limited)


# --- preconditions ----------------------------------------------------------------------------------------------------


def absent(current: Record | None) -> None:
    if current is not None:
        raise PreconditionFailed("If-None-Match")


def refused_at_the_second_look() -> Any:
    looks: list[object] = []

    def check(current: Record | None) -> None:
        looks.append(current)
        if len(looks) > 1:
            raise PreconditionFailed("of the test")

    return check


async def test_conditions_hold_for_the_object_that_is_there(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"one")
        upload, listed = await send_all(opened, [b"part"])
        with pytest.raises(PreconditionFailed):
            await complete(opened, upload, listed, precondition=absent)
        assert await opened.get("k") == b"one"
        await opened.store.delete("alpha", "bucket", "k")
        with pytest.raises(NoSuchKey):
            await opened.get("k")
        await complete(opened, upload, listed, precondition=absent)
        assert await opened.get("k") == b"part"
