"""Jobs over real tiers: what they do, what they leave, what they say of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvgate.config import Size
from kvgate.errors import InvalidArgument, NoSuchBucket, NoSuchJob, Overloaded
from kvgate.store.jobs import Job, JobsConfig, State
from kvgate.store.retention import TTL, Change, Pin, RetentionConfig
from kvgate.store.values import Selection
from kvgate.tiers.fs import FsConfig, FsTier
from kvgate.tiers.rules import TierRules
from tests.chunks import SPACE, chunk
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore, open_store_in
from tests.store.disk_gate import DiskGate

ALL = Selection("bucket", None, "")


async def start(opened: Opened, kind: str, selection: Selection = ALL, tenant: str = "alpha", **options: Any) -> Job:
    return await opened.store.jobs.start(tenant, kind, selection, options)


async def ended(job: Job) -> Job:
    await until(lambda: job.has_ended)
    return job


async def do(opened: Opened, kind: str, selection: Selection = ALL, tenant: str = "alpha", **options: Any) -> Job:
    return await ended(await start(opened, kind, selection, tenant, **options))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def named(*keys: str) -> Selection:
    return Selection("bucket", keys)


async def put_many(opened: Opened, count: int, nbytes: int = 1000, prefix: str = "") -> list[str]:
    keys = [f"{prefix}{number:04}" for number in range(count)]
    for key in keys:
        await opened.put(key, key[-1:].encode() * nbytes)
    await opened.store.flush()
    return keys


# --- where objects lie ------------------------------------------------------------------------------------------------


async def test_prefetch_brings_a_prefix_to_memory_after_a_restart(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 700, prefix="a/")
        await put_many(opened, 5, prefix="b/")
    async with open_test_store() as opened:
        job = await do(opened, "prefetch", Selection("bucket", None, "a/"))
        assert (job.state, job.total, job.done, job.unmet) == (State.DONE, 700, 700, 0)
        assert job.done_nbytes == job.total_nbytes == 700_000
        assert opened.places("a/0699") == ["host", "disk"]
        assert opened.places("b/0000") == ["disk"]
        assert opened.sample("kvgate_job_objects_total", kind="prefetch", result="done") == 700


async def test_a_job_fills_no_more_than_its_part_of_memory(open_test_store: OpenStore) -> None:
    config = JobsConfig(memory_share=0.25)
    async with open_test_store() as opened:
        keys = await put_many(opened, 20, MiB)
    async with open_test_store(memory_nbytes=16 * MiB, jobs=config) as opened:
        job = await do(opened, "prefetch")
        in_memory = [key for key in keys if "host" in opened.places(key)]
        assert len(in_memory) == 4
        assert (job.state, job.done, job.skipped, job.unmet) == (State.INCOMPLETE, 4, 16, 16)
        assert "memory_share" in next(iter(job.reasons))
        assert job.examples[0] == (keys[4], "it has no copy in the host tier")


async def test_copy_and_clear_of_a_tier_leave_the_object(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        keys = await put_many(opened, 3)
        job = await do(opened, "clear", tier="host")
        assert (job.state, job.done) == (State.DONE, 3)
        assert [opened.places(key) for key in keys] == [["disk"]] * 3
        assert (await do(opened, "copy", named(keys[0]), tier="host")).state is State.DONE
        assert opened.places(keys[0]) == ["host", "disk"]
        assert await opened.get(keys[1]) == b"1" * 1000


async def test_clear_never_drops_the_only_copy(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        keys = await put_many(opened, 3)
        await do(opened, "clear", named(keys[0]), tier="host")
        job = await do(opened, "clear", tier="disk")
        assert (job.state, job.done, job.skipped, job.unmet) == (State.INCOMPLETE, 2, 1, 1)
        assert job.reasons == {"its only copy is in the disk tier": 1}
        assert [opened.places(key) for key in keys] == [["disk"], ["host"], ["host"]]
        assert (await do(opened, "copy", tier="disk")).state is State.DONE
    async with open_test_store() as opened:
        assert opened.keys() == keys


async def test_move_leaves_the_source_once_the_copy_is_whole(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        keys = await put_many(opened, 3)
        with opened.store.open_read("alpha", "bucket", keys[0]):
            job = await do(opened, "move", tier="disk")
            assert (job.state, job.skipped) == (State.INCOMPLETE, 1)
            assert job.reasons == {"in use: leased or being read": 1}
            assert job.examples == [(keys[0], "it still has a copy in the tier that it was to leave")]
        assert (await do(opened, "move", tier="disk", source="host")).state is State.DONE
        assert [opened.places(key) for key in keys] == [["disk"]] * 3


async def test_clear_deletes_but_for_what_is_pinned(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
        key, body = chunk()
        await opened.put(key, body)
        await put_many(opened, 600)
        await opened.keep("0003", pin=Pin.HARD)
        await opened.keep("0004", pin=Pin.SOFT)
        job = await do(opened, "clear")
        assert (job.total, job.done, job.skipped, job.unmet) == (602, 601, 1, 1)
        assert job.examples == [("0003", "it is pinned")]
        assert opened.keys() == ["0003"]
        assert (await do(opened, "clear", named("none"))).state is State.DONE
    async with open_test_store() as opened:
        assert opened.keys() == ["0003"]


# --- pins -------------------------------------------------------------------------------------------------------------


async def test_pin_and_unpin_of_names_and_prefixes(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        keys = await put_many(opened, 600, prefix="a/")
        assert (await do(opened, "pin", named(keys[0], keys[1]), pin="soft")).state is State.DONE
        assert opened.entry(keys[1]).pin is Pin.SOFT
        job = await do(opened, "pin", Selection("bucket", None, "a/"))
        assert (job.state, job.done) == (State.DONE, 600)
        assert opened.entry(keys[599]).pin is Pin.HARD
        await opened.put("a/new", b"x")
        assert opened.entry("a/new").pin is Pin.HARD
    async with open_test_store() as opened:
        await until(lambda: opened.entry("a/new").pin is Pin.HARD)
        assert (await do(opened, "unpin", Selection("bucket", None, "a/"))).state is State.DONE
        assert not opened.entry("a/new").pin
        assert not opened.entry(keys[0]).pin
        assert opened.store.keeper.usage("alpha").marks == 0


async def test_what_a_pin_cannot_keep_is_named(open_test_store: OpenStore) -> None:
    none = RetentionConfig(pinned_share=0)
    async with open_test_store(retention=none) as opened:
        await put_many(opened, 2)
        job = await do(opened, "pin", named("0000", "none"))
        assert (job.state, job.failed, job.unmet) == (State.INCOMPLETE, 2, 2)
        assert dict(job.examples) == {"0000": "its pin is none", "none": "there is no such object"}
        job = await do(opened, "pin")
        assert (job.failed, job.examples[0]) == (2, ("0000", "its pin is soft"))


async def test_unpin_says_what_a_shorter_prefix_still_keeps(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 1, prefix="a/b/")
        await do(opened, "pin", Selection("bucket", None, "a/"))
        job = await do(opened, "unpin", Selection("bucket", None, "a/b/"))
        assert job.examples == [("a/b/0000", "a shorter prefix is pinned as well")]


async def test_a_pin_with_a_deadline_ends_by_itself(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 2)
        assert (await do(opened, "pin", named("0000"), pin_s=0.3)).state is State.DONE
        assert (await do(opened, "pin", Selection("bucket", None, "0001"), pin_s=0.3)).state is State.DONE
        await until(lambda: not opened.entry("0000").pin and not opened.entry("0001").pin)
        assert opened.store.keeper.usage("alpha").rules == []


# --- the life of a job ------------------------------------------------------------------------------------------------


async def test_a_job_is_cancelled_where_it_is(open_test_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 30)
    async with open_test_store() as opened:
        gate = DiskGate(monkeypatch)
        gate.hold_at = 0
        job = await start(opened, "prefetch")
        waiting = [await start(opened, "prefetch") for _ in range(2)]
        await until(lambda: job.state is State.RUNNING and gate.waiting.is_set())
        assert waiting[-1].state is State.WAITING
        assert (await opened.store.jobs.cancel("alpha", waiting[-1].id)).state is State.CANCELLED
        assert (await opened.store.jobs.cancel("alpha", job.id)).state is State.CANCELLED
        assert job.done < 30
        gate.open()
        assert (await ended(waiting[0])).state is State.DONE
        assert (await opened.store.jobs.cancel("alpha", waiting[0].id)).state is State.DONE
        assert waiting[-1].started_ms is None
        assert opened.store.jobs._turns.on == 0
    async with open_test_store() as opened:
        assert {job.state for job in opened.store.jobs.of("alpha")} == {State.DONE, State.CANCELLED}


async def test_a_stop_interrupts_a_job_and_the_next_run_says_so(
    open_test_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 30)
    async with open_test_store(jobs=JobsConfig(running=1)) as opened:
        gate = DiskGate(monkeypatch)
        gate.hold_at = 0
        job, waiting = await start(opened, "prefetch"), await start(opened, "prefetch")
        await until(gate.waiting.is_set)
        asyncio.get_running_loop().call_later(0.2, gate.open)
    assert (job.state, waiting.state) == (State.INTERRUPTED, State.INTERRUPTED)
    async with open_test_store() as opened:
        found = opened.store.jobs.get("alpha", job.id)
        assert (found.state, found.message) == (State.INTERRUPTED, "the gateway stopped")
        assert (await do(opened, "prefetch")).state is State.DONE


async def test_jobs_work_on_so_many_objects_and_bytes_at_once(
    open_test_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_store() as opened:
        await put_many(opened, 12, MiB)
    config = JobsConfig(operations=3, in_flight=Size(2 * MiB), running=4, memory_share=1)
    async with open_test_store(jobs=config) as opened:
        gate = DiskGate(monkeypatch)
        gate.hold_at = 0
        jobs = [await start(opened, "prefetch") for _ in range(3)]
        turns = opened.store.jobs._turns
        await until(lambda: gate.waiting.is_set() and turns.waiting == 3)
        assert (turns.on, turns.moving_nbytes) == (2, 2 * MiB)
        gate.open()
        for job in jobs:
            assert (await ended(job)).state is State.DONE
        assert (turns.on, turns.moving_nbytes, turns.waiting) == (0, 0, 0)


async def test_what_a_job_cannot_mean_is_refused_before_it_begins(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for kind, options, named_in in [
            ("defrag", {}, "kind: expected prefetch"),
            ("copy", {}, "tier: a job of the kind copy needs it"),
            ("copy", {"tier": "tape"}, "no tier 'tape'; there are host, disk"),
            ("copy", {"tier": "disk", "pin": "hard"}, "pin: not for a job"),
            ("move", {"tier": "host"}, "nothing in memory survives"),
            ("move", {"tier": "disk", "source": "disk"}, "source: the tier that"),
        ]:
            with pytest.raises(InvalidArgument, match=named_in):
                await start(opened, kind, **options)
        with pytest.raises(NoSuchBucket):
            await start(opened, "prefetch", Selection("none", None))
        assert opened.store.jobs.of("alpha") == []


async def test_a_tenants_jobs_are_its_own(open_test_store: OpenStore) -> None:
    async with open_test_store(jobs=JobsConfig(active=1)) as opened:
        await put_many(opened, 3)
        await opened.put("0000", b"beta", BETA)
        job = await do(opened, "clear", tenant="beta")
        assert (job.total, job.done) == (1, 1)
        assert opened.keys() == ["0000", "0001", "0002"]
        for call in (opened.store.jobs.get, opened.store.jobs.cancel):
            with pytest.raises(NoSuchJob):
                found = call("alpha", job.id)
                if asyncio.iscoroutine(found):
                    await found
        assert opened.store.jobs.of("alpha") == []


async def test_too_many_jobs_are_told_to_wait(open_test_store: OpenStore) -> None:
    async with open_test_store(jobs=JobsConfig(active=1)) as opened:
        await put_many(opened, 3)
        first = await start(opened, "prefetch")
        with pytest.raises(Overloaded):
            await start(opened, "prefetch")
        await start(opened, "prefetch", tenant="beta")
        await ended(first)
        await start(opened, "prefetch")


async def test_a_bucket_that_is_deleted_meanwhile_ends_a_job(open_test_store: OpenStore) -> None:
    async with open_test_store(jobs=JobsConfig(running=1)) as opened:
        await opened.store.buckets.create(ALPHA, "other")
        await put_many(opened, 3)
        await start(opened, "prefetch")
        job = await start(opened, "pin", Selection("other", None))
        await opened.store.buckets.delete("alpha", "other")
        assert (await ended(job)).state is State.FAILED
        assert "no bucket" in job.message
        with pytest.raises(NoSuchBucket):
            await opened.store.keeper.keep_prefix("alpha", "other", "", Change(pin=Pin.HARD))


# --- shared tiers -----------------------------------------------------------------------------------------------------


def shared(path: Path) -> FsTier:
    tier = FsTier(FsConfig(path=path / "fs", keep_free=Size(0)))
    tier.name = "fs"
    return tier


async def put_chunks(opened: Opened, count: int, **attributes: str) -> list[str]:
    await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
    for number in range(count):
        await opened.put(*chunk(number), **attributes)
    await opened.store.flush()
    return [chunk(number)[0] for number in range(count)]


async def test_a_copy_in_a_shared_tier_is_found_by_another_gateway(open_test_store: OpenStore, tmp_path: Path) -> None:
    never = {"fs": TierRules(write="never")}
    async with open_test_store(below=[shared(tmp_path)], rules=never) as opened:
        keys = await put_chunks(opened, 3)
        await opened.put("opaque", b"can be overwritten")
        job = await do(opened, "copy", tier="fs")
        assert (job.state, job.done, job.skipped, job.unmet) == (State.INCOMPLETE, 4, 1, 1)
        assert job.examples == [("opaque", "it has no copy in the fs tier")]
        assert "named after its content" in next(iter(job.reasons))
    async with open_store_in(tmp_path / "other", below=[shared(tmp_path)]) as other:
        job = await do(other, "prefetch", named(*keys, "opaque"))
        assert (job.state, job.done, job.failed) == (State.INCOMPLETE, 3, 1)
        assert await other.get(keys[2]) == chunk(2)[1]


async def test_the_check_asks_the_shared_tier_itself(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store(below=[shared(tmp_path)]) as opened:
        keys = await put_chunks(opened, 2)
        assert (await do(opened, "copy", named(*keys), tier="fs")).state is State.DONE
        async with open_store_in(tmp_path / "other", below=[shared(tmp_path)]) as other:
            await other.store.delete("alpha", "bucket", keys[0])
        job = await do(opened, "copy", named(*keys), tier="fs")
        assert (job.state, job.examples) == (
            State.INCOMPLETE,
            [(keys[0], "the fs tier does not have it any more")],
        )


async def test_what_has_ended_is_found_in_no_shared_tier(open_test_store: OpenStore, tmp_path: Path) -> None:
    async with open_test_store(below=[shared(tmp_path)], tenants=(ALPHA,)) as opened:
        (key,) = await put_chunks(opened, 1, **{TTL: "1500ms"})
        assert (await do(opened, "copy", named(key), tier="fs")).state is State.DONE
        async with open_store_in(tmp_path / "other", below=[shared(tmp_path)]) as other:
            await other.store.find("alpha", "bucket", key)
            assert other.store.expiry(other.entry(key).record) == opened.store.expiry(opened.entry(key).record)
            used = other.store.stats(ALPHA).nbytes
            await until(lambda: key not in set(other.keys()))
            for _ in range(50):
                await other.store.find("alpha", "bucket", key)
                assert key not in set(other.keys())
                assert other.store.stats(ALPHA).nbytes <= used
            await until(lambda: other.store.stats(ALPHA).nbytes == 0)
