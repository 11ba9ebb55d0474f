"""Several tiers under memory: what each gets, what is read from where, and what two gateways share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.config import Seconds, Size
from kvgate.errors import NoSuchKey, TierAway, TierError, UnknownSpace
from kvgate.messages import views
from kvgate.store.retention import TTL
from kvgate.tiers.base import HERE, Name, Record, Tier
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.fs import FsConfig, FsTier
from kvgate.tiers.rules import TierRules
from tests.chunks import SPACE, chunk, chunk_hash
from tests.store.conftest import ALPHA, MiB, Opened, OpenStore, open_store_in

MANIFEST = f"kv/{SPACE.id}/manifest.json"
HASHES = b"".join(chunk_hash(number) for number in range(40))


def lmcache_key(number: int) -> str:
    """A key of another KV system, whose objects may be of any length and lie in shared tiers."""
    return f"model@1@0@{number:064x}@half"


def disk(path: Path, name: str, capacity_nbytes: int = 256 * MiB) -> Tier:
    tier = DiskTier(DiskConfig(path=path / name, capacity=Size(capacity_nbytes)))
    tier.name = name
    return tier


def shared(path: Path, name: str = "fs") -> Tier:
    tier = FsTier(FsConfig(path=path / name, keep_free=Size(0)))
    tier.name = name
    return tier


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():
            await asyncio.sleep(0.005)


async def put_prompt(opened: Opened, count: int) -> None:
    await opened.put(MANIFEST, SPACE.canonical_json())
    for number in range(count):
        await opened.put(*chunk(number))


# --- what each tier gets ----------------------------------------------------------------------------------------------


async def test_every_tier_that_is_written_back_gets_its_copy(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store(below=[disk(tmp_path, "slow"), shared(tmp_path)]) as opened:
        await put_prompt(opened, 1)
        key, _ = chunk(0)
        await opened.put("opaque", b"of one gateway")
        await until(lambda: opened.places(key) == ["host", "disk", "slow", "fs"])
        await until(lambda: opened.places("opaque") == ["host", "disk", "slow"])
        await opened.store.flush()
        assert opened.places("opaque") == ["host", "disk", "slow"]


async def test_what_a_tier_is_never_written_it_never_gets(open_test_store: OpenStore, tmp_path: Path) -> None:
    rules = {"slow": TierRules(write="never")}
    async with open_test_store(below=[disk(tmp_path, "slow")], rules=rules) as opened:
        await opened.put("k", b"body")
        await opened.store.flush()
        assert opened.places("k") == ["host", "disk"]


async def test_put_is_answered_when_every_tier_that_is_written_through_has_it(
    open_test_store: OpenStore, tmp_path: Path
) -> None:
    rules = {"fs": TierRules(write="through")}
    async with open_test_store(below=[shared(tmp_path)], rules=rules, ack="disk") as opened:
        await put_prompt(opened, 3)
        assert all(opened.places(chunk(number)[0]) == ["host", "disk", "fs"] for number in range(3))


async def test_put_fails_and_leaves_nothing_when_a_tier_that_is_written_through_fails(
    open_test_store: OpenStore, tmp_path: Path
) -> None:
    fs = shared(tmp_path)
    rules = {"fs": TierRules(write="through")}
    async with open_test_store(below=[fs], rules=rules) as opened:
        (tmp_path / "fs" / "objects").rmdir()
        (tmp_path / "fs" / "objects").write_text("in the way")
        with pytest.raises(TierError):
            await opened.put(lmcache_key(0), b"body")
        with pytest.raises(NoSuchKey):
            await opened.get(lmcache_key(0))
        assert opened.store._quota.used("alpha") == 0
        await opened.put("opaque", b"which that tier would not get")


@pytest.mark.parametrize("above", ["host", "disk"])
async def test_what_leaves_a_tier_is_in_the_one_below(open_test_store: OpenStore, tmp_path: Path, above: str) -> None:
    """Nothing is lost while there is room below, whatever pushes it out above."""
    rules = {"slow": TierRules(write="on-evict")}
    has_disk = above == "disk"
    async with open_test_store(
        memory_nbytes=8 * MiB,
        disk_nbytes=16 * MiB if has_disk else None,
        below=[disk(tmp_path, "slow")],
        rules=rules,
        window=MiB,
    ) as opened:
        bodies = {f"k{number}": os.urandom(MiB) for number in range(40)}
        for key, body in bodies.items():
            await opened.put(key, body)
        for key, body in bodies.items():
            assert await opened.get(key) == body
        assert opened.sample("kvgate_stranded_objects_total", tier="slow", reason="evicted") == 0


async def test_what_a_shared_tier_is_too_slow_for_goes_and_is_counted(
    open_test_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: memory is given to what comes."""
    fs = shared(tmp_path)
    stalled = asyncio.Event()
    begin = fs.begin

    async def begin_late(tenant: str, nbytes: int | None) -> object:
        await stalled.wait()
        return await begin(tenant, nbytes)

    monkeypatch.setattr(fs, "begin", begin_late)
    async with open_test_store(memory_nbytes=8 * MiB, disk_nbytes=None, below=[fs], window=MiB) as opened:
        for number in range(20):
            await opened.put(lmcache_key(number), os.urandom(MiB))
        lost = opened.sample("kvgate_stranded_objects_total", tier="fs", reason="evicted")
        assert 20 - lost == len(opened.keys()) >= 5
        stalled.set()
        await until(lambda: "fs" in opened.places(lmcache_key(19)))


