"""Jobs that compress and decompress, over a real store: what lies where afterwards, and what readers see meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from kvgate.errors import InvalidArgument, TierError
from kvgate.store.jobs import Job, JobsConfig, State
from kvgate.store.recoder import InUse
from kvgate.store.values import Selection
from kvgate.tiers.disk import DiskTier
from kvgate.tiers.disk_file import describe_file
from kvgate.tiers.disk_streams import footprint
from tests.store.conftest import ALPHA, MiB, Opened, OpenStore

ALL = Selection("bucket", None, "")
DISK = 1


def words(nbytes: int, seed: int = 1) -> bytes:
    generator = random.Random(seed)
    return b"".join(generator.choice([b"word ", b"another "]) for _ in range(nbytes // 5))[:nbytes].ljust(nbytes)


async def do(opened: Opened, kind: str, selection: Selection = ALL, **options: Any) -> Job:
    job = await opened.store.jobs.start("alpha", kind, selection, options)
    async with asyncio.timeout(60):
        while not job.has_ended:
            await asyncio.sleep(0.005)
    return job


async def put_cold(opened: Opened, bodies: dict[str, bytes]) -> None:
    for key, body in bodies.items():
        await opened.put(key, body)
    await opened.store.flush()
    assert (await do(opened, "clear", tier="host")).state is State.DONE


def counted(opened: Opened) -> int:
    assert opened.disk is not None
    nbytes = 0
    for path in (opened.disk.folder / "objects").glob("*/*"):
        with path.open("rb") as file:
            record, _, encoding = describe_file(file.fileno())
            nbytes += footprint(record.nbytes if encoding is None else encoding.stored_nbytes)
    return nbytes


def disk(opened: Opened) -> DiskTier:
    assert opened.disk is not None
    return opened.disk


async def test_there_and_back_over_a_restart(open_test_store: OpenStore) -> None:
    bodies = {f"k{number}": words(900_000 + number * 300_000, number) for number in range(6)}
    async with open_test_store() as opened:
        await put_cold(opened, bodies)
        plain_nbytes = disk(opened).usage().nbytes
        job = await do(opened, "compress")
        assert (job.state, job.done, job.skipped, job.unmet) == (State.DONE, 6, 0, 0)
        assert job.done_nbytes == sum(map(len, bodies.values()))
        assert job.saved_nbytes > job.done_nbytes // 2
        used = disk(opened).usage().nbytes
        assert counted(opened) == used < plain_nbytes // 2
        assert (await do(opened, "compress")).saved_nbytes == 0
        saved = job.saved_nbytes
    async with open_test_store() as opened:
        assert disk(opened).usage().nbytes == used
        assert opened.store.stats(ALPHA).nbytes == sum(map(len, bodies.values()))
        assert await opened.get("k5", 1_000_001, 1_300_000) == bodies["k5"][1_000_001:1_300_000]
        for key, body in bodies.items():
            assert await opened.get(key) == body
        job = await do(opened, "decompress")
        assert (job.state, job.done, job.saved_nbytes) == (State.DONE, 6, -saved)
        assert counted(opened) == disk(opened).usage().nbytes == plain_nbytes
        for key, body in bodies.items():
            assert await opened.get(key) == body


async def test_what_does_not_get_smaller_is_told_and_is_no_fault(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_cold(opened, {"noise": os.urandom(MiB), "words": words(MiB), "empty": b""})
        job = await do(opened, "compress")
        assert (job.state, job.done, job.skipped) == (State.DONE, 1, 2)
        assert job.reasons == {"it would take hardly less room": 2}
        assert counted(opened) == disk(opened).usage().nbytes


async def test_what_is_in_use_stays_as_it_is(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_cold(opened, {"a": words(MiB), "b": words(MiB)})
        with opened.store.open_read("alpha", "bucket", "a"):
            job = await do(opened, "compress", codec="zstd")
        assert (job.state, job.done, job.skipped) == (State.INCOMPLETE, 1, 1)
        assert job.reasons == {"in use: leased or being read": 1}
        assert job.examples == [("a", "it is not compressed")]


async def test_what_lies_in_memory_alone_is_not_meant(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", words(MiB))
        await opened.store.flush()
        await do(opened, "clear", tier="disk")
        job = await do(opened, "compress")
        assert (job.state, job.skipped) == (State.DONE, 1)
        assert opened.places("k") == ["host"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"codec": "rle"}, "zstd-split"), ({"tier": "host"}, "compresses nothing"), ({"tier": "s9"}, "no tier 's9'")],
)
async def test_what_cannot_be_is_refused(open_test_store: OpenStore, options: dict[str, str], message: str) -> None:
    async with open_test_store() as opened:
        with pytest.raises(InvalidArgument, match=message):
            await opened.store.jobs.start("alpha", "compress", ALL, options)
    async with open_test_store(disk_nbytes=None) as opened:
        with pytest.raises(InvalidArgument, match="a disk tier does"):
            await opened.store.jobs.start("alpha", "compress", ALL, {})


async def test_readers_and_writers_meanwhile_get_what_was_written(open_test_store: OpenStore) -> None:
    """Objects are read, replaced and deleted while they are compressed and decompressed, over and over."""
    async with open_test_store(memory_nbytes=8 * MiB) as opened:
        versions = {f"k{number}": words(700_000 + number * 150_000, number) for number in range(12)}
        await put_cold(opened, versions)
        reads, choose, stop = 0, random.Random(5), False

        async def read() -> None:
            nonlocal reads
            while not stop:
                key = choose.choice(sorted(versions))
                expected = versions[key]
                if not expected:  # it is being written
                    await asyncio.sleep(0)
                    continue
                start = choose.randrange(len(expected))
                if choose.random() < 0.5:
                    start = 0
                try:
                    content = await opened.get(key, start, len(expected))
                except TierError:
                    raise
                except Exception:  # replaced meanwhile by a shorter one, or gone
                    if versions.get(key) == expected:
                        raise
                    continue
                assert content == expected[start:] or versions.get(key) != expected
                reads += 1
                await asyncio.sleep(0)

        async def write() -> None:
            number = 100
            while not stop:
                number += 1
                key = f"k{choose.randrange(12)}"
                body = words(600_000 + number * 1000, number)
                versions[key] = b""  # unknown until it is written
                await opened.put(key, body)
                versions[key] = body
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(each) for each in (read(), read(), write())]
        for _ in range(6):
            for kind in ("compress", "decompress"):
                job = await do(opened, kind)
                assert job.failed == 0, job.reasons
        stop = True
        await asyncio.gather(*tasks)
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert reads > 20
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 0
        assert opened.sample("kvgate_lost_objects_total") == 0
        for key, body in versions.items():
            assert await opened.get(key) == body
        await do(opened, "compress")
        assert counted(opened) == disk(opened).usage().nbytes


async def test_a_promotion_that_reads_the_old_copy_keeps_it(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_cold(opened, {"k": words(4 * MiB)})
        entry, placement = opened.entry("k"), opened.store._placement
        arrival = placement.promotion.begin(entry, DISK)
        assert arrival is not None
        with pytest.raises(InUse):
            await placement.recoder.recode(entry, DISK, ())
        await arrival.wait()


async def test_a_full_tier_makes_room_by_evicting_others(open_test_store: OpenStore) -> None:
    async with open_test_store(disk_nbytes=8 * MiB, jobs=JobsConfig(operations=1)) as opened:
        for number in range(7):
            await opened.put(f"k{number}", words(MiB, number))
            await opened.store.flush()
        job = await do(opened, "compress")
        assert job.state is State.DONE
        assert job.done >= 6
        assert counted(opened) == disk(opened).usage().nbytes < 4 * MiB


async def test_one_that_is_deleted_meanwhile_leaves_nothing(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for moment_s in (0, 0.001, 0.003, 0.006, 0.01, 0.02) * 2:
            await put_cold(opened, {"k": words(6 * MiB)})
            running = asyncio.create_task(do(opened, "compress"))
            await asyncio.sleep(moment_s)
            await opened.store.delete("alpha", "bucket", "k")
            await running
            await opened.store._placement.copies.wait_for_background()
            assert (counted(opened), disk(opened).usage().nbytes) == (0, 0)
    async with open_test_store() as opened:
        assert opened.keys() == []


async def test_an_index_that_cannot_be_written_leaves_the_old_copy(
    open_test_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_store() as opened:
        body = words(2 * MiB)
        await put_cold(opened, {"k": body})
        used = disk(opened).usage()
        changes = disk(opened)._index._changes
        commit = changes._commit
        monkeypatch.setattr(changes, "_commit", lambda batch: (_ for _ in ()).throw(OSError("full")))
        job = await do(opened, "compress")
        assert (job.state, job.failed) == (State.INCOMPLETE, 1)
        monkeypatch.setattr(changes, "_commit", commit)
        assert disk(opened).usage() == used
        assert await opened.get("k") == body
    async with open_test_store() as opened:
        assert await opened.get("k") == body


async def test_a_bad_copy_is_found_and_dropped(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_cold(opened, {"k": words(2 * MiB)})
        path = disk(opened).path(opened.entry("k").copies[DISK])
        path.write_bytes(b"?" + path.read_bytes()[1:])
        job = await do(opened, "compress")
        assert (job.failed, opened.keys()) == (1, [])
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1


async def test_new_attributes_of_a_compressed_object(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        body = words(2 * MiB)
        await put_cold(opened, {"k": body})
        await do(opened, "compress")
        await opened.store.set_attributes(ALPHA, "bucket", "k", lambda _: {"content-type": "text/plain"})
        await opened.store.flush()
        await opened.store._placement.copies.wait_for_background()
        assert counted(opened) == disk(opened).usage().nbytes
    async with open_test_store() as opened:
        assert opened.entry("k").record.attributes == {"content-type": "text/plain"}
        assert await opened.get("k") == body
