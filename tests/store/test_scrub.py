"""The scrubber over a real store with real files, of which some go bad."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvgate.config import Seconds, Size
from kvgate.errors import NoSuchKey
from kvgate.store.scrub import Scrubber, ScrubConfig
from kvgate.tiers.fs import FsConfig, FsTier
from tests.chunks import SPACE, chunk
from tests.store.conftest import MiB, Opened, OpenStore

FAST = ScrubConfig(rate=Size(1 << 40), interval=Seconds(0))


def flip(path: Path, at: int = 0) -> None:
    """Change one bit of a file where it lies."""
    with path.open("r+b") as file:
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 4]))


def file_of(opened: Opened, key: str) -> Path:
    entry = opened.store._index.get("alpha", "bucket", key)
    assert entry is not None
    return opened.disk.path(entry.copies[1])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def scrubbed(opened: Opened) -> dict[str, Any]:
    """What a whole pass that begins now has found."""
    scrubber = opened.store.scrubber
    before = scrubber.report()["last"]
    assert scrubber.begin_now()
    await until(lambda: scrubber.report()["last"] != before)
    await opened.store._placement.copies.wait_for_background()
    return dict(scrubber.report()["last"])


async def test_a_pass_over_good_copies_verifies_every_one_in_every_tier(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=FAST) as opened:
        bodies = {f"k{number}": os.urandom(number * MiB + number) for number in range(7)}
        for key, body in bodies.items():
            await opened.put(key, body)
        await opened.store.flush()
        found = await scrubbed(opened)
        assert found["copies"] == 2 * len(bodies)
        assert found["nbytes"] == found["total_nbytes"] == 2 * sum(map(len, bodies.values()))
        assert [found[name] for name in ("corrupt", "gone", "unread", "lost", "strays")] == [0] * 5
        assert found["findings"] == []
        assert found["began_ms"] <= found["ended_ms"]
        for key in bodies:
            assert opened.places(key) == ["host", "disk"]
        assert opened.sample("kvgate_scrub_copies_total", tier="disk", result="good") == len(bodies)
        assert opened.sample("kvgate_scrub_bytes_total") == found["nbytes"]


@pytest.mark.parametrize("at", [0, 5 * MiB + 77, 6 * MiB + 400])
async def test_a_bad_file_is_set_aside_and_written_anew_from_memory(open_test_store: OpenStore, at: int) -> None:
    body = os.urandom(6 * MiB + 5)  # the last of the places is in the footer
    async with open_test_store(scrub=FAST) as opened:
        await opened.put("k", body)
        await opened.put("other", b"other")
        await opened.store.flush()
        bad = file_of(opened, "k")
        used_nbytes = opened.disk.usage().nbytes
        flip(bad, min(at, bad.stat().st_size - 30))
        found = await scrubbed(opened)
        assert (found["corrupt"], found["repaired"], found["lost"]) == (1, 1, 0)
        assert opened.places("k") == ["host", "disk"]
        assert file_of(opened, "k") != bad
        assert file_of(opened, "k").read_bytes()[: len(body)] == body
        assert not bad.exists()
        assert opened.disk.kept_aside()[0] == 1
        assert opened.disk.usage().nbytes == used_nbytes
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1
        (finding,) = found["findings"]
        assert (finding["tier"], finding["what"], finding["outcome"]) == ("disk", "corrupt", "repaired")
        assert len(finding["hash"]) == 8
        assert (await scrubbed(opened))["corrupt"] == 0
    async with open_test_store() as opened:
        assert await opened.get("k") == body, "what was written anew survives"


async def test_a_bad_file_without_another_copy_is_a_miss(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", os.urandom(2 * MiB))
        await opened.put("kept", b"kept")
    async with open_test_store(scrub=FAST) as opened:
        flip(file_of(opened, "k"), MiB + 3)
        found = await scrubbed(opened)
        assert (found["corrupt"], found["lost"], found["repaired"]) == (1, 1, 0)
        assert opened.keys() == ["kept"]
        (explained,) = await opened.store.explain.objects("alpha", "bucket", ["k"])
        assert (explained.status, explained.tier) == ("corrupt", "disk")
        assert opened.disk.kept_aside()[0] == 1


async def test_a_bad_file_is_written_anew_from_a_shared_tier_which_is_not_read_otherwise(
    open_test_store: OpenStore, tmp_path: Path
) -> None:
    def shared() -> FsTier:
        return FsTier(FsConfig(path=tmp_path / "fs"))

    key, body = chunk(0)
    async with open_test_store(below=[shared()]) as opened:
        await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
        await opened.put(key, body)
        await opened.store.flush()
    async with open_test_store(scrub=FAST, below=[shared()]) as opened:
        assert opened.places(key) == ["disk", "fs"]
        flip(file_of(opened, key))
        assert opened.store.scrubber.report()["tiers"] == ["host", "disk"]
        found = await scrubbed(opened)
        assert (found["copies"], found["corrupt"], found["repaired"]) == (1, 1, 1), "the manifest was good"
        assert opened.sample("kvgate_scrub_copies_total", tier="fs", result="good") == 0
        assert file_of(opened, key).read_bytes()[: len(body)] == body
    async with open_test_store(scrub=replace(FAST, shared=True), below=[shared()]) as opened:
        await scrubbed(opened)
        assert opened.sample("kvgate_scrub_copies_total", tier="fs", result="good") == 2


async def test_a_file_that_is_gone_is_found_and_written_anew(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=FAST) as opened:
        await opened.put("k", b"body")
        await opened.store.flush()
        file_of(opened, "k").unlink()
        found = await scrubbed(opened)
        assert (found["gone"], found["corrupt"], found["repaired"]) == (1, 0, 1)
        assert file_of(opened, "k").exists()
        assert opened.disk.kept_aside() == (0, 0)


async def test_bad_memory_is_dropped_and_the_disk_serves(open_test_store: OpenStore) -> None:
    body = os.urandom(5 * MiB)
    async with open_test_store(scrub=FAST) as opened:
        await opened.put("k", body)
        await opened.store.flush()
        entry = opened.store._index.get("alpha", "bucket", "k")
        view = entry.copies[0].lease.slices(4 * MiB + 9, 4 * MiB + 10)[0]
        view[0] ^= 1
        found = await scrubbed(opened)
        assert (found["corrupt"], found["elsewhere"], found["lost"]) == (1, 1, 0)
        assert opened.places("k") == ["disk"]
        assert await opened.get("k") == body


async def test_where_memory_and_disk_are_both_bad_nothing_is_served_from_either(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=FAST) as opened:
        await opened.put("k", os.urandom(MiB))
        await opened.store.flush()
        entry = opened.store._index.get("alpha", "bucket", "k")
        entry.copies[0].lease.slices(0, 1)[0][0] ^= 1
        flip(file_of(opened, "k"))
        found = await scrubbed(opened)
        assert (found["corrupt"], found["lost"]) == (2, 1)
        with pytest.raises(NoSuchKey):
            await opened.get("k")


async def test_a_read_that_finds_a_bad_file_sets_it_aside_too(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", os.urandom(MiB))
    async with open_test_store() as opened:
        flip(file_of(opened, "k"))
        with pytest.raises(NoSuchKey):
            await opened.get("k")
        await opened.store._placement.copies.wait_for_background()
        assert opened.disk.kept_aside()[0] == 1


async def test_strays_are_set_aside_once_they_have_been_strays_for_long(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=FAST) as opened:
        await opened.put("k", b"body")
        await opened.store.flush()
        stray = opened.disk.path(4095)
        stray.write_bytes(b"what a crash left")
        assert (await scrubbed(opened))["strays"] == 0, "it may be on its way"
        opened.store.scrubber._stray_age_s = 0.0
        assert (await scrubbed(opened))["strays"] == 1
        assert not stray.exists()
        assert opened.places("k") == ["host", "disk"]
        assert await opened.get("k") == b"body"


async def test_a_pass_goes_on_after_a_restart_where_it_was(
    open_test_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvgate.store.scrub._RESUME_AFTER_S", 0.0)
    slow = ScrubConfig(rate=Size(10 * MiB), interval=Seconds(0))
    async with open_test_store() as opened:
        for number in range(10):
            await opened.put(f"k{number}", os.urandom(MiB))
    async with open_test_store(scrub=slow) as opened:
        assert opened.store.scrubber.begin_now()
        await until(lambda: (opened.store.scrubber.report()["running"] or {"copies": 0})["copies"] >= 2)
        began_ms = opened.store.scrubber.report()["running"]["began_ms"]
    kept = json.loads((tmp_path / "disk" / "scrub.json").read_text())
    assert kept["running"]["copies"] >= 2
    assert kept["cursor"][2].startswith("k")
    async with open_test_store(scrub=FAST) as opened:
        await until(lambda: opened.store.scrubber.report()["last"])
        last = opened.store.scrubber.report()["last"]
        assert last["began_ms"] == began_ms
        assert 10 <= last["copies"] <= 11
    async with open_test_store(scrub=FAST) as opened:
        await until(lambda: opened.store.scrubber.report()["last"])
        assert opened.store.scrubber.report()["last"] == last, "the last report survives"


async def test_progress_that_cannot_be_read_is_no_error(open_test_store: OpenStore, tmp_path: Path) -> None:
    for content in (b"{", b"[]", b'{"since_ms": 1, "last": {"x": 1}, "running": null, "cursor": null}'):
        (tmp_path / "disk").mkdir(exist_ok=True)
        (tmp_path / "disk" / "scrub.json").write_bytes(content)
        async with open_test_store(scrub=FAST) as opened:
            await opened.put("k", b"body")
            await opened.store.flush()
            assert (await scrubbed(opened))["copies"] == 2


async def test_it_reads_no_faster_than_its_rate(open_test_store: OpenStore) -> None:
    config = ScrubConfig(rate=Size(8 * MiB), interval=Seconds(0))
    async with open_test_store(scrub=config) as opened:
        for number in range(4):
            await opened.put(f"k{number}", os.urandom(MiB))
        await opened.store.flush()
        assert opened.store.scrubber.report()["pass_s"] == 1.0
        began = asyncio.get_running_loop().time()
        found = await scrubbed(opened)
        took_s = asyncio.get_running_loop().time() - began
        assert found["nbytes"] == 8 * MiB
        assert took_s >= (found["nbytes"] - MiB) / config.rate  # all but the last step has been waited for


async def test_it_gives_way_while_objects_are_moved(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=FAST) as opened:
        for number in range(30):
            await opened.put(f"k{number:02}", b"body")
        await opened.store.flush()
        scrubber, backlog = opened.store.scrubber, opened.store._placement.backlog
        backlog.begin()
        assert scrubber.begin_now()
        await asyncio.sleep(0.3)
        running = scrubber.report()["running"]
        assert running["copies"] < 30, "one step a second"
        backlog.end()
        await until(lambda: scrubber.report()["last"])
        assert scrubber.report()["last"]["copies"] == 60


async def test_passes_begin_by_themselves_at_the_interval(open_test_store: OpenStore) -> None:
    config = ScrubConfig(rate=Size(1 << 30), interval=Seconds(0.05))
    async with open_test_store(scrub=config) as opened:
        await opened.put("k", b"body")
        await until(lambda: opened.sample("kvgate_scrub_passes_total") >= 3)


async def test_off_it_does_nothing_and_says_so(open_test_store: OpenStore) -> None:
    async with open_test_store(scrub=ScrubConfig(rate=Size(0))) as opened:
        assert not opened.store.scrubber.begin_now()
        assert opened.store.scrubber.report()["state"] == "off"


async def test_objects_that_come_and_go_during_a_pass_are_no_findings(open_test_store: OpenStore) -> None:
    config = ScrubConfig(rate=Size(64 * MiB), interval=Seconds(0))
    async with open_test_store(scrub=config) as opened:
        for number in range(60):
            await opened.put(f"k{number:02}", os.urandom(MiB // 2))
        await opened.store.flush()
        scrubber: Scrubber = opened.store.scrubber
        assert scrubber.begin_now()
        for number in reversed(range(0, 60, 2)):
            await opened.store.delete("alpha", "bucket", f"k{number:02}")
            await opened.put(f"k{number + 1:02}", os.urandom(MiB // 2))
        await until(lambda: scrubber.report()["last"])
        last = scrubber.report()["last"]
        assert (last["corrupt"], last["gone"], last["lost"]) == (0, 0, 0)
        assert len(opened.keys()) == 30