async def test_tier_that_admits_at_the_second_use_is_written_then(open_test_store: OpenStore) -> None:
    rules = {"disk": TierRules(eviction="second-touch")}
    async with open_test_store(disk_nbytes=9 * MiB, rules=rules) as opened:
        for number in range(8):  # while the tier has room, it takes everything
            await opened.put(f"k{number}", os.urandom(MiB))
        await opened.store.flush()
        assert "disk" in opened.places("k7")
        await opened.put("once", os.urandom(MiB))
        await opened.put("twice", os.urandom(MiB))
        await opened.store.flush()
        assert opened.places("once") == opened.places("twice") == ["host"]
        assert opened.sample("kvgate_not_admitted_objects_total", tier="disk", reason="policy") == 2
        await opened.get("twice")
        await opened.store.flush()
        assert opened.places("once") == ["host"]
        assert opened.places("twice") == ["host", "disk"]


async def test_chunks_that_are_matched_again_are_worth_a_write(open_test_store: OpenStore) -> None:
    rules = {"disk": TierRules(eviction="duel")}
    async with open_test_store(rules=rules) as opened:
        await put_prompt(opened, 3)
        opened.store.match("alpha", "bucket", SPACE.id, HASHES[: 2 * 32], 1.0)
        await opened.store.flush()
        assert opened.places(chunk(1)[0]) == ["host", "disk"]


async def test_write_budget_of_a_tier_is_kept(open_test_store: OpenStore) -> None:
    rules = {"disk": TierRules(write_budget=Size(MiB), write_burst=Size(5 * MiB))}
    async with open_test_store(rules=rules) as opened:
        for number in range(10):
            await opened.put(f"k{number}", os.urandom(MiB))
        await opened.store.flush()
        assert [opened.places(f"k{number}") for number in range(10)] == [["host", "disk"]] * 5 + [["host"]] * 5
        assert opened.sample("kvgate_not_admitted_objects_total", tier="disk", reason="budget") == 5


async def test_what_the_tier_below_refuses_goes_when_its_turn_comes(open_test_store: OpenStore, tmp_path: Path) -> None:
    rules = {"slow": TierRules(write="on-evict", write_budget=Size(MiB), write_burst=Size(10 * MiB))}
    async with open_test_store(
        memory_nbytes=8 * MiB, disk_nbytes=None, below=[disk(tmp_path, "slow")], rules=rules, window=MiB
    ) as opened:
        for number in range(40):
            await opened.put(f"k{number}", os.urandom(MiB))
        await opened.store.flush()
        assert 12 <= len(opened.keys()) <= 18


# --- what is read from where ------------------------------------------------------------------------------------------


