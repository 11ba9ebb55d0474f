"""Pins and ends in a running store: they survive, are carried out, and keep to their limits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvgate.auth.tenants import Tenant
from kvgate.errors import BucketNotEmpty, NoSuchBucket, NoSuchKey, TooManyMarks
from kvgate.messages import views
from kvgate.store.ghosts import Fate
from kvgate.store.retention import TTL, Change, Pin, RetentionConfig
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def shown(opened: Opened) -> list[str]:
    return opened.keys()


async def put_for(opened: Opened, key: str, ttl: str, body: bytes = b"x") -> None:
    await opened.put(key, body, **{TTL: ttl})


async def rule(opened: Opened, prefix: str, tenant: str = "alpha", **change: object) -> None:
    await opened.store.keeper.keep_prefix(tenant, "bucket", prefix, Change(**change))  # type: ignore[arg-type]
    await opened.store.keeper.refresh_prefix(tenant, "bucket", prefix)


# --- eviction ---------------------------------------------------------------------------------------------------------


async def test_softly_pinned_objects_go_when_nothing_else_can(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB) as opened:
        for name in ("soft", "hard"):
            await opened.put(name, b"x" * MiB)
        assert await opened.keep("soft", pin=Pin.SOFT) == ["done"]
        assert await opened.keep("hard", pin=Pin.HARD) == ["done"]
        for number in range(60):
            await opened.put(f"k{number:02}", bytes(MiB))
        assert {"soft", "hard"} < set(shown(opened))
        keys = shown(opened)
        await opened.keep(*[key for key in keys if key != "hard"], pin=Pin.SOFT)
        for number in range(40):
            await opened.put(f"m{number:02}", bytes(MiB))
        assert "hard" in shown(opened)
        assert "soft" not in shown(opened)


async def test_a_soft_pin_does_not_push_out_a_neighbour(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB) as opened:
        await opened.put("b", b"b" * MiB, BETA)
        await rule(opened, "", pin=Pin.SOFT)
        for number in range(60):
            await opened.put(f"k{number:02}", bytes(MiB))
        assert opened.keys(BETA) == ["b"]


async def test_quota_evicts_softly_pinned_chunks_last(open_test_store: OpenStore) -> None:
    """See also `test_store.py`: at its quota, a tenant's chunks take the place of its own."""
    from tests.chunks import SPACE, chunk

    tenant = Tenant("alpha", buckets=("bucket",), quota_nbytes=20_000)
    async with open_test_store(tenants=(tenant,)) as opened:
        await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json(), tenant)
        keys = []
        for number in range(6):
            key, body = chunk(number)
            await opened.put(key, body, tenant)
            keys.append(key)
            if number == 0:
                await opened.keep(key, pin=Pin.SOFT)
        kept = [key for key in shown(opened) if not key.endswith(".json")]
        assert len(kept) < len(keys)
        assert keys[0] in kept


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_what_has_ended_is_removed_and_its_room_given_back(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_for(opened, "short", "300ms", b"x" * MiB)
        await put_for(opened, "long", "1h")
        await opened.put("called", b"y")
        assert await opened.keep("called", "none", ttl_ms=300) == ["done", "missing"]
        await rule(opened, "r/", ttl_ms=300)
        await opened.put("r/1", b"z")
        await until(lambda: shown(opened) == ["long"])
        with pytest.raises(NoSuchKey):
            opened.store.open_read("alpha", "bucket", "short")
        await until(lambda: opened.store.stats(ALPHA).objects == 1)
        assert opened.store.stats(ALPHA).nbytes == 1
        assert opened.sample("kvgate_expired_objects_total") == 3


async def test_a_reader_gets_every_byte_of_what_ends_meanwhile(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_for(opened, "k", "200ms", b"k" * MiB)
        with opened.store.open_read("alpha", "bucket", "k") as read:
            await until(lambda: shown(opened) == [])
            await asyncio.sleep(2.5)  # two steps of the keeper
            assert opened.store.stats(ALPHA).objects == 1
            body = await read.load(0, MiB)
            assert b"".join([bytes(view) async for view in views(body)]) == b"k" * MiB
            body.close()
        await until(lambda: opened.store.stats(ALPHA).objects == 0)


async def test_an_immutable_key_can_be_written_again_after_its_end(open_test_store: OpenStore) -> None:
    from tests.chunks import SPACE, chunk

    async with open_test_store() as opened:
        await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
        key, body = chunk()
        await opened.put(key, body, **{TTL: "100ms"})
        await until(lambda: key not in shown(opened))
        await opened.put(key, body, **{TTL: "1h"})
        assert key in shown(opened)
        await asyncio.sleep(1.5)
        assert await opened.get(key) == body


async def test_a_bucket_whose_objects_have_ended_can_be_deleted(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for number in range(1200):
            await put_for(opened, f"{number}", "1500ms")
        await rule(opened, "", ttl_ms=86_400_000)
        with pytest.raises(BucketNotEmpty):
            await opened.store.buckets.delete("alpha", "bucket")
        await until(lambda: shown(opened) == [])
        await opened.store.buckets.delete("alpha", "bucket")
        assert opened.store.stats(ALPHA).nbytes == 0
        await opened.store.buckets.create(ALPHA, "bucket")
        assert opened.store.keeper.usage("alpha").rules == []


# --- what survives ----------------------------------------------------------------------------------------------------


async def test_pins_ends_and_rules_survive_a_restart(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for key in ("hard", "soft", "until", "p/1", "called", "never", "plain", "replaced"):
            await opened.put(key, b"x")
        await put_for(opened, "put", "1h")
        await put_for(opened, "never", "1s")
        await opened.keep("never", ttl_ms=0)
        await opened.keep("hard", pin=Pin.HARD)
        await opened.keep("soft", pin=Pin.SOFT)
        await opened.keep("until", pin=Pin.HARD, pin_until_ms=time.time_ns() // 1_000_000 + 1500)
        await opened.keep("called", ttl_ms=3_600_000)
        await opened.keep("replaced", ttl_ms=500, pin=Pin.SOFT)
        await opened.put("replaced", b"y")
        await rule(opened, "p/", pin=Pin.SOFT, ttl_ms=7_200_000)
        ends = {key: opened.store.expiry(opened.entry(key).record) for key in shown(opened)}
        usage = opened.store.keeper.usage("alpha")
    for _ in range(2):
        async with open_test_store() as opened:
            await until(lambda: opened.entry("p/1").pin is Pin.SOFT)
            pins = {key: opened.entry(key).pin for key in shown(opened)}
            assert {key: pin for key, pin in pins.items() if pin and key != "until"} == {
                "hard": Pin.HARD,
                "soft": Pin.SOFT,
                "p/1": Pin.SOFT,
                "replaced": Pin.SOFT,
            }
            assert {key: opened.store.expiry(opened.entry(key).record) for key in shown(opened)} == ends
            assert opened.store.keeper.usage("alpha").rules == usage.rules
            await until(lambda: not opened.entry("until").pin)
            assert opened.store.keeper.usage("alpha").marks == usage.marks - 1
    with sqlite3.connect(_file(opened)) as file:
        assert {key for (key,) in file.execute("select key from marks")} == {
            "hard",
            "soft",
            "called",
            "never",
            "replaced",
        }
    file.close()


async def test_what_ended_while_the_gateway_was_down_is_not_seen_again(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_for(opened, "put", "100ms")
        await opened.put("called", b"x")
        await opened.put("r/1", b"x")
        await opened.keep("called", ttl_ms=100)
        await rule(opened, "r/", ttl_ms=100)
    await asyncio.sleep(0.2)
    async with open_test_store() as opened:
        assert shown(opened) == []
        await until(lambda: opened.store.stats(ALPHA).objects == 0)


async def test_a_pin_waits_for_an_object_that_was_lost_and_goes_with_one_that_was_deleted(
    open_test_store: OpenStore,
) -> None:
    async with open_test_store() as opened:
        for key in ("lost", "deleted"):
            await opened.put(key, b"x")
        await opened.keep("lost", "deleted", pin=Pin.HARD)
        await opened.store.delete("alpha", "bucket", "deleted")
        opened.store._placement.copies.drop(opened.entry("lost"))
        opened.store._placement.copies.lose_if_bare(opened.entry("lost"), Fate.GONE, 0)
        await opened.store._placement.copies.wait_for_background()
    async with open_test_store() as opened:
        assert shown(opened) == []
        for key in ("lost", "deleted"):
            await opened.put(key, b"x")
        assert opened.entry("lost").pin is Pin.HARD
        assert not opened.entry("deleted").pin


async def test_a_file_that_cannot_be_read_is_set_aside(
    open_test_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_test_store() as opened:
        await opened.put("k", b"x")
        await opened.keep("k", pin=Pin.HARD)
    _file(opened).write_bytes(b"this is no database, whatever its name says" * 100)
    async with open_test_store() as opened:
        assert await opened.get("k") == b"x"
        assert not opened.entry("k").pin
        await opened.keep("k", pin=Pin.SOFT)
    assert (tmp_path / "disk" / "owners.unreadable").exists()
    assert "owners.sqlite3 cannot be read" in caplog.text
    async with open_test_store() as opened:
        assert opened.entry("k").pin is Pin.SOFT


async def test_without_a_disk_pins_hold_until_the_end(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=None) as opened:
        await opened.put("k", b"x" * MiB)
        await opened.keep("k", pin=Pin.HARD)
        for number in range(30):
            await opened.put(f"m{number:02}", bytes(MiB))
        assert await opened.get("k") == b"x" * MiB


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_pins_cannot_fill_the_tiers(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, disk_nbytes=32 * MiB, tenants=(ALPHA,)) as opened:
        keys = [f"k{number:02}" for number in range(20)]
        for key in keys:
            await opened.put(key, bytes(MiB))
        states = await opened.keep(*keys, pin=Pin.HARD)
        assert states.count("done") == 16
        assert states.count("refused") == 4
        await rule(opened, "", pin=Pin.HARD)
        assert opened.store.keeper.usage("alpha").pinned_nbytes == 16 * MiB
        for number in range(40):
            await opened.put(f"m{number:02}", bytes(MiB))
        assert set(shown(opened)) > {key for key, state in zip(keys, states, strict=True) if state == "done"}


async def test_tenants_know_only_their_own(open_test_store: OpenStore) -> None:
    async with open_test_store(retention=RetentionConfig(max_marks=1)) as opened:
        await opened.put("k", b"x")
        await opened.put("k", b"y", BETA)
        await opened.put("m", b"y", BETA)
        await opened.keep("k", pin=Pin.HARD)
        await rule(opened, "k", pin=Pin.HARD)
        assert not opened.entry("k", BETA).pin
        assert await opened.keep("k", tenant=BETA, pin=Pin.SOFT) == ["done"]
        with pytest.raises(TooManyMarks):
            await opened.keep("m", tenant=BETA, pin=Pin.SOFT)
        assert (opened.store.keeper.usage("beta").rules, opened.store.keeper.usage("beta").marks) == ([], 1)
        with pytest.raises(NoSuchBucket):
            await opened.store.keeper.keep("gamma", "bucket", ["k"], Change(pin=Pin.HARD))


def _file(opened: Opened) -> Path:
    assert opened.disk is not None
    return opened.disk.folder / "owners.sqlite3"
