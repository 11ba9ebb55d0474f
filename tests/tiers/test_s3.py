from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.config import Seconds, Size
from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierError, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import combine_blocks
from kvgate.metrics import Metrics
from kvgate.tiers import s3
from kvgate.tiers.base import HERE, Copy, Name, Record, SharedTier
from kvgate.tiers.guarded import guarded
from kvgate.tiers.rules import TierRules
from kvgate.tiers.s3 import S3Tier
from kvgate.tiers.s3_config import S3Config
from tests.contracts.shared_tier import SharedTierContract, name_of
from tests.contracts.tier import describe, filled
from tests.gateways import ALPHA, RunningGateway
from tests.stores import Seaweed, Store
from tests.tiers.unconditional import Unconditional


class S3Contract(SharedTierContract):
    capacity_nbytes: int | None = None

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def prefix(self) -> str:
        return f"shared/{uuid.uuid4().hex}"

    def make(self, store: Store, prefix: str) -> S3Tier:
        capacity = None if self.capacity_nbytes is None else Size(self.capacity_nbytes)
        return S3Tier(store.config(prefix=prefix, capacity=capacity, part=Size(5 << 20)))

    @pytest.fixture
    async def tier(self, store: Store, prefix: str) -> AsyncIterator[SharedTier]:
        tier = self.make(store, prefix)
        await tier.start(lambda _: None)
        yield tier
        await tier.close()

    @pytest.fixture
    async def other(self, tier: SharedTier, store: Store, prefix: str) -> AsyncIterator[SharedTier]:
        other = self.make(store, prefix)
        await other.start(lambda _: None)
        yield other
        await other.close()


class TestSeaweedFS(S3Contract):
    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Store:
        return seaweed.store


class TestSeaweedFSWithCapacity(S3Contract):
    capacity_nbytes = 64 << 20

    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Store:
        return seaweed.store


class TestGuarded(S3Contract):
    """As a gateway uses it."""

    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Store:
        return seaweed.store

    @pytest.fixture
    async def tier(self, store: Store, prefix: str) -> AsyncIterator[SharedTier]:
        rules = TierRules(timeout=Seconds(60.0), lookup_timeout=Seconds(60.0))  # for a slow machine
        tier = guarded(self.make(store, prefix), rules, Metrics())
        await tier.start(lambda _: None)
        yield tier
        await tier.close()


class TestAnotherGateway(S3Contract):
    @pytest.fixture
    def store(self, gateway: RunningGateway) -> Store:
        return Store(gateway.url, "alpha-bucket", ALPHA.access_key, ALPHA.secret_key)


class TestIgnoredConditions(S3Contract):
    """A store that replaces what is there without a word: all but races of different bodies is as elsewhere."""

    @pytest.fixture
    def store(self, seaweed: Seaweed) -> Iterator[Store]:
        with Unconditional(seaweed.store) as proxy:
            yield proxy.store

    async def test_of_many_writers_at_once_one_wins(  # type: ignore[override]
        self, tier: SharedTier, other: SharedTier, arena: Arena
    ) -> None:
        """One body stays, and it is one of those whose writers were told that they had succeeded."""
        bodies = [os.urandom(1000) for _ in range(8)]
        ended = await asyncio.gather(
            *[self.put(each, arena, "k", body) for body, each in zip(bodies, [tier, other] * 4, strict=True)],
            return_exceptions=True,
        )
        won = [result[0] for result in ended if not isinstance(result, BaseException)]
        assert all(isinstance(error, NotAdmitted) for error in ended if isinstance(error, BaseException))
        (found,) = await tier.lookup([name_of(describe("k", b"")[0])])
        assert found in won
        by_crc = {describe("k", body)[0].crc64nvme: body for body in bodies}
        assert await self.get(tier, arena, found, HERE) == by_crc[found.crc64nvme]


# --- what is there, and who may see it --------------------------------------------------------------------------------


def raw_key(prefix: str, key: str) -> str:
    return f"{prefix}/tenant/bucket/{key}.kvgate"