async def forget_upper(opened: Opened, key: str, *tiers: str) -> None:
    """Take the copies in the tiers of these names away."""
    await opened.store.flush()
    copies = opened.store._placement.copies
    entry = opened.store._index.get("alpha", "bucket", key)
    assert entry is not None
    for rank, tier in enumerate(copies.tiers):
        if tier.name in tiers:
            copies.drop_copy(entry, rank)


async def test_what_is_brought_up_comes_to_the_tiers_in_between(open_test_store: OpenStore, tmp_path: Path) -> None:
    body = os.urandom(3 * MiB)
    async with open_test_store(below=[disk(tmp_path, "slow")]) as opened:
        await opened.put("k", body)
        await forget_upper(opened, "k", "host", "disk")
        assert opened.places("k") == ["slow"]
        assert await opened.get("k") == body
        await until(lambda: opened.places("k") == ["host", "disk", "slow"])


@pytest.mark.parametrize(("promote", "reads"), [("always", 1), ("second-touch", 2), ("never", None)])
async def test_when_it_comes_to_memory_is_the_rule_of_the_tier(
    open_test_store: OpenStore, promote: str, reads: int | None
) -> None:
    body = os.urandom(3 * MiB + 5)
    rules = {"disk": TierRules(promote=promote)}  # type: ignore[arg-type]
    async with open_test_store(rules=rules) as opened:
        await opened.put("k", body)
        await forget_upper(opened, "k", "host")
        for read in range(1, 4):
            assert await opened.get("k") == body
            await opened.store._placement.copies.wait_for_background()
            assert ("host" in opened.places("k")) == (reads is not None and read >= reads)


@pytest.mark.parametrize("nbytes", [5 * MiB + 3, 40 * MiB + 1])
@pytest.mark.parametrize("at", [0, 4 * MiB + 1])
async def test_bad_block_in_one_tier_is_read_from_the_next(
    open_test_store: OpenStore, tmp_path: Path, nbytes: int, at: int
) -> None:
    """Into memory or through a window, from the beginning or in the middle of the way."""
    body = os.urandom(nbytes)
    async with open_test_store(memory_nbytes=16 * MiB, below=[disk(tmp_path, "slow")], window=MiB) as opened:
        await opened.put("k", body)
        await until(lambda: "slow" in opened.places("k"))
        await forget_upper(opened, "k", "host")
        [path] = [path for path in (tmp_path / "disk" / "objects").glob("*/*") if path.stat().st_size > nbytes]
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([body[at] ^ 1]))
        assert await opened.get("k") == body
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1
        await opened.store._placement.copies.wait_for_background()
        assert "slow" in opened.places("k")


