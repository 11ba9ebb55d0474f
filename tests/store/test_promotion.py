"""Objects are read from disk and sent at the same time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from kvgate.errors import CorruptCopy, NoSuchKey, TierError
from kvgate.memory.digest import BlockDigest
from kvgate.messages import ResponseBody, views
from kvgate.tiers.footer import encode_footer
from tests.store.conftest import ALPHA, MiB, Opened, OpenStore
from tests.store.disk_gate import DiskGate

BODY = os.urandom(8 * MiB + 12345)
BIG = os.urandom(24 * MiB + 777)
"""Larger than the memory of the tests that use it."""


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskGate]:
    gate = DiskGate(monkeypatch)
    yield gate
    gate.open()


@pytest.fixture
async def cold(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("k", BODY)


async def begin(opened: Opened, start: int = 0, stop: int = len(BODY), key: str = "k") -> ResponseBody:
    with opened.store.open_read("alpha", "bucket", key) as read:
        return await read.load(start, stop)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.002)


async def take(batches: AsyncIterator[Sequence[memoryview]], nbytes: int) -> bytes:
    """The next `nbytes` or more, as they come."""
    taken = b""
    while len(taken) < nbytes:
        taken += b"".join(bytes(view) for view in await anext(batches))
    return taken


async def rest(batches: AsyncIterator[Sequence[memoryview]]) -> bytes:
    return b"".join([bytes(view) async for batch in batches for view in batch])


async def at_rest(opened: Opened) -> None:
    """Nothing is leased but what the tier itself holds."""
    await opened.store._placement.copies.wait_for_background()
    keys = opened.keys()
    held = sum("host" in opened.places(key) for key in keys)
    await until(lambda: opened.memory.arena.lease_count == held)
    for key in keys:
        assert opened.store._index.get("alpha", "bucket", key).leases == 0


def flip(opened: Any, key: str, offset: int) -> None:
    entry = opened.store._index.get("alpha", "bucket", key)
    with opened.disk.path(entry.copies[1]).open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.usefixtures("cold")
async def test_first_blocks_leave_while_the_others_are_being_read(open_test_store: OpenStore, gate: DiskGate) -> None:
    async with open_test_store() as opened:
        gate.hold_at = 5 * MiB
        body = await begin(opened)
        batches = body.batches()
        assert await take(batches, 5 * MiB) == BODY[: 5 * MiB]
        assert opened.places("k") == ["disk"], "only a whole copy is listed"
        gate.open()
        assert await rest(batches) == BODY[5 * MiB :]
        body.close()
        await at_rest(opened)
        assert opened.places("k") == ["host", "disk"]
        assert await opened.get("k") == BODY


@pytest.mark.usefixtures("cold")
async def test_readers_follow_one_promotion_each_at_its_own_place(open_test_store: OpenStore, gate: DiskGate) -> None:
    async with open_test_store() as opened:
        gate.hold_at = 3 * MiB
        first = await begin(opened)
        taken = await take(first_batches := first.batches(), 3 * MiB)
        second = await begin(opened)
        from_the_middle = asyncio.create_task(begin(opened, 4 * MiB - 5))
        await asyncio.sleep(0.02)
        assert not from_the_middle.done(), "its first byte is not there yet"
        gate.open()
        assert taken + await rest(first_batches) == BODY
        assert await rest(second.batches()) == BODY
        third = await from_the_middle
        assert await rest(third.batches()) == BODY[4 * MiB - 5 :]
        for body in (first, second, third):
            body.close()
        await at_rest(opened)
        assert opened.sample("kvgate_promoted_objects_total") == 1
        assert set(gate.reads.values()) == {1}, "nothing is read twice"


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("offset", [MiB, 7 * MiB, len(BODY) - 1])
async def test_block_that_is_bad_later_on_breaks_every_body_off_and_drops_the_copy(
    open_test_store: OpenStore, gate: DiskGate, offset: int
) -> None:
    async with open_test_store() as opened:
        flip(opened, "k", offset)
        gate.hold_at = offset
        bodies = [await begin(opened), await begin(opened)]
        gate.open()
        for body in bodies:
            received = bytearray()
            with pytest.raises(CorruptCopy):
                async for view in views(body):
                    received += view
            body.close()
            assert received == BODY[: offset - offset % MiB]
        await at_rest(opened)
        with pytest.raises(NoSuchKey):
            await opened.get("k")
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1
        assert opened.sample("kvgate_lost_objects_total") == 1
        assert opened.memory.arena.used_nbytes == opened.disk.usage().nbytes == 0
        assert opened.store.stats(ALPHA).nbytes == 0


@pytest.mark.usefixtures("cold")
async def test_range_before_the_bad_block_is_whole(open_test_store: OpenStore, gate: DiskGate) -> None:
    async with open_test_store() as opened:
        flip(opened, "k", len(BODY) - 1)
        gate.hold_at = len(BODY) - 1
        body = await begin(opened, 0, 5 * MiB)
        gate.open()
        await until(lambda: opened.keys() == [])
        assert await rest(body.batches()) == BODY[: 5 * MiB]
        body.close()
        await at_rest(opened)


@pytest.mark.usefixtures("cold")
async def test_copy_that_is_bad_at_once_is_a_miss(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        flip(opened, "k", 5)
        with pytest.raises(NoSuchKey):
            await begin(opened)
        await at_rest(opened)
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1


@pytest.mark.usefixtures("cold")
async def test_file_with_sound_blocks_of_another_body_is_never_whole(open_test_store: OpenStore) -> None:
    """Only the digest of the whole tells: the footer names this object, with the blocks of that body."""
    other = os.urandom(len(BODY))
    digest = BlockDigest()
    digest.update(memoryview(other))
    async with open_test_store() as opened:
        entry = opened.store._index.get("alpha", "bucket", "k")
        opened.disk.path(entry.copies[1]).write_bytes(other + encode_footer(entry.record, digest.blocks))
        body = await begin(opened)
        received = bytearray()
        with pytest.raises(CorruptCopy, match="whole"):
            async for view in views(body):
                received += view
        body.close()
        assert len(received) < len(BODY)
        await at_rest(opened)
        assert opened.keys() == []
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1


@pytest.mark.usefixtures("cold")
async def test_error_of_the_disk_breaks_the_body_off_and_leaves_the_copy(
    open_test_store: OpenStore, gate: DiskGate
) -> None:
    async with open_test_store() as opened:
        gate.fail_at = 6 * MiB
        body = await begin(opened)
        received = bytearray()
        with pytest.raises(TierError, match="Input/output error"):
            async for view in views(body):
                received += view
        body.close()
        assert received == BODY[: 6 * MiB]
        await at_rest(opened)
        assert opened.places("k") == ["disk"]
        gate.fail_at = 0
        with pytest.raises(TierError, match="Input/output error"):
            await begin(opened)
        gate.fail_at = None
        assert await opened.get("k") == BODY
        await at_rest(opened)


@pytest.mark.usefixtures("cold")
async def test_promotion_goes_on_when_its_reader_is_cancelled(open_test_store: OpenStore, gate: DiskGate) -> None:
    async with open_test_store() as opened:
        gate.hold_at = 5 * MiB
        reading = asyncio.create_task(opened.get("k"))
        await asyncio.to_thread(gate.waiting.wait, 20)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert opened.store._index.get("alpha", "bucket", "k").leases == 0
        assert opened.memory.arena.used_nbytes >= len(BODY), "a thread writes there"
        gate.open()
        await until(lambda: opened.places("k") == ["host", "disk"])
        await at_rest(opened)
        assert await opened.get("k") == BODY


@pytest.mark.usefixtures("cold")
async def test_memory_of_a_deleted_object_is_kept_until_thread_and_reader_are_done(
    open_test_store: OpenStore, gate: DiskGate
) -> None:
    async with open_test_store() as opened:
        gate.hold_at = 5 * MiB
        body = await begin(opened)
        batches = body.batches()
        taken = await take(batches, MiB)
        await asyncio.to_thread(gate.waiting.wait, 20)
        await opened.store.delete("alpha", "bucket", "k")
        assert opened.memory.arena.used_nbytes >= len(BODY)
        gate.open()
        assert taken + await rest(batches) == BODY
        await opened.store._placement.copies.wait_for_background()
        assert opened.memory.arena.used_nbytes >= len(BODY), "the reader still holds it"
        body.close()
        assert opened.memory.arena.used_nbytes == 0


# --- through windows --------------------------------------------------------------------------------------------------


async def test_next_window_is_read_while_one_is_sent(open_test_store: OpenStore, gate: DiskGate) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, window=4 * MiB) as opened:
        await opened.put("big", BIG)
        gate.reads.clear()
        body = await begin(opened, stop=len(BIG), key="big")
        assert gate.reads.keys() == {0, MiB}, "half of what it may take"
        batches = body.batches()
        assert await take(batches, 1) == BIG[: 2 * MiB]
        await until(lambda: gate.reads.keys() == {0, MiB, 2 * MiB, 3 * MiB})
        assert await rest(batches) == BIG[2 * MiB :]
        body.close()
        await at_rest(opened)
        assert opened.memory.arena.used_nbytes == 0
        assert set(gate.reads.values()) == {1}, "nothing is read twice"


async def test_one_window_does_where_memory_has_no_room_for_two(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, window=4 * MiB) as opened:
        await opened.put("big", BIG)
        with opened.memory.reserve("alpha", 16 * MiB - MiB):
            assert await opened.get("big") == BIG
        await at_rest(opened)


async def test_body_that_is_closed_before_the_next_read_has_begun_gives_everything_back(
    open_test_store: OpenStore,
) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, window=4 * MiB) as opened:
        await opened.put("big", BIG)
        body = await begin(opened, stop=len(BIG), key="big")
        assert await take(body.batches(), 1) == BIG[: 2 * MiB]
        body.close()
        await at_rest(opened)
        assert opened.memory.arena.used_nbytes == 0


@pytest.mark.parametrize("end", ["cancelled", "closed", "failed"])
async def test_body_that_ends_while_a_window_is_filled_gives_everything_back(
    open_test_store: OpenStore, gate: DiskGate, end: str
) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, window=4 * MiB) as opened:
        await opened.put("big", BIG)
        gate.hold_at = 9 * MiB
        body = await begin(opened, stop=len(BIG), key="big")
        batches = body.batches()
        assert await take(batches, 7 * MiB) == BIG[: 8 * MiB]
        await asyncio.to_thread(gate.waiting.wait, 20)
        if end == "closed":
            body.close()
        else:
            waiting: Awaitable[bytes] = asyncio.ensure_future(rest(batches))
            await asyncio.sleep(0.01)
            if end == "failed":
                gate.fail_at = 9 * MiB
                gate.open()
                with pytest.raises(TierError, match="Input/output error"):
                    await waiting
            else:
                waiting.cancel()  # type: ignore[attr-defined]
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            body.close()
        if end != "failed":
            assert opened.memory.arena.used_nbytes > 0, "a thread writes there"
        gate.open()
        await at_rest(opened)
        assert opened.memory.arena.used_nbytes == 0
        gate.fail_at = None
        assert await opened.get("big") == BIG
