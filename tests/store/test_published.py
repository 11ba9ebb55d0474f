"""What a data plane serves by itself is what the store would answer, and the store hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from kvgate.auth.limits import RateConfig
from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ManifestKey
from kvgate.errors import NoSuchKey
from kvgate.s3.representation import checksum_headers, described, description
from kvgate.store.copies import MEMORY
from kvgate.store.retention import TTL, Change, Pin
from kvgate.tiers.rules import TierRules
from tests.chunks import SPACE, chunk, chunk_hash
from tests.store.boards import RecordingBoard, check_published, published_keys
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore
from tests.store.test_store_states import StoreStates, keys, names

FOREIGN = f"meta-llama/Llama-3.1-8B@01000100@0@{1:064x}"


@pytest.fixture
async def opened(open_test_store: OpenStore) -> AsyncIterator[Opened]:
    """A store that publishes on `board(opened)`."""
    async with open_test_store() as opened:
        opened.store.published.attach(RecordingBoard())
        yield opened
        check_published(opened.store, board_of(opened))
        opened.store.published.detach()


def board_of(opened: Opened) -> RecordingBoard:
    board = opened.store.published._board
    assert isinstance(board, RecordingBoard)
    return board


def offer(opened: Opened, *keys: str, tenant: Tenant = ALPHA) -> None:
    for key in keys:
        opened.store.published.offer(opened.store.stat(tenant.name, "bucket", key), described)


def number(opened: Opened, key: str, tenant: Tenant = ALPHA) -> int:
    found = board_of(opened).number(opened.store.stat(tenant.name, "bucket", key))
    assert found is not None
    return found


def next_victims(opened: Opened) -> list[str]:
    """The order in which objects would leave memory."""
    residents = opened.store._placement.room._residents(MEMORY)
    return [entry.record.key for entry in residents.victims(lambda _: True)]


async def test_plane_serves_what_the_store_would(opened: Opened) -> None:
    body = bytes(range(256)) * 5000
    await opened.put("key", body, **{"content-type": "text/plain", "x-amz-meta-a": "b"})
    offer(opened, "key")
    board, record = board_of(opened), opened.store.stat("alpha", "bucket", "key")
    [shown] = board.shown.values()
    assert board.get(1) == await opened.get("key") == body
    assert list(shown.headers.items()) == list(description(record).items())
    assert list(shown.checksums.items()) == list(checksum_headers(record).items())
    offer(opened, "key")
    assert len(board.shown) == 1
    opened.store.collect()
    assert opened.sample("kvgate_published_objects") == 1


async def test_what_an_answer_depends_on_keeps_an_object_from_being_published(opened: Opened) -> None:
    await opened.put("empty", b"")
    await opened.put(FOREIGN, b"x")
    await opened.put("key", b"x")
    offer(opened, "empty", FOREIGN)
    record = opened.store.stat("alpha", "bucket", "key")
    await opened.put("key", b"x")
    opened.store.published.offer(record, described)
    assert not board_of(opened).shown, "it has been replaced since"
    await opened.store.flush()
    opened.store._placement.copies.drop_copy(opened.entry("key"), MEMORY)
    offer(opened, "key")
    assert not board_of(opened).shown


async def test_rates_of_a_tenant_are_counted_by_the_store(open_test_store: OpenStore) -> None:
    limits = {"requests": RateConfig(requests=1000.0), "read": RateConfig(read_bytes=10**9)}
    tenants = [Tenant(name, buckets=("bucket",), rate=rate) for name, rate in limits.items()]
    free = Tenant("free", buckets=("bucket",), rate=RateConfig(write_bytes=10**9))
    async with open_test_store(tenants=(*tenants, free)) as opened:
        opened.store.published.attach(board := RecordingBoard())
        for tenant in (*tenants, free):
            await opened.put(tenant.name, b"x", tenant)
            offer(opened, tenant.name, tenant=tenant)
        assert published_keys(board) == ["free"]
        opened.store.published.detach()


async def put_again(opened: Opened) -> None:
    await opened.put("key", b"other")


async def put_the_same(opened: Opened) -> None:
    await opened.put("key", b"body")


async def delete(opened: Opened) -> None:
    await opened.store.delete("alpha", "bucket", "key")


async def leave_memory(opened: Opened) -> None:
    await opened.store.flush()
    opened.store._placement.copies.drop_copy(opened.entry("key"), MEMORY)


async def change_attributes(opened: Opened) -> None:
    await opened.store.set_attributes(ALPHA, "bucket", "key", lambda _: {"x-amz-meta-new": "1"})


async def set_policy(opened: Opened) -> None:
    await opened.store.buckets.set("alpha", "bucket", "policy", "{}")


async def give_an_end(opened: Opened) -> None:
    await opened.keep("key", ttl_ms=60_000)


async def give_another_an_end(opened: Opened) -> None:
    await opened.put("other", b"body", **{TTL: "60s"})


async def give_a_prefix_an_end(opened: Opened) -> None:
    await opened.store.keeper.keep_prefix("alpha", "bucket", "none of these", Change(ttl_ms=60_000))


async def pin_a_prefix(opened: Opened) -> None:
    await opened.store.keeper.keep_prefix("alpha", "bucket", "k", Change(pin=Pin.HARD))


async def record(opened: Opened) -> None:
    opened.store.recorder.begin()


Step = Callable[[Opened], Coroutine[Any, Any, None]]

ENDS: list[Step] = [
    *(put_again, put_the_same, delete, leave_memory, change_attributes, set_policy),
    *(give_an_end, give_another_an_end, give_a_prefix_an_end, pin_a_prefix, record),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("reader", ["nobody", "a client", "the plane"])
async def test_withdrawn_when_the_store_would_answer_otherwise(opened: Opened, end: Step, reader: str) -> None:
    await opened.put("key", b"body")
    await opened.put("key", b"body of beta", BETA)
    offer(opened, "key")
    offer(opened, "key", tenant=BETA)
    board, [shown, _] = board_of(opened), board_of(opened).shown.values()
    finish = board.begin(1) if reader == "the plane" else None
    with contextlib.ExitStack() as reads:
        if reader == "a client":
            reads.enter_context(opened.store.open_read("alpha", "bucket", "key"))
        await end(opened)
        assert 1 not in board.shown
        assert (2 in board.shown) is (end is not record), "the other tenant's bucket has nothing to do with it"
    if finish is not None:
        assert not shown.lease._released
        assert finish() == b"body"
        opened.store.published.settle()
    assert shown.lease._released
    if end is record:
        opened.store.recorder.end()
        offer(opened, "key")
        assert published_keys(board) == ["key"]


async def test_last_copy_in_memory_only_is_withdrawn_with_its_object(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=2 * MiB, disk_nbytes=None) as opened:
        opened.store.published.attach(board := RecordingBoard())
        for count in range(5):
            await opened.put(f"key-{count}", bytes([count]) * (MiB // 2))
            offer(opened, f"key-{count}")
            check_published(opened.store, board)
        assert published_keys(board) == opened.keys() == ["key-1", "key-2", "key-3", "key-4"]
        opened.store.published.detach()


async def test_what_the_plane_reads_is_not_evicted(open_test_store: OpenStore) -> None:
    async with open_test_store(memory_nbytes=2 * MiB, disk_nbytes=None) as opened:
        opened.store.published.attach(board := RecordingBoard())
        for count in range(4):
            await opened.put(f"key-{count}", bytes([count]) * (MiB // 2))
        offer(opened, "key-0")
        end = board.begin(1)
        opened.store.published.note_uses()
        for count in range(1, 4):
            await opened.get(f"key-{count}")
        await opened.put("key-4", b"4" * MiB)
        assert opened.keys() == ["key-0", "key-3", "key-4"]
        assert end() == bytes(MiB // 2)
        opened.store.published.detach()


async def test_least_recently_used_gives_way_where_too_many_are_published(open_test_store: OpenStore) -> None:
    async with open_test_store(published=2) as opened:
        opened.store.published.attach(board := RecordingBoard())
        for key in ("a", "b", "c"):
            await opened.put(key, key.encode())
        offer(opened, "a", "b")
        board.get(number(opened, "a"))
        offer(opened, "c")
        assert published_keys(board) == ["a", "c"]
        offer(opened, "a", "b")
        assert published_keys(board) == ["a", "b"]
        opened.store.published.detach()


async def test_none_are_published_where_none_may_be(open_test_store: OpenStore) -> None:
    async with open_test_store(published=0) as opened:
        opened.store.published.attach(board := RecordingBoard())
        await opened.put("key", b"body")
        offer(opened, "key")
        assert not board.shown
        opened.store.published.detach()


async def test_what_the_plane_cannot_serve_keeps_no_memory(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened.put("key", b"body")
    leases = opened.memory.arena.lease_count
    monkeypatch.setattr(RecordingBoard, "publish", lambda *_: None)
    offer(opened, "key")
    assert opened.memory.arena.lease_count == leases


async def test_reads_of_the_plane_count_as_uses_before_anything_is_evicted(opened: Opened) -> None:
    for key in ("a", "b", "c"):
        await opened.put(key, key.encode())
        offer(opened, key)
    board_of(opened).get(number(opened, "a"))
    assert next_victims(opened) == ["b", "c", "a"]


async def test_chain_that_the_plane_reads_goes_tail_first(opened: Opened) -> None:
    await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    links = [chunk(each) for each in range(3)]
    for key, body in links:
        await opened.put(key, body)
    offer(opened, *(key for key, _ in links))
    for key, _ in links:
        board_of(opened).get(number(opened, key))
    chain = [key for key, _ in links]
    assert [key for key in next_victims(opened) if key in chain] == chain[::-1]


async def test_reads_under_a_lease_belong_to_its_match(opened: Opened) -> None:
    await opened.put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    links = [chunk(each) for each in range(3)]
    for key, body in links:
        await opened.put(key, body)
    offer(opened, *(key for key, _ in links))
    match = opened.store.match("alpha", "bucket", SPACE.id, b"".join(chunk_hash(each) for each in range(3)), 30.0)
    board_of(opened).get(number(opened, links[-1][0]))
    opened.store.release("alpha", match.lease)
    chain = [key for key, _ in links]
    assert [key for key in next_victims(opened) if key in chain] == chain[::-1]


async def test_read_of_the_plane_offers_what_a_lower_tier_refused(open_test_store: OpenStore) -> None:
    rules = {"disk": TierRules(eviction="second-touch")}
    async with open_test_store(disk_nbytes=9 * MiB, rules=rules) as opened:
        opened.store.published.attach(board := RecordingBoard())
        for count in range(8):  # while the tier has room, it takes everything
            await opened.put(f"key-{count}", bytes(MiB))
        await opened.store.flush()
        await opened.put("once", bytes(MiB))
        await opened.put("twice", bytes(MiB))
        await opened.store.flush()
        assert opened.places("once") == opened.places("twice") == ["host"]
        offer(opened, "once", "twice")
        board.get(number(opened, "twice"))
        opened.store.published.note_uses()
        await opened.store.flush()
        assert opened.places("once") == ["host"]
        assert opened.places("twice") == ["host", "disk"]
        opened.store.published.detach()


async def test_copy_that_the_plane_found_corrupt_is_dropped_and_read_from_below(opened: Opened) -> None:
    await opened.put("key", b"body")
    await opened.store.flush()
    offer(opened, "key")
    board = board_of(opened)
    opened.entry("key").copies[MEMORY].lease.views[0][:1] = b"B"
    board.bad.append(1)
    opened.store.published.settle()
    assert not board.shown
    await opened.store._placement.copies.wait_for_background()
    assert opened.places("key") == ["disk"]
    assert opened.sample("kvgate_corrupt_copies_total", tier="host") == 1
    assert await opened.get("key") == b"body"


class PublishedStates(StoreStates):
    """The store as it is used by clients and a plane at once."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[Callable[[], bytes], bytes]] = []

    async def open(self) -> None:
        await super().open()
        self.board = RecordingBoard()
        self.store.published.attach(self.board)
        self.watcher = asyncio.create_task(self.watch())

    async def watch(self) -> None:
        """Look after every step of whatever goes on."""
        while True:
            check_published(self.store, self.board)
            await asyncio.sleep(0)

    async def close(self) -> None:
        assert not self.watcher.done(), self.watcher.exception()
        self.watcher.cancel()
        self.end_all()
        shown = list(self.board.shown.values())
        self.store.published.detach()
        assert all(each.lease._released for each in shown)
        await super().close()

    def read_elsewhere_nbytes(self) -> int:
        """Of withdrawn publications that are still read, and whose copies have left memory."""
        entries = [entry for entry in self.store._index.entries() if entry.copies[MEMORY] is not None]
        entries += [read._entry for read in self.reads if read._entry.copies[MEMORY] is not None]
        kept = {id(entry.copies[MEMORY].lease._slot) for entry in entries}
        slots = {id(slot): slot for shown in self.board.leaving.values() if id(slot := shown.lease._slot) not in kept}
        return sum(-(-slot.nbytes // 4096) * 4096 for slot in slots.values())

    def end_all(self) -> None:
        while self.ends:
            self.end_answer()
        assert not self.board.leaving

    @rule(name=names, key=keys)
    def ask(self, name: str, key: str) -> None:
        """As the S3 API does for HEAD and GET."""
        try:
            record = self.store.head(name, "bucket", key, name)
        except NoSuchKey:
            return
        self.store.published.offer(record, described)

    @rule(data=st.data())
    def begin_answer(self, data: st.DataObject) -> None:
        if self.board.shown:
            number = data.draw(st.sampled_from(sorted(self.board.shown)))
            record = self.board.shown[number].record
            self.ends.append((self.board.begin(number), self.written[record.tenant, record.key]))

    @rule()
    def end_answer(self) -> None:
        if self.ends:
            end, body = self.ends.pop(0)
            assert end() == body
            self.store.published.settle()

    @rule(name=names, document=st.sampled_from(["{}", None]))
    def describe_bucket(self, name: str, document: str | None) -> None:
        self.runner.run(self.store.buckets.set(name, "bucket", "cors", document))

    @rule(name=names, key=keys, ttl_ms=st.sampled_from([0, 3_600_000]))
    def retain(self, name: str, key: str, ttl_ms: int) -> None:
        self.runner.run(self.store.keeper.keep(name, "bucket", [key], Change(ttl_ms=ttl_ms)))

    @rule()
    def record(self) -> None:
        self.store.recorder.begin()
        check_published(self.store, self.board)
        self.store.recorder.end()

    @invariant()
    def nothing_is_served_that_the_store_would_not(self) -> None:
        if not hasattr(self, "store"):
            return
        assert not self.watcher.done(), self.watcher.exception()
        check_published(self.store, self.board)
        for shown in self.board.shown.values():
            record = shown.record
            assert shown.body == self.written[record.tenant, record.key]
            assert shown.headers == description(record)


TestPublishedStates = PublishedStates.TestCase
TestPublishedStates.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