@pytest.mark.parametrize("turns", range(8))
async def test_object_that_is_deleted_as_its_read_begins_is_whole_or_missing(
    open_test_store: OpenStore, turns: int
) -> None:
    body = os.urandom(3 * MiB)
    async with open_test_store() as opened:
        await opened.put("k", body)
        await forget_upper(opened, "k", "host")
        reading = asyncio.create_task(opened.get("k"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await opened.store.delete("alpha", "bucket", "k")
        try:
            assert await reading == body
        except NoSuchKey:
            assert opened.keys() == []


async def test_tier_that_brings_nothing_is_overtaken_by_the_next(
    open_test_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(3 * MiB)
    rules = {"disk": TierRules(hedge_after=Seconds(0.05))}
    async with open_test_store(below=[disk(tmp_path, "slow")], rules=rules) as opened:
        await opened.put("k", body)
        await until(lambda: "slow" in opened.places("k"))
        await forget_upper(opened, "k", "host")
        assert opened.disk is not None
        reader_of, released = opened.disk.open, asyncio.Event()

        class Stalled:
            def __init__(self, reader: object) -> None:
                self._reader = reader

            async def read_into(self, *args: object) -> object:
                await released.wait()
                return await self._reader.read_into(*args)  # type: ignore[attr-defined]

            async def close(self) -> None:
                await self._reader.close()  # type: ignore[attr-defined]

        monkeypatch.setattr(opened.disk, "open", lambda record, copy: Stalled(reader_of(record, copy)))
        assert await opened.get("k") == body
        assert opened.sample("kvgate_hedged_reads_total", tier="slow", reason="late") == 1
        released.set()


async def test_mover_makes_a_copy_in_any_tier_from_any_other(open_test_store: OpenStore, tmp_path: Path) -> None:
    body = os.urandom(9 * MiB + 77)
    rules = {"slow": TierRules(write="never"), "fs": TierRules(write="never")}
    below = [disk(tmp_path, "slow"), shared(tmp_path)]
    async with open_test_store(below=below, rules=rules, window=MiB) as opened:
        key = lmcache_key(1)
        await opened.put(key, body)
        await opened.store.flush()
        entry = opened.store._index.get("alpha", "bucket", key)
        assert entry is not None
        mover, copies = opened.store._placement.mover, opened.store._placement.copies
        await forget_upper(opened, key, "host")
        await asyncio.gather(*[mover.bring(entry, rank) for rank in (2, 2, 3, 2)])
        assert opened.places(key) == ["disk", "slow", "fs"]
        await forget_upper(opened, key, "disk", "slow")
        assert opened.places(key) == ["fs"]
        await mover.bring(entry, 1)
        await mover.bring(entry, 0)
        assert opened.places(key) == ["host", "disk", "fs"]
        copies.drop_copy(entry, 0)
        assert await opened.get(key) == body


@pytest.mark.parametrize("newer_in", ["disk", "slow"])
async def test_of_two_versions_that_survive_the_newer_one_counts_and_the_older_is_gone_for_good(
    tmp_path: Path, newer_in: str
) -> None:
    """As after a kill between the writing of a version and the deletion of the last one in every tier."""
    async with open_store_in(tmp_path, below=[disk(tmp_path, "slow")]) as opened:
        await opened.put("k", b"older")
        await opened.put("other", b"which stays")
    only_disk = newer_in == "disk"
    below = [] if only_disk else [disk(tmp_path, "slow")]
    async with open_store_in(tmp_path, disk_nbytes=256 * MiB if only_disk else None, below=below) as opened:
        await opened.put("k", b"newer version")
    async with open_store_in(tmp_path, below=[disk(tmp_path, "slow")]) as opened:
        assert opened.places("k") == [newer_in]
        copies = opened.store._placement.copies
        await copies.wait_for_background()
        entries = {tier.name: copies.residents[rank].usage("alpha") for rank, tier in enumerate(copies.tiers)}
        assert entries[newer_in] == (2, len(b"newer versionwhich stays"))
        older_in = "slow" if only_disk else "disk"
        assert entries[older_in] == (1, len(b"which stays"))
        assert len(list((tmp_path / older_in / "objects").glob("*/*"))) == 1
        assert await opened.get("k") == b"newer version"
        await opened.store.delete("alpha", "bucket", "k")
    async with open_store_in(tmp_path, below=[disk(tmp_path, "slow")]) as opened:
        assert opened.keys() == ["other"]


# --- two gateways and one shared tier ---------------------------------------------------------------------------------


class Pair:
    """Two gateways of one cluster."""

    def __init__(self, first: Opened, second: Opened) -> None:
        self.first, self.second = first, second


@pytest.fixture
async def two_stores(tmp_path: Path) -> object:
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_store_in(tmp_path / name, below=[shared(tmp_path)]))
            for name in ("a", "b")
        ]
        yield Pair(*opened)


async def settled(opened: Opened) -> None:
    await opened.store.flush()
    assert opened.store._placement.demotion.waiting(2) == 0


async def test_chunks_that_one_gateway_wrote_the_other_matches_and_reads(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 30)
    await settled(two_stores.first)
    second = two_stores.second.store
    match = await second.match_anywhere("alpha", "bucket", SPACE.id, HASHES, 5.0)
    assert len(match.nbytes) == 30
    assert [match.tiers[rank] for rank in match.ranks] == ["fs"] * 30
    for number in range(30):
        key, body = chunk(number)
        assert await two_stores.second.get(key) == body
    assert (await second.space("alpha", "bucket", SPACE.id)) == SPACE
    assert two_stores.second.sample("kvgate_discovered_objects_total", tier="fs") == 31
    assert second._quota.used("alpha") == two_stores.first.store._quota.used("alpha")


async def test_another_tenant_finds_nothing(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 2)
    await settled(two_stores.first)
    match = await two_stores.second.store.match_anywhere("beta", "bucket", SPACE.id, HASHES, 5.0)
    assert match.nbytes == []
    await two_stores.second.store.find("beta", "bucket", chunk(0)[0])
    with pytest.raises(NoSuchKey):
        two_stores.second.store.stat("beta", "bucket", chunk(0)[0])


async def test_opaque_objects_stay_with_their_gateway(two_stores: Pair) -> None:
    await two_stores.first.put("notes.txt", b"mine")
    await settled(two_stores.first)
    assert not two_stores.second.store.may_find("alpha", "bucket", "notes.txt")
    await two_stores.second.store.find("alpha", "bucket", "notes.txt")
    with pytest.raises(NoSuchKey):
        two_stores.second.store.stat("alpha", "bucket", "notes.txt")


async def test_what_is_there_already_is_not_written_again(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 5)
    await settled(two_stores.first)
    await two_stores.second.put(MANIFEST, SPACE.canonical_json())
    for number in range(5):
        await two_stores.second.put(*chunk(number))
    await settled(two_stores.second)
    assert two_stores.second.places(chunk(4)[0]) == ["host", "disk", "fs"]
    assert two_stores.second.store._placement.copies.tiers[2].usage().nbytes == 0


async def test_each_gateway_keeps_its_own_body_of_a_key_and_the_first_one_is_shared(two_stores: Pair) -> None:
    key = lmcache_key(1)
    await two_stores.first.put(key, b"first")
    await settled(two_stores.first)
    await two_stores.second.put(key, b"second")
    await settled(two_stores.second)
    assert two_stores.second.places(key) == ["host", "disk"]
    assert await two_stores.second.get(key) == b"second"
    assert await two_stores.first.get(key) == b"first"
    assert two_stores.second.sample("kvgate_not_admitted_objects_total", tier="fs", reason="other body") == 1


async def test_deleted_object_is_gone_from_the_shared_tier(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 1)
    await settled(two_stores.first)
    key, _ = chunk(0)
    assert await two_stores.second.store.delete("alpha", "bucket", key)  # which it did not know of
    assert not await two_stores.second.store.delete("alpha", "bucket", key)
    await forget_upper(two_stores.first, key, "host", "disk")
    with pytest.raises(NoSuchKey):
        await two_stores.first.get(key)
    assert two_stores.first.sample("kvgate_lost_objects_total") == 1


async def test_deletion_that_a_tier_missed_is_made_up_for(two_stores: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the object is gone here, and who deletes it again is told that it is not gone everywhere."""
    await put_prompt(two_stores.first, 1)
    await settled(two_stores.first)
    (key, _), store = chunk(0), two_stores.first.store
    fs = store._placement.copies.tiers[2]
    delete, away = fs.delete, [True]

    async def delete_if_there(record: Record, copy: object) -> None:
        if away[0]:
            raise TierAway("it is not reached")
        await delete(record, copy)

    monkeypatch.setattr(fs, "delete", delete_if_there)
    for _ in range(2):
        with pytest.raises(TierAway):
            await store.delete("alpha", "bucket", key)
        await store.find("alpha", "bucket", key)
        with pytest.raises(NoSuchKey):
            store.stat("alpha", "bucket", key)
    away[0] = False
    await until(lambda: not store._placement.copies.is_undeleted(Name("alpha", "bucket", key)))
    assert not await store.delete("alpha", "bucket", key)
    await two_stores.second.store.find("alpha", "bucket", key)
    with pytest.raises(NoSuchKey):
        two_stores.second.store.stat("alpha", "bucket", key)


async def test_object_whose_lifetime_is_over_is_not_found(two_stores: Pair) -> None:
    first, second = two_stores.first, two_stores.second
    await first.put(lmcache_key(1), b"short", **{TTL: "3s"})
    await first.put(lmcache_key(2), b"long", **{TTL: "1h"})
    await settled(first)
    await second.store.find("alpha", "bucket", lmcache_key(1), lmcache_key(2))
    assert await second.get(lmcache_key(2)) == b"long"
    await until(lambda: second.keys() == [lmcache_key(2)])
    await until(lambda: second.store._quota.used("alpha") == 4)
    await second.store.find("alpha", "bucket", lmcache_key(1))
    with pytest.raises(NoSuchKey):
        second.store.stat("alpha", "bucket", lmcache_key(1))


async def test_what_is_found_takes_no_object_from_other_gateways(tmp_path: Path) -> None:
    """A tenant at its quota here forgets its oldest chunks for those that it finds, and deletes none of them."""
    nbytes = len(SPACE.canonical_json()) + 5 * len(chunk(0)[1])
    small = Tenant("alpha", buckets=("bucket",), quota_nbytes=nbytes)
    async with (
        open_store_in(tmp_path / "a", below=[shared(tmp_path)]) as first,
        open_store_in(tmp_path / "b", tenants=(small,), below=[shared(tmp_path)]) as second,
    ):
        await put_prompt(first, 12)
        await settled(first)
        for number in range(12):
            key, body = chunk(number)
            await second.store.find("alpha", "bucket", MANIFEST, key)
            assert await second.get(key) == body
            await settled(second)
        assert second.store._quota.used("alpha") <= nbytes
        await second.store._placement.copies.wait_for_background()
        for number in range(12):
            await forget_upper(first, chunk(number)[0], "host", "disk")
            assert await first.get(chunk(number)[0]) == chunk(number)[1]


async def test_absent_object_is_asked_for_once_in_a_while(two_stores: Pair) -> None:
    second, key = two_stores.second, chunk(7)[0]
    for _ in range(5):
        await second.store.find("alpha", "bucket", key)
    assert second.sample("kvgate_lookup_objects_total", tier="fs", result="miss") == 1
    with pytest.raises(UnknownSpace):
        await second.store.space("alpha", "bucket", SPACE.id)


async def test_many_requests_at_once_ask_once(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 1)
    await settled(two_stores.first)
    second, (key, body) = two_stores.second, chunk(0)
    await asyncio.gather(*[second.store.find("alpha", "bucket", key) for _ in range(50)])
    assert second.sample("kvgate_lookup_objects_total", tier="fs", result="hit") == 1
    assert await second.get(key) == body
    assert second.store._index.get("alpha", "bucket", key).copies[2] is HERE  # type: ignore[union-attr]


async def test_lookup_of_a_long_prompt_stops_at_its_first_gap(two_stores: Pair) -> None:
    await put_prompt(two_stores.first, 3)
    await settled(two_stores.first)
    await two_stores.second.store.match_anywhere("alpha", "bucket", SPACE.id, HASHES, 5.0)
    asked = sum(
        two_stores.second.sample("kvgate_lookup_objects_total", tier="fs", result=result) for result in ("hit", "miss")
    )
    assert asked == 8


async def test_restart_knows_what_the_shared_tier_holds(tmp_path: Path) -> None:
    """Usage is what it was, also of what lies in the shared tier only, and of what another gateway wrote."""
    async with open_store_in(tmp_path / "a", below=[shared(tmp_path)]) as opened:
        await put_prompt(opened, 6)
        await settled(opened)
    async with open_store_in(tmp_path / "b", below=[shared(tmp_path)]) as opened:
        await opened.store.match_anywhere("alpha", "bucket", SPACE.id, HASHES, 0.1)
        await opened.put(lmcache_key(1), b"mine")
        await settled(opened)
        await forget_upper(opened, lmcache_key(1), "host", "disk")
        used = opened.store._quota.used("alpha")
        assert used == 6 * len(chunk(0)[1]) + 4
    async with open_store_in(tmp_path / "b", below=[shared(tmp_path)]) as opened:
        assert opened.store._quota.used("alpha") == used
        assert opened.places(chunk(5)[0]) == opened.places(lmcache_key(1)) == ["fs"]
        assert await opened.get(lmcache_key(1)) == b"mine"
        assert await opened.store.delete("alpha", "bucket", lmcache_key(1))
    async with open_store_in(tmp_path / "b", below=[shared(tmp_path)]) as opened:
        assert opened.store._quota.used("alpha") == used - 4


async def test_what_a_restart_cut_off_on_its_way_is_written_after_it(tmp_path: Path) -> None:
    async with open_store_in(tmp_path / "a") as opened:
        await put_prompt(opened, 4)
        await opened.put("opaque", b"of one gateway")
    async with open_store_in(tmp_path / "a", below=[shared(tmp_path)]) as opened:
        await until(lambda: opened.places(chunk(3)[0]) == ["disk", "fs"])
        assert opened.places("opaque") == ["disk"]


async def test_file_of_what_is_known_can_be_lost_or_broken(tmp_path: Path) -> None:
    async with open_store_in(tmp_path / "a", disk_nbytes=256 * MiB, below=[shared(tmp_path)]) as opened:
        await put_prompt(opened, 2)
        await settled(opened)
        await forget_upper(opened, chunk(1)[0], "host", "disk")
    (tmp_path / "a" / "disk" / "known-fs.sqlite3").write_bytes(b"no database" * 1000)
    async with open_store_in(tmp_path / "a", below=[shared(tmp_path)]) as opened:
        with pytest.raises(NoSuchKey):
            opened.store.stat("alpha", "bucket", chunk(1)[0])
        await opened.store.find("alpha", "bucket", chunk(1)[0])
        assert await opened.get(chunk(1)[0]) == chunk(1)[1]


async def test_object_that_is_written_again_keeps_its_shared_copy(two_stores: Pair) -> None:
    opened, key = two_stores.first, lmcache_key(1)
    await opened.put(key, b"body")
    await settled(opened)
    written = opened.sample("kvgate_demoted_objects_total")
    await opened.put(key, b"body")
    await settled(opened)
    assert opened.places(key) == ["host", "disk", "fs"]
    assert opened.sample("kvgate_demoted_objects_total") == written + 1  # to the disk only
    await two_stores.second.store.find("alpha", "bucket", key)
    assert await two_stores.second.get(key) == b"body"


async def test_attributes_that_change_reach_the_shared_tier(two_stores: Pair) -> None:
    first, second, key = two_stores.first, two_stores.second, lmcache_key(1)
    await first.put(key, b"body", **{"x-amz-meta-a": "before"})
    await settled(first)
    await first.store.set_attributes(ALPHA, "bucket", key, lambda _: {"x-amz-meta-a": "after"})
    await settled(first)
    await until(lambda: first.places(key) == ["host", "disk", "fs"])
    await second.store.find("alpha", "bucket", key)
    assert second.store.stat("alpha", "bucket", key).attributes == {"x-amz-meta-a": "after"}
    assert await second.get(key) == b"body"


async def test_object_with_another_body_takes_the_place_of_its_last_version_everywhere(two_stores: Pair) -> None:
    opened, key = two_stores.first, lmcache_key(1)
    for version in range(5):
        await opened.put(key, b"version %d" % version)
    await settled(opened)
    await until(lambda: opened.places(key) == ["host", "disk", "fs"])
    await two_stores.second.store.find("alpha", "bucket", key)
    assert await two_stores.second.get(key) == b"version 4"


async def test_view_of_a_discovered_body_is_whole(two_stores: Pair) -> None:
    body = os.urandom(6 * MiB + 9)
    await two_stores.first.put(lmcache_key(3), body)
    await settled(two_stores.first)
    await two_stores.second.store.find("alpha", "bucket", lmcache_key(3))
    with two_stores.second.store.open_read("alpha", "bucket", lmcache_key(3)) as read:
        loaded = await read.load(100, 2 * MiB + 5)  # less than half of it: through a window, verified by its blocks
        assert b"".join([bytes(view) async for view in views(loaded)]) == body[100 : 2 * MiB + 5]
        loaded.close()
