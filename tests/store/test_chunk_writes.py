"""Chunks that come in slices: visible when the last one is there, and gone without a trace when it never comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from awscrt.checksums import crc64nvme

from kvgate.auth.tenants import Tenant
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.chunk.safetensors import decode_header
from kvgate.errors import (
    BadDigest,
    IncompleteBody,
    InvalidRequest,
    NoSuchBucket,
    NoSuchKey,
    NoSuchReservation,
    Overloaded,
    QuotaExceeded,
    SliceConflict,
    StoreFull,
    UnknownSpace,
)
from tests.client.chunks import SPACE, chunks
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore

(HASH, BODY), (OTHER_HASH, OTHER_BODY) = chunks(b"salt", 2)
KEY = str(ChunkKey(SPACE.id, HASH.hex()))
PARENT = bytes.fromhex(ChunkHeader.from_metadata(decode_header(BODY, len(BODY)).metadata).parent)
KV = np.frombuffer(BODY[DATA_START:], np.uint16).reshape(SPACE.layout.shape)
ALL = (range(4), range(8))


class Source:
    """A slice that comes when it is let."""

    def __init__(self, body: bytes, *, waits: bool = False, fails: Exception | None = None) -> None:
        self.nbytes = len(body)
        self._body, self._fails = body, fails
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.ended = False
        if not waits:
            self.go_on.set()

    async def receive(self, places: Iterable[Sequence[memoryview]]) -> int:
        self.begun.set()
        try:
            at = 0
            for views in places:
                for view in views:
                    view[:] = self._body[at : at + len(view)]
                    at += len(view)
            await self.go_on.wait()
            if self._fails:
                raise self._fails
            return int(crc64nvme(self._body))
        finally:
            self.ended = True


def part(layers: range, heads: range, kv: np.ndarray = KV) -> bytes:
    return kv[layers.start : layers.stop, :, heads.start : heads.stop].tobytes()


async def send(opened: Opened, name: str, layers: range, heads: range, source: Source | None = None, tenant="alpha"):
    def select(layout: Layout) -> tuple[range, range]:
        return layers, heads

    return await opened.store.chunk_writes.receive(tenant, name, select, source or Source(part(layers, heads)))


async def reserve(opened: Opened, tenant: Tenant = ALPHA, lease_s: float = 30.0, **more) -> str:
    asked = {"bucket": "bucket", "space_id": SPACE.id, "chunk_hash": HASH, "parent": PARENT, "first_token": 0} | more
    return (await opened.store.chunk_writes.reserve(tenant, **asked, lease_s=lease_s)).name


async def opened_with_manifest(opened: Opened, tenant: Tenant = ALPHA) -> int:
    """The quota in use before anything is reserved."""
    await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json(), tenant)
    return opened.store._quota.used(tenant.name)


async def nothing_is_left(opened: Opened, used: int, tenant: str = "alpha") -> None:
    await asyncio.sleep(0)
    await opened.store.flush()
    await opened.store._placement.copies.wait_for_background()
    assert opened.store._quota.used(tenant) == used
    opened.store.collect()
    assert opened.sample("kvgate_reserved_bytes") == 0
    assert opened.memory.arena.lease_count == len(opened.store._index.objects(tenant, "bucket"))


SPLITS = {
    "whole": [ALL],
    "layers": [(range(index, index + 1), range(8)) for index in range(4)],
    "ranks of PP and TP": [(range(first, first + 2), range(head, head + 4)) for first in (0, 2) for head in (0, 4)],
    "uneven": [(range(1), range(8)), (range(1, 4), range(3)), (range(1, 2), range(3, 8)), (range(2, 4), range(3, 8))],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("ack", ["memory", "disk"])
async def test_chunk_is_visible_with_its_last_slice_and_what_a_put_had_made(open_test_store, split, ack) -> None:
    async with open_test_store(ack=ack) as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened)
        order = random.Random(1).sample(split, len(split))
        for layers, heads in order[:-1]:
            progress = await send(opened, name, layers, heads)
            assert progress.state == "open"
            with pytest.raises(NoSuchKey):
                await opened.get(KEY)
        assert opened.store._quota.used("alpha") == used + len(BODY), "reserved bytes count"
        assert (await send(opened, name, *order[-1])).state == "committed"
        assert await opened.get(KEY) == BODY
        assert opened.store.stat("alpha", "bucket", KEY).crc64nvme == crc64nvme(BODY)
        await opened.put(KEY, BODY)  # the same chunk by PUT is no other
        with pytest.raises(NoSuchReservation):
            await send(opened, name, *order[-1])
        assert await reserve(opened) == "", "it is there"
        await nothing_is_left(opened, used + len(BODY))
        assert opened.sample("kvgate_reservations_total", result="committed") == 1


async def test_ranks_send_at_the_same_time(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        parts = [(range(layer, layer + 1), range(head, head + 1)) for layer in range(4) for head in range(8)]
        states = [progress.state for progress in await asyncio.gather(*[send(opened, name, *each) for each in parts])]
        assert sorted(states) == ["committed"] + ["open"] * 31
        assert await opened.get(KEY) == BODY


async def test_same_slice_again_is_compared_and_another_refused(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        layers, heads = range(2), range(8)
        missing = [(await send(opened, name, layers, heads)).missing_nbytes for _ in range(2)]
        assert missing == [SPACE.layout.nbytes // 2] * 2
        with pytest.raises(SliceConflict, match="another slice"):
            await send(opened, name, layers, heads, Source(bytes(len(part(layers, heads)))))
        for overlap in [(range(1), range(8)), (range(1, 4), range(1)), ALL]:
            with pytest.raises(SliceConflict, match="has been received"):
                await send(opened, name, *overlap)
        assert (await send(opened, name, range(2, 4), heads)).state == "committed"
        assert await opened.get(KEY) == BODY


async def test_slice_under_way_cannot_be_sent_twice(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        source = Source(part(*ALL), waits=True)
        first = asyncio.create_task(send(opened, name, *ALL, source))
        await source.begun.wait()
        with pytest.raises(SliceConflict, match="being received"):
            await send(opened, name, *ALL)
        source.go_on.set()
        assert (await first).state == "committed"


@pytest.mark.parametrize("failure", [IncompleteBody("x"), BadDigest("x")])
async def test_slice_that_fails_may_come_again(open_test_store: OpenStore, failure) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        with pytest.raises(type(failure)):
            await send(opened, name, *ALL, Source(bytes(SPACE.layout.nbytes), fails=failure))
        assert (await send(opened, name, *ALL)).state == "committed"
        assert await opened.get(KEY) == BODY


async def test_slice_of_another_length_is_refused(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        with pytest.raises(InvalidRequest, match="have 65536 bytes, and the body 5"):
            await send(opened, name, *ALL, Source(b"short"))


@pytest.mark.parametrize("end", ["abort", "lease end", "cancelled"])
async def test_reservation_that_ends_leaves_nothing(open_test_store: OpenStore, end: str) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened, lease_s=0.2 if end == "lease end" else 30)
        await send(opened, name, range(1), range(8))
        source = Source(part(range(1, 4), range(8)), waits=True)
        last = asyncio.create_task(send(opened, name, range(1, 4), range(8), source))
        await source.begun.wait()
        if end == "cancelled":
            last.cancel()
            with pytest.raises(asyncio.CancelledError):
                await last
            assert source.ended
            opened.store.chunk_writes.abort("alpha", name)
        else:
            if end == "abort":
                opened.store.chunk_writes.abort("alpha", name)
            else:
                await asyncio.sleep(0.25)
                opened.store.chunk_writes.expire()
            with pytest.raises(NoSuchReservation):
                await last
            assert source.ended
        with pytest.raises(NoSuchReservation):
            await send(opened, name, range(1, 4), range(8))
        with pytest.raises(NoSuchKey):
            await opened.get(KEY)
        await nothing_is_left(opened, used)
        result = "expired" if end == "lease end" else "aborted"
        assert opened.sample("kvgate_reservations_total", result=result) == 1
        assert await reserve(opened)


async def test_memory_is_kept_while_a_slice_that_was_cut_is_still_written(open_test_store: OpenStore) -> None:
    class Stubborn(Source):
        async def receive(self, places: Iterable[Sequence[memoryview]]) -> int:
            self.begun.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await self.go_on.wait()
                raise
            return 0

    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened)
        source = Stubborn(part(*ALL), waits=True)
        sending = asyncio.create_task(send(opened, name, *ALL, source))
        await source.begun.wait()
        await opened.store.flush()
        await asyncio.sleep(0.01)
        opened.store.chunk_writes.abort("alpha", name)
        await asyncio.sleep(0.01)
        held = opened.memory.arena.lease_count, opened.store._quota.used("alpha")
        source.go_on.set()
        assert held == (2, used + len(BODY))
        with pytest.raises(NoSuchReservation):
            await sending
        await nothing_is_left(opened, used)


async def test_slice_that_is_cut_before_its_first_byte_holds_nothing(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened)
        sending = asyncio.create_task(send(opened, name, *ALL))
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, opened.store.chunk_writes.abort, "alpha", name)
        loop.call_soon(opened.store.chunk_writes.stop)
        with pytest.raises(NoSuchReservation):
            await sending
        await nothing_is_left(opened, used)


@pytest.mark.parametrize("same", [True, False])
async def test_first_of_two_reservations_wins(open_test_store: OpenStore, same: bool) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        first, second = [await reserve(opened) for _ in range(2)]
        await send(opened, second, range(3), range(8))
        assert (await send(opened, first, *ALL)).state == "committed"
        source = None if same else Source(bytes(SPACE.layout.nbytes // 4))
        assert (await send(opened, second, range(3, 4), range(8), source)).state == "present"
        assert await opened.get(KEY) == BODY
        await nothing_is_left(opened, used + len(BODY))


async def test_two_that_complete_in_the_same_moment_leave_one_chunk(open_test_store: OpenStore) -> None:
    async with open_test_store(ack="disk") as opened:
        used = await opened_with_manifest(opened)
        names = [await reserve(opened) for _ in range(4)]
        sources = [Source(part(*ALL)), *[Source(bytes([index]) * SPACE.layout.nbytes) for index in range(3)]]
        got = await asyncio.gather(*[send(opened, name, *ALL, each) for name, each in zip(names, sources, strict=True)])
        assert sorted({progress.state for progress in got}) == ["committed", "present"]
        assert len(await opened.get(KEY)) == len(BODY)
        await nothing_is_left(opened, used + len(BODY))


async def test_chunk_that_was_put_meanwhile_stays(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        await opened.put(KEY, BODY)
        assert (await send(opened, name, *ALL, Source(bytes(SPACE.layout.nbytes)))).state == "present"
        assert await opened.get(KEY) == BODY


async def test_another_tenants_reservation_looks_like_none(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        with pytest.raises(NoSuchReservation):
            await send(opened, name, *ALL, tenant="beta")
        with pytest.raises(NoSuchReservation):
            opened.store.chunk_writes.abort("beta", name)
        with pytest.raises(UnknownSpace):
            await reserve(opened, BETA)
        with pytest.raises(NoSuchBucket):
            await reserve(opened, bucket="elsewhere")


async def test_quota_is_asked_for_with_the_reservation(open_test_store: OpenStore) -> None:
    few = Tenant("few", buckets=("bucket",), quota_nbytes=len(BODY) + len(SPACE.canonical_json()))
    async with open_test_store(tenants=(few,)) as opened:
        used = await opened_with_manifest(opened, few)
        name = await reserve(opened, few)
        with pytest.raises(QuotaExceeded):
            await reserve(opened, few, chunk_hash=OTHER_HASH)
        opened.store.chunk_writes.abort("few", name)
        await nothing_is_left(opened, used, "few")
        assert await reserve(opened, few, chunk_hash=OTHER_HASH)


async def test_reservations_leave_memory_to_others(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=2 * MiB) as opened:
        await opened_with_manifest(opened)
        await opened_with_manifest(opened, BETA)
        own = 0
        with pytest.raises(Overloaded, match="memory for reserved"):
            while True:
                await reserve(opened)
                own += 1
        assert own * len(BODY) <= MiB // 2
        assert await reserve(opened, BETA)
        await opened.put("object", bytes(MiB))


async def test_number_of_reservations_is_bounded_by_tenant(open_test_store: OpenStore) -> None:
    async with open_test_store(max_reservations=2) as opened:
        await opened_with_manifest(opened)
        await opened_with_manifest(opened, BETA)
        for _ in range(2):
            await reserve(opened)
        with pytest.raises(Overloaded, match="2 chunks are reserved"):
            await reserve(opened)
        assert await reserve(opened, BETA)


async def test_memory_full_of_what_is_in_use_refuses_a_reservation(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=MiB, disk_nbytes=None) as opened:
        used = await opened_with_manifest(opened)
        lease = opened.memory.reserve("alpha", opened.memory.room("alpha"))
        with pytest.raises(StoreFull, match="no room"):
            await reserve(opened)
        lease.release()
        await nothing_is_left(opened, used)


async def test_store_that_closes_drops_what_is_reserved(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        await send(opened, await reserve(opened), range(3), range(8))
    async with open_test_store() as opened:
        assert opened.keys() == [str(ManifestKey(SPACE.id))]
        assert opened.store._quota.used("alpha") == len(SPACE.canonical_json())


async def test_ranks_of_one_writer_share_a_reservation(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        names = await asyncio.gather(*[reserve(opened, writer="engine 7") for _ in range(4)])
        assert len(set(names)) == 1
        others = [
            await reserve(opened, writer="engine 8"),
            await reserve(opened),
            await reserve(opened, writer="engine 7", chunk_hash=OTHER_HASH),
        ]
        assert len({*names, *others}) == 4, "another writer, none, and another chunk have reservations of their own"
        for name in others:
            opened.store.chunk_writes.abort("alpha", name)
        for index, name in enumerate(names):
            progress = await send(opened, name, range(index, index + 1), range(8))
            assert progress.state == ("open" if index < 3 else "committed")
        assert await opened.get(KEY) == BODY
        assert await reserve(opened, writer="engine 7") == "", "it is there"
        await nothing_is_left(opened, used + len(BODY))


async def test_joined_reservation_lasts_for_the_longest_lease(open_test_store: OpenStore) -> None:
    async with open_test_store(max_lease=60.0) as opened:
        await opened_with_manifest(opened)
        asked = {"bucket": "bucket", "space_id": SPACE.id, "chunk_hash": HASH, "parent": PARENT, "first_token": 0}
        leases_s = [1.0, 20.0, 1.0, 1e9]
        got = [
            await opened.store.chunk_writes.reserve(ALPHA, **asked, lease_s=lease_s, writer="w") for lease_s in leases_s
        ]
        assert [each.expires_s for each in got] == pytest.approx([1, 20, 20, 60], abs=0.9)
        await asyncio.sleep(1.1)
        opened.store.chunk_writes.expire()
        assert (await send(opened, got[0].name, *ALL)).state == "committed"


async def test_writer_whose_ranks_disagree_about_the_chunk_is_refused(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened, writer="w")
        for more in ({"parent": OTHER_HASH}, {"first_token": SPACE.chunk_tokens}):
            with pytest.raises(SliceConflict, match="another parent or first token"):
                await reserve(opened, writer="w", **more)
        assert (await send(opened, name, *ALL)).state == "committed"


async def test_tenants_that_name_the_same_writer_have_nothing_in_common(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened_with_manifest(opened)
        await opened_with_manifest(opened, BETA)
        names = [await reserve(opened, tenant, writer="w") for tenant in (ALPHA, BETA)]
        assert names[0] != names[1]
        with pytest.raises(NoSuchReservation):
            await send(opened, names[0], *ALL, tenant="beta")


@pytest.mark.parametrize("end", ["abort", "lease end"])
async def test_rank_that_comes_after_the_end_begins_anew(open_test_store: OpenStore, end: str) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        first = await reserve(opened, writer="w", lease_s=0.05 if end == "lease end" else 30)
        await send(opened, first, range(2), range(8))
        if end == "abort":
            opened.store.chunk_writes.abort("alpha", first)
        else:
            await asyncio.sleep(0.1)
        second = await reserve(opened, writer="w")
        assert second != first
        with pytest.raises(NoSuchReservation):
            await send(opened, first, range(2, 4), range(8))
        assert (await send(opened, second, range(2, 4), range(8))).state == "open", "what came before is not there"
        assert (await send(opened, second, range(2), range(8))).state == "committed"
        assert await opened.get(KEY) == BODY
        await nothing_is_left(opened, used + len(BODY))


@pytest.mark.parametrize("failure", ["cancelled", "no room"])
async def test_rank_does_not_fall_with_the_one_that_asked_first(open_test_store, monkeypatch, failure: str) -> None:
    """The first one fails while its memory is being found, and those that joined it go on by themselves."""
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        open_write, begun, go_on = opened.store.chunk_writes._open_write, asyncio.Event(), asyncio.Event()

        async def slow(*arguments):
            if not begun.is_set():
                begun.set()
                await go_on.wait()
                raise StoreFull("no room")
            return await open_write(*arguments)

        monkeypatch.setattr(opened.store.chunk_writes, "_open_write", slow)
        first = asyncio.create_task(reserve(opened, writer="w"))
        await begun.wait()
        others = [asyncio.create_task(reserve(opened, writer="w")) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in others)
        if failure == "cancelled":
            first.cancel()
        go_on.set()
        with pytest.raises((asyncio.CancelledError, StoreFull)):
            await first
        (name,) = set(await asyncio.gather(*others))
        assert (await send(opened, name, *ALL)).state == "committed"
        await nothing_is_left(opened, used + len(BODY))


async def test_rank_that_comes_during_the_commit_is_told_that_the_chunk_is_there(open_test_store, monkeypatch) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened, writer="w")
        begun, go_on = asyncio.Event(), asyncio.Event()
        write = next(iter(opened.store.chunk_writes._writes.values()))[0]
        seal = write.seal

        async def slow():
            begun.set()
            await go_on.wait()
            await seal()

        monkeypatch.setattr(write, "seal", slow)
        last = asyncio.create_task(send(opened, name, *ALL))
        await begun.wait()
        late = asyncio.create_task(reserve(opened, writer="w"))
        await asyncio.sleep(0.01)
        assert not late.done()
        go_on.set()
        assert (await last).state == "committed"
        assert await late == ""
        await nothing_is_left(opened, used + len(BODY))
        assert not opened.store.chunk_writes._unsettled


async def test_writer_that_is_told_that_the_chunk_is_there_holds_no_memory_for_it(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        used = await opened_with_manifest(opened)
        name = await reserve(opened, writer="w")
        source = Source(part(range(2), range(8)), waits=True)
        sending = asyncio.create_task(send(opened, name, range(2), range(8), source))
        await source.begun.wait()
        await opened.put(KEY, BODY)
        assert await reserve(opened, writer="w") == ""
        source.go_on.set()
        assert (await sending).state == "open", "a slice that is under way is not cut"
        assert await reserve(opened, writer="w") == ""
        with pytest.raises(NoSuchReservation):
            await send(opened, name, range(2, 4), range(8))
        assert opened.sample("kvgate_reservations_total", result="present") == 1
        await nothing_is_left(opened, used + len(BODY))


async def test_chunk_of_slices_goes_to_disk_as_any_other(open_test_store: OpenStore) -> None:
    async with open_test_store(ack="disk") as opened:
        await opened_with_manifest(opened)
        name = await reserve(opened)
        await send(opened, name, *ALL)
        opened.store._placement.copies.drop_copy(opened.store._index.get("alpha", "bucket", KEY), 0)
        assert opened.places(KEY) == ["disk"]
        assert await opened.get(KEY) == BODY
