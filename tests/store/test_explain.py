"""What `explain` says, for everything that can become of an object in a real store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.space import Space
from kvgate.config import Seconds, Size
from kvgate.errors import NoSuchBucket, NoSuchKey, ObjectTooLarge, QuotaExceeded, TierAway, UnknownSpace
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.explain import Explanation
from kvgate.store.retention import Pin
from kvgate.store.store import open_store
from kvgate.tiers.base import Name, Record, Tier
from kvgate.tiers.fs import FsConfig, FsTier
from kvgate.tiers.guarded import guarded
from kvgate.tiers.host import HostConfig, HostTier
from kvgate.tiers.rules import TierRules
from tests.chunks import SPACE, chunk, chunk_hash
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore, fill


async def explain(opened: Opened, key: str, tenant: Tenant = ALPHA) -> Explanation:
    (explanation,) = await opened.store.explain.objects(tenant.name, "bucket", [key])
    return explanation


async def put_space(opened: Opened, space: Space = SPACE, tenant: Tenant = ALPHA) -> None:
    await opened.put(str(ManifestKey(space.id)), space.canonical_json(), tenant)


async def test_a_present_object_is_where_its_copies_are(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"body")
        await opened.store.flush()
        await opened.keep("k", pin=Pin.HARD, ttl_ms=60_000)
        with opened.store.open_read("alpha", "bucket", "k"):
            found = await explain(opened, "k")
        assert (found.status, found.tiers, found.nbytes) == ("present", ("host", "disk"), 4)
        assert (found.pin, found.leases, found.at_ms) == ("hard", 1, 0)
        assert found.expires_ms == 0, "what is pinned without an end has none"
        await opened.keep("k", pin=Pin.SOFT)
        found = await explain(opened, "k")
        assert (found.pin, found.leases) == ("soft", 0)
        assert 0 < found.expires_ms - found.modified_ms < 120_000
        assert found.modified_ms == opened.store.stat("alpha", "bucket", "k").mtime_ms
        await opened.put("k", b"another body")
        assert (await explain(opened, "k")).at_ms > 0, "it took the place of another body"


async def test_nothing_is_said_of_an_object_from_before_the_gateway_started(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        assert (await explain(opened, "k")).status == "not-written"
        await asyncio.sleep(1.1)  # times are kept in whole seconds
        await opened.store.buckets.create(ALPHA, "younger")
        (found,) = await opened.store.explain.objects("alpha", "younger", ["k"])
        assert found.status == "never-written"
        with pytest.raises(NoSuchBucket):
            await opened.store.explain.objects("alpha", "nowhere", ["k"])


async def test_deleted_objects_are_told_to_their_tenant_alone(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"body")
        await opened.store.delete("alpha", "bucket", "k")
        assert (await explain(opened, "k")).status == "deleted"
        assert (await explain(opened, "k", BETA)).status == "not-written"
        await opened.put("k", b"body")
        assert (await explain(opened, "k")).status == "present"


async def test_an_object_evicted_from_the_last_tier_is_told_with_tier_time_and_policy(
    open_test_store: OpenStore,
) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB) as opened:
        since_ms = opened.store.explain.since_ms("alpha")
        for number in range(60):
            await opened.put(f"k{number:02}", bytes(MiB))
            await opened.store.flush()
        found = await explain(opened, "k00")
        assert (found.status, found.tier) == ("evicted", "disk")
        assert found.at_ms >= since_ms - 1000
        assert "disk" in found.reason
        assert "lru" in found.reason


async def test_the_policy_that_is_named_is_that_of_the_tier(open_test_store: OpenStore) -> None:
    rules = {"host": TierRules(eviction="s3-fifo")}
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=None, rules=rules) as opened:
        for number in range(20):
            await opened.put(f"k{number:02}", bytes(MiB))
        reasons = [(await explain(opened, f"k{number:02}")).reason for number in range(20)]
        assert any("s3-fifo" in reason for reason in reasons)
        assert not any("lru" in reason for reason in reasons)


async def test_memory_alone_evicts_too(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=None) as opened:
        for number in range(20):
            await opened.put(f"k{number:02}", bytes(MiB))
        found = await explain(opened, "k00")
        assert (found.status, found.tier) == ("evicted", "host")


async def test_what_no_lower_tier_could_take_was_not_written_back(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=2 * MiB) as opened:
        await opened.put("big", bytes(3 * MiB))
        await opened.store.flush()
        assert opened.places("big") == ["host"]
        for number in range(20):
            await opened.put(f"k{number:02}", bytes(MiB))
            await opened.store.flush()
        found = await explain(opened, "big")
        assert (found.status, found.tier) == ("not-written-back", "host")


async def test_what_a_tier_did_not_admit_is_told_so_also_when_it_has_left_memory(open_test_store: OpenStore) -> None:
    rules = {"disk": TierRules(write_budget=Size(MiB), write_burst=Size(2 * MiB))}
    async with open_test_store(memory_nbytes=16 * MiB, rules=rules) as opened:
        await opened.put("first", bytes(3 * MiB))
        await opened.put("big", bytes(3 * MiB))
        await opened.store.flush()
        found = await explain(opened, "big")
        assert (found.status, found.tiers) == ("present", ("host",))
        assert found.reason == "in the host tier; the rules of the disk tier did not take it"
        for number in range(20):
            await opened.put(f"k{number:02}", bytes(MiB))
            await opened.store.flush()
        found = await explain(opened, "big")
        assert (found.status, found.tier) == ("refused-by-admission", "disk")


async def test_a_chunk_that_made_room_within_the_quota_is_told_so(open_test_store: OpenStore) -> None:
    _, body = chunk(0)
    tenant = Tenant("alpha", buckets=("bucket",), quota_nbytes=4 * len(body) + len(SPACE.canonical_json()))
    async with open_test_store(tenants=(tenant,)) as opened:
        await put_space(opened, tenant=tenant)
        for number in range(6):
            key, body = chunk(number)
            await opened.put(key, body, tenant)
        assert (await explain(opened, chunk(0)[0])).status == "evicted-by-quota"
        with pytest.raises(QuotaExceeded):
            await opened.put("other", bytes(10 * len(body)), tenant)
        assert (await explain(opened, "other")).status == "refused-by-quota"


async def test_refused_uploads_are_told_by_what_they_were_refused_for(open_test_store: OpenStore) -> None:
    async with open_test_store(max_object=2 * MiB) as opened:
        with pytest.raises(ObjectTooLarge):
            await opened.put("large", bytes(3 * MiB))
        assert (await explain(opened, "large")).status == "refused-too-large"
        key, body = chunk(0)
        with pytest.raises(UnknownSpace):
            await opened.put(key, body)
        assert (await explain(opened, key)).status == "refused-space"
        await put_space(opened)
        with pytest.raises(Exception, match=r".+"):
            await opened.put(key, body[:-1])
        assert (await explain(opened, key)).status == "refused-body"
        with pytest.raises(ConnectionResetError):
            async with await opened.store.open_write(ALPHA, "bucket", "half", 100) as write:
                await fill(write, b"half")
                raise ConnectionResetError
        assert (await explain(opened, "half")).status == "broken-off"
        await opened.put(key, body)
        assert (await explain(opened, key)).status == "present"
        with pytest.raises(ConnectionResetError):
            async with await opened.store.open_write(ALPHA, "bucket", key, len(body)) as write:
                raise ConnectionResetError
        await opened.store.delete("alpha", "bucket", key)
        assert (await explain(opened, key)).status == "deleted", "what broke off had changed nothing"


async def test_a_corrupt_and_a_vanished_last_copy_are_told_apart(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store() as opened:
        for key in ("corrupt", "gone"):
            await opened.put(key, os.urandom(MiB))
            await opened.store.flush()
    async with open_test_store() as opened:
        for key in ("corrupt", "gone"):
            entry = opened.store._index.get("alpha", "bucket", key)
            path = opened.disk.path(entry.copies[1])
            if key == "gone":
                path.unlink()
            else:
                path.write_bytes(b"?" + path.read_bytes()[1:])
            with pytest.raises(NoSuchKey):
                await opened.get(key)
            found = await explain(opened, key)
            assert (found.status, found.tier) == (key, "disk")


async def test_another_space_with_the_same_hash_is_named_and_the_nearest_ones_with_what_differs(
    open_test_store: OpenStore,
) -> None:
    near = Space.from_manifest(SPACE.manifest() | {"dtype": "BF16"})
    far = Space.from_manifest(SPACE.manifest() | {"model": "other", "layers": 3, "rope": {}})
    async with open_test_store() as opened:
        for space in (SPACE, near, far):
            await put_space(opened, space)
        key, body = chunk(0)
        await opened.put(key, body)
        asked = str(ChunkKey(near.id, chunk_hash(0).hex()))
        assert (await explain(opened, asked)).elsewhere == SPACE.id
        assert (await explain(opened, str(ChunkKey(near.id, chunk_hash(1).hex())))).elsewhere == ""
        found = await opened.store.explain.nearest("alpha", "bucket", near.id, None)
        assert [(each.space, each.differs, each.chunks) for each in found] == [
            (SPACE.id, ("dtype",), 1),
            (far.id, ("model", "dtype", "layers", "rope"), 0),
        ]
        unknown = Space.from_manifest(SPACE.manifest() | {"lora": "sha256:" + "3" * 64})
        assert await opened.store.explain.nearest("alpha", "bucket", unknown.id, None) is None
        found = await opened.store.explain.nearest("alpha", "bucket", unknown.id, unknown)
        assert (found[0].space, found[0].differs) == (SPACE.id, ("lora",))
        assert await opened.store.explain.nearest("beta", "bucket", unknown.id, unknown) == []


class FarFolder(FsTier):
    """A shared folder whose file system can be cut off."""

    reachable = True

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        if not self.reachable:
            raise TierAway("the file system does not answer")
        return await super().lookup(names)


async def test_what_another_gateway_has_put_into_a_shared_tier_is_present_and_stays_there(tmp_path: Path) -> None:
    metrics = Metrics()

    def tiers() -> tuple[HostTier, list[Tier]]:
        folder = FsTier(FsConfig(path=tmp_path / "shared"))
        return HostTier(HostConfig(capacity=Size(16 * MiB), segment=Size(MiB))), [guarded(folder, TierRules(), metrics)]

    key, body = chunk(0)
    options = {"config": StoreConfig(), "metrics": metrics, "catalog": None}
    async with open_store(*tiers(), [ALPHA], **options) as store:
        opened = Opened(store, store._placement.copies.memory, None, metrics)
        await put_space(opened)
        await opened.put(key, body)
        await opened.put("opaque", b"body")
        await opened.store.flush()
    async with open_store(*tiers(), [ALPHA, BETA], **options) as store:
        asked = [chunk(1)[0], key, "opaque"]
        found = await store.explain.objects("alpha", "bucket", asked)
        assert [each.status for each in found] == ["not-written", "present", "not-written"]
        assert (found[1].tiers, found[1].nbytes) == (("fs",), len(body))
        assert store._index.get("alpha", "bucket", key) is None, "nothing is taken over"
        (found_by_beta,) = await store.explain.objects("beta", "bucket", [key])
        assert found_by_beta.status == "not-written"


async def test_what_lies_in_a_tier_that_is_away_or_may_lie_there_is_told_so(tmp_path: Path) -> None:
    metrics, folders = Metrics(), FarFolder(FsConfig(path=tmp_path / "shared"))
    tier = guarded(folders, TierRules(failures=1, retry_after=Seconds(3600.0)), metrics)
    memory = HostTier(HostConfig(capacity=Size(16 * MiB), segment=Size(MiB)))
    async with open_store(memory, [tier], [ALPHA], config=StoreConfig(), metrics=metrics, catalog=None) as store:
        opened = Opened(store, memory, None, metrics)
        await put_space(opened)
        key, body = chunk(0)
        await opened.put(key, body)
        await opened.store.flush()
        entry = store._index.get("alpha", "bucket", key)
        store._placement.copies.drop_copy(entry, 0)
        found = await explain(opened, key)
        assert (found.status, found.tiers) == ("present", ("fs",))
        folders.reachable = False
        with pytest.raises(TierAway):
            await tier.lookup([Name("alpha", "bucket", key)])
        assert store.explain.away() == ["fs"]
        found = await explain(opened, key)
        assert (found.status, found.tiers) == ("tier-away", ("fs",))
        found = await explain(opened, chunk(1)[0])
        assert (found.status, found.tier) == ("tier-away", "fs")
        with pytest.raises(TierAway):
            await store.delete("alpha", "bucket", str(ManifestKey(SPACE.id)))
        found = await explain(opened, str(ManifestKey(SPACE.id)))
        assert found.status == "deleted", "what is known to be gone is not sought"
        folders.reachable = True