class TestInTheStore:
    """On SeaweedFS, with parts of 5 MiB."""

    put, get = S3Contract.put, S3Contract.get
    prefix = S3Contract.prefix
    arena = S3Contract.arena
    capacity_nbytes = None

    @pytest.fixture
    async def tier(self, seaweed: Seaweed, prefix: str) -> AsyncIterator[S3Tier]:
        self.items: list[tuple[Record, Copy]] = []
        async with opened(seaweed.store.config(prefix=prefix, part=Size(5 << 20))) as tier:
            yield tier
            for record, copy in self.items:
                await tier.delete(record, copy)

    @pytest.fixture
    def boto3(self, seaweed: Seaweed) -> Any:
        return seaweed.store.boto3()

    async def test_operator_sees_what_is_what(
        self, tier: S3Tier, arena: Arena, boto3: Any, prefix: str, seaweed: Seaweed
    ) -> None:
        body = os.urandom(3000)
        await self.put(tier, arena, "kv/a b", body)
        found = boto3.list_objects_v2(Bucket=seaweed.store.bucket, Prefix=prefix)["Contents"]
        assert [each["Key"] for each in found] == [f"{prefix}/=about.json", raw_key(prefix, "kv/a=20b")]
        raw = boto3.get_object(Bucket=seaweed.store.bucket, Key=raw_key(prefix, "kv/a=20b"))
        assert raw["Body"].read()[: len(body)] == body
        assert raw["ContentType"] == "application/octet-stream"

    @pytest.mark.parametrize("nbytes", [5 << 20, (5 << 20) + 1, (15 << 20) - 100, 15 << 20, (15 << 20) + 1])
    async def test_large_objects_go_in_parts(
        self, tier: S3Tier, arena: Arena, boto3: Any, prefix: str, seaweed: Seaweed, nbytes: int
    ) -> None:
        body = os.urandom(nbytes)
        record, copy = await self.put(tier, arena, "k", body)
        etag = boto3.head_object(Bucket=seaweed.store.bucket, Key=raw_key(prefix, "k"))["ETag"]
        assert etag.endswith(f'-{-(-nbytes // (5 << 20))}"')
        for forget in (True, False):
            if forget:
                tier.footers.forget(Name(*record[:3]))
            assert await self.get(tier, arena, record, copy) == body
            assert await self.get(tier, arena, record, copy, 5 << 20) == body[5 << 20 :]
        assert not boto3.list_multipart_uploads(Bucket=seaweed.store.bucket, Prefix=prefix).get("Uploads")

    async def test_progress_is_of_bytes_that_are_there(self, tier: S3Tier, arena: Arena) -> None:
        body = os.urandom((12 << 20) + 5)
        record, copy = await self.put(tier, arena, "k", body)
        reader = tier.open(record, copy)
        told: list[int] = []
        with arena.reserve("tenant", len(body)) as lease:

            def arrived(nbytes: int) -> None:
                told.append(nbytes)
                assert b"".join(map(bytes, lease.slices(0, nbytes))) == body[:nbytes]

            await reader.read_into(0, lease, len(body), arrived)
        assert told == sorted(told)
        assert told[-1] == 12 << 20

    async def test_body_of_a_window_is_spooled(
        self, seaweed: Seaweed, prefix: str, arena: Arena, tmp_path: Path
    ) -> None:
        body = os.urandom(13 << 20)
        record, blocks = describe("k", body)
        async with opened(seaweed.store.config(prefix=prefix, part=Size(5 << 20), spool=tmp_path)) as tier:
            for ending in ("finish", "abort"):
                upload = await tier.begin("tenant", len(body))
                with arena.reserve("tenant", 4 << 20) as window:
                    for at in range(0, len(body), 4 << 20):
                        piece = body[at : at + (4 << 20)]
                        position = 0
                        for view in window.slices(0, len(piece)):
                            view[:] = piece[position : position + len(view)]
                            position += len(view)
                        await upload.write(window, 0, len(piece))
                if ending == "finish":
                    await upload.finish(record, blocks)
                    assert await self.get(tier, arena, record, HERE) == body
                    await tier.delete(record, HERE)
                await upload.abort()
                assert list(tmp_path.iterdir()) == []
            assert tier.usage().nbytes == 0

    async def test_full_spool_is_a_full_tier(self, seaweed: Seaweed, prefix: str, arena: Arena) -> None:
        async with opened(seaweed.store.config(prefix=prefix, spool=Path("/proc/nowhere"))) as tier:
            upload = await tier.begin("tenant", None)
            with filled(arena, bytes(100)) as lease, pytest.raises(TierFull, match="cannot be kept on disk"):
                await upload.write(lease, 0, 100)
            await upload.abort()
            assert tier.usage().nbytes == 0

    async def test_another_body_than_was_described_is_refused(self, tier: S3Tier, arena: Arena) -> None:
        for nbytes in (1000, 6 << 20):
            record, _ = describe("k", bytes(nbytes))
            _, blocks = describe("k", b"\x01" * nbytes)
            upload = await tier.begin("tenant", nbytes)
            with filled(arena, bytes(nbytes)) as lease:
                await upload.write(lease, 0, nbytes)
            with pytest.raises(TierError, match="BadDigest"):
                await upload.finish(record._replace(crc64nvme=combine_blocks(blocks, nbytes)), blocks)
            assert await tier.lookup([name_of(record)]) == [None]
        assert tier.usage().nbytes == 0

    async def test_uploads_of_the_dead_are_aborted(
        self,
        seaweed: Seaweed,
        boto3: Any,
        monkeypatch: pytest.MonkeyPatch,
        prefix: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        bucket = seaweed.store.bucket
        ours = [raw_key(prefix, f"k{number}") for number in range(3)]
        theirs = f"{prefix}-other/k"
        for key in (*ours, theirs):
            boto3.create_multipart_upload(Bucket=bucket, Key=key)
        monkeypatch.setattr(s3, "_SWEEP_AFTER_S", 0.0)

        def left() -> set[str]:
            listed = boto3.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
            return {each["Key"] for each in listed}

        for age_s, expected in ((24 * 3600.0, {*ours, theirs}), (-10.0, {theirs})):
            monkeypatch.setattr(s3, "_ORPHAN_S", age_s)
            caplog.clear()
            async with opened(seaweed.store.config(prefix=prefix)) as tier, asyncio.timeout(30):
                await tier.lookup([Name("tenant", "bucket", "k")])
                while age_s < 0 and "aborted 3 multipart uploads" not in caplog.text:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.2)
            assert left() == expected

    async def test_cancelled_upload_leaves_no_parts(
        self, tier: S3Tier, arena: Arena, boto3: Any, prefix: str, seaweed: Seaweed
    ) -> None:
        body = os.urandom(30 << 20)
        record, blocks = describe("k", body)
        for pause_s in (0.0, 0.01, 0.03, 0.1):
            upload = await tier.begin("tenant", len(body))
            with filled(arena, body) as lease:
                await upload.write(lease, 0, len(body))
            task = asyncio.create_task(upload.finish(record, blocks))
            await asyncio.sleep(pause_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await upload.abort()
            await asyncio.gather(*tier._tasks)
            self.items.append((record, HERE))
        while arena.lease_count:
            await asyncio.sleep(0.01)
        for uploaded in boto3.list_multipart_uploads(Bucket=seaweed.store.bucket, Prefix=prefix).get("Uploads", []):
            # begun while its answer was not waited for any more: it has no part
            parts = boto3.list_parts(Bucket=seaweed.store.bucket, Key=uploaded["Key"], UploadId=uploaded["UploadId"])
            assert not parts.get("Parts")

    # --- lies ---

    @pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
    @pytest.mark.parametrize(
        "lie", ["short", "shorter", "long", "body", "last block", "footer", "tail", "empty", "other"]
    )
    async def test_lies_are_caught(
        self, tier: S3Tier, arena: Arena, boto3: Any, prefix: str, seaweed: Seaweed, lie: str, seen: bool
    ) -> None:
        bucket = seaweed.store.bucket
        body = os.urandom((11 << 20) + 1000)
        record, copy = await self.put(tier, arena, "k", body)
        await self.put(tier, arena, "other", body)
        raw = boto3.get_object(Bucket=bucket, Key=raw_key(prefix, "k"))["Body"].read()
        at = {"body": 12345, "last block": len(body) - 1, "footer": len(body) + 40, "tail": len(raw) - 9}.get(lie)
        if at is not None:
            told = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        elif lie == "other":
            told = boto3.get_object(Bucket=bucket, Key=raw_key(prefix, "other"))["Body"].read()
        else:
            told = {"short": raw[:-1], "shorter": raw[: 1 << 20], "long": raw + b"x", "empty": b""}[lie]
        boto3.put_object(Bucket=bucket, Key=raw_key(prefix, "k"), Body=told)
        known = tier.footers.seen(record)
        for start in (0, 5 << 20, 11 << 20):
            if seen and known is not None:
                tier.footers.remember(known)
            else:
                tier.footers.forget(name_of(record))
            try:
                read = await self.get(tier, arena, record, copy, start)
            except CorruptCopy:
                continue
            assert read == body[start:]
            assert lie == "body"
            assert start > 0
        whole = lie in ("body", "last block")
        assert await tier.lookup([name_of(record)]) == [record if whole else None]
        if whole:
            await tier.delete(record, copy)  # as the store does with a copy that it found corrupt
        await self.put(tier, arena, "k", body)
        assert await self.get(tier, arena, record, copy) == body

    @pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
    @pytest.mark.parametrize("nbytes", [100, 6 << 20, 12 << 20])
    async def test_another_version_is_not_the_object(
        self, tier: S3Tier, arena: Arena, seaweed: Seaweed, prefix: str, nbytes: int, seen: bool
    ) -> None:
        old, copy = await self.put(tier, arena, "k", os.urandom(6 << 20))
        async with opened(seaweed.store.config(prefix=prefix)) as other:
            await other.delete(old, copy)
            new, _ = await self.put(other, arena, "k", os.urandom(nbytes))
        if not seen:
            tier.footers.forget(name_of(old))
        for start in (0, 5 << 20):
            with pytest.raises(NotInTier):
                await self.get(tier, arena, old, copy, start)
        await tier.delete(old, copy)
        assert await tier.lookup([name_of(new)]) == [new]

    async def test_same_body_written_anew_is_the_object(
        self, tier: S3Tier, arena: Arena, seaweed: Seaweed, prefix: str
    ) -> None:
        body = os.urandom(12 << 20)
        old, copy = await self.put(tier, arena, "k", body)
        async with opened(seaweed.store.config(prefix=prefix, part=Size(6 << 20))) as other:
            await other.delete(old, copy)
            await self.put(other, arena, "k", body)
        assert await self.get(tier, arena, old, copy) == body

    async def test_deleting_what_others_wrote_gives_back_no_room(
        self, tier: S3Tier, arena: Arena, seaweed: Seaweed, prefix: str
    ) -> None:
        async with opened(seaweed.store.config(prefix=prefix)) as other:
            theirs, copy = await self.put(other, arena, "theirs", bytes(100_000))
            await self.put(tier, arena, "theirs", bytes(100_000))
            assert tier.usage().nbytes == 0
            await self.put(tier, arena, "ours", bytes(1000))
            before = tier.usage().nbytes
            assert 1000 < before < 2000
            await tier.delete(theirs, copy)
            assert tier.usage().nbytes == before


@contextlib.asynccontextmanager
async def opened(config: S3Config) -> AsyncIterator[S3Tier]:
    tier = S3Tier(config)
    await tier.start(lambda _: None)
    try:
        yield tier
    finally:
        await tier.close()
