"""Objects come to memory before their GETs, within the bounds of the configuration."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from kvgate.config import Seconds
from kvgate.errors import ConfigError, NoSuchKey
from kvgate.store.copies import MEMORY
from kvgate.store.prefetch import PrefetchConfig
from tests.chunks import SPACE, chunk, chunk_hash
from tests.store.conftest import ALPHA, BETA, MiB, Opened, OpenStore
from tests.store.test_store_states import TENANTS, StoreStates

MODEL = "meta-llama/Llama-3.1-8B"


def key(number: int, model: str = MODEL) -> str:
    """The key of a chunk as LMCache's server writes it."""
    return f"{model}@01000100@0@{number:064x}"


def head(opened: Opened, *numbers: int, tenant: str = "alpha") -> None:
    for number in numbers:
        opened.store.head(tenant, "bucket", key(number), tenant)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def at_rest(opened: Opened) -> None:
    await until(lambda: opened.store._foreign.prefetch._running == 0)


def unread_nbytes(opened: Opened) -> float:
    opened.store.collect()
    return opened.sample("kvgate_prefetch_unread_bytes")


@pytest.fixture
async def bodies(open_test_store: OpenStore) -> list[bytes]:
    """Twenty objects of a run, on disk."""
    bodies = [os.urandom(MiB) for _ in range(20)]
    async with open_test_store() as opened:
        for number, body in enumerate(bodies):
            await opened.put(key(number), body)
            await opened.put(key(number), body, BETA)
    return bodies


async def test_heads_bring_objects_to_memory_before_their_gets(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store() as opened:
        head(opened, *range(10))
        await until(lambda: opened.sample("kvgate_prefetched_objects_total") == 10)
        for number in range(10):
            assert opened.places(key(number)) == ["host", "disk"]
            assert await opened.get(key(number)) == bodies[number]
        assert opened.sample("kvgate_reads_total", tier="host") == 10
        assert opened.sample("kvgate_reads_total", tier="disk") == 0
        assert opened.sample("kvgate_prefetch_useful_objects_total") == 10
        assert opened.sample("kvgate_prefetch_wasted_objects_total") == 0
        assert unread_nbytes(opened) == 0
        assert opened.places(key(10)) == ["disk"]


async def test_a_range_brings_all_of_an_object_but_is_no_prefetch(
    open_test_store: OpenStore, bodies: list[bytes]
) -> None:
    async with open_test_store() as opened:
        assert await opened.get(key(0), 0, 1000) == bodies[0][:1000]
        assert opened.places(key(0)) == ["host", "disk"]
        assert opened.sample("kvgate_reads_total", tier="host") == 1
        assert opened.sample("kvgate_promoted_objects_total") == 1
        assert opened.sample("kvgate_prefetched_objects_total") == 0


async def test_a_get_joins_the_prefetch_of_its_object(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store() as opened:
        head(opened, 0)
        assert await opened.get(key(0), 0, 1000) == bodies[0][:1000]
        await at_rest(opened)
        assert opened.sample("kvgate_promoted_objects_total") == 1
        assert opened.sample("kvgate_reads_total", tier="disk") == 0
        assert unread_nbytes(opened) == 0


async def test_a_lookup_of_what_is_being_read_is_no_prefetch(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store() as opened:
        entry = opened.store._index.get("alpha", "bucket", key(0))
        reading = asyncio.create_task(opened.get(key(0)))
        while not opened.store._placement.promotion.is_running(entry):
            await asyncio.sleep(0)
        head(opened, 0)
        assert await reading == bodies[0]
        await at_rest(opened)
        assert opened.sample("kvgate_prefetched_objects_total") == 0
        assert unread_nbytes(opened) == 0


async def test_what_followed_before_is_fetched_ahead(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(prefetch=PrefetchConfig(ahead=4, share=0.5)) as opened:
        for _ in range(2):
            head(opened, *range(20))
        await at_rest(opened)
        placement = opened.store._placement
        for number in range(20):
            entry = opened.store._index.get("alpha", "bucket", key(number))
            assert entry is not None
            opened.store._foreign.prefetch.note_read(entry)
            placement.copies.drop_copy(entry, MEMORY)
        assert await opened.get(key(5)) == bodies[5]
        await until(lambda: opened.places(key(9)) == ["host", "disk"])
        assert [number for number in range(20) if "host" in opened.places(key(number))] == [5, 6, 7, 8, 9]


async def test_another_callers_order_leads_nowhere(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(prefetch=PrefetchConfig(share=0.0)) as opened:
        for _ in range(3):
            head(opened, *range(8))
        runs, series = opened.store._foreign._runs, ("alpha", "bucket", "lmcache-mp", MODEL, "01000100@0@")
        assert runs["alpha"].ahead(series, key(0), 2) == [key(1), key(2)]
        opened.store.head("alpha", "bucket", key(0), "beta")
        assert runs["beta"].ahead(series, key(0), 2) == []
        opened.store.head("alpha", "bucket", key(0), None)
        assert set(runs) == {"alpha", "beta"}


async def test_puts_teach_the_order_too(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        for _ in range(2):
            for number in range(6):
                await opened.put(key(number), bytes(1000))
        series = ("alpha", "bucket", "lmcache-mp", MODEL, "01000100@0@")
        runs = opened.store._foreign._runs["alpha"]
        assert runs.ahead(series, key(0), 8) == [key(number) for number in range(1, 6)]


async def test_share_of_memory_holds_and_reading_makes_room(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(memory_nbytes=16 * MiB) as opened:  # a quarter of that is four objects
        head(opened, *range(20))
        await until(lambda: opened.sample("kvgate_prefetched_objects_total") == 4)
        await at_rest(opened)
        assert unread_nbytes(opened) == 4 * MiB == opened.memory.usage().nbytes
        for number in range(20):
            await until(lambda number=number: "host" in opened.places(key(number)))  # type: ignore[misc]
            assert unread_nbytes(opened) <= 4 * MiB
            assert await opened.get(key(number)) == bodies[number]
        await until(lambda: opened.sample("kvgate_prefetch_useful_objects_total") == 20)


async def test_share_zero_prefetches_nothing(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(prefetch=PrefetchConfig(share=0.0)) as opened:
        head(opened, *range(20))
        assert opened.store._foreign.prefetch._running == 0
        assert opened.places(key(0)) == ["disk"]


async def test_tenants_share_the_room_equally(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(memory_nbytes=32 * MiB) as opened:  # a quarter of that is eight objects
        head(opened, *range(20))
        head(opened, *range(20), tenant="beta")
        await at_rest(opened)
        in_memory = [sum("host" in opened.places(key(n), tenant) for n in range(20)) for tenant in (ALPHA, BETA)]
        assert in_memory == [4, 4]
    async with open_test_store(memory_nbytes=32 * MiB) as opened:
        head(opened, *range(20))
        await at_rest(opened)
        head(opened, *range(20), tenant="beta")
        await at_rest(opened)
        assert unread_nbytes(opened) == 8 * MiB, "who comes first alone takes all, until it is read or given up"


async def test_what_is_never_read_leaves_memory(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(memory_nbytes=16 * MiB, prefetch=PrefetchConfig(hold=Seconds(0.3))) as opened:
        head(opened, *range(4))
        await until(lambda: opened.sample("kvgate_prefetched_objects_total") == 4)
        await until(lambda: opened.sample("kvgate_prefetch_wasted_objects_total") == 4)
        assert opened.memory.usage().nbytes == unread_nbytes(opened) == 0
        assert [opened.places(key(number)) for number in range(4)] == [["disk"]] * 4
        assert await opened.get(key(0)) == bodies[0]
        assert opened.sample("kvgate_prefetch_useful_objects_total") == 0


async def test_what_is_evicted_unread_is_counted_as_wasted(open_test_store: OpenStore, bodies: list[bytes]) -> None:
    async with open_test_store(memory_nbytes=16 * MiB) as opened:
        head(opened, *range(4))
        await until(lambda: opened.sample("kvgate_prefetched_objects_total") == 4)
        for number in range(32):
            await opened.put(f"other-{number}", bytes(MiB))
            await opened.store.flush()
        assert opened.places(key(0)) == ["disk"]
        opened.store._foreign.expire()
        assert opened.sample("kvgate_prefetch_wasted_objects_total") == 4
        assert unread_nbytes(opened) == 0


async def test_a_bad_copy_below_is_dropped_and_nothing_is_counted(
    open_test_store: OpenStore, bodies: list[bytes]
) -> None:
    async with open_test_store() as opened:
        entry = opened.store._index.get("alpha", "bucket", key(0))
        assert entry is not None
        assert opened.disk is not None
        path = opened.disk.path(entry.copies[1])
        path.write_bytes(b"x" + path.read_bytes()[1:])
        head(opened, 0)
        await at_rest(opened)
        assert opened.sample("kvgate_corrupt_copies_total", tier="disk") == 1
        assert opened.sample("kvgate_prefetched_objects_total") == 0
        assert unread_nbytes(opened) == 0
        with pytest.raises(NoSuchKey):
            opened.store.head("alpha", "bucket", key(0), "alpha")


async def test_other_keys_are_never_prefetched(open_test_store: OpenStore) -> None:
    async with open_test_store() as opened:
        await opened.put("model.safetensors", bytes(1000))
    async with open_test_store() as opened:
        for _ in range(3):
            opened.store.head("alpha", "bucket", "model.safetensors", "alpha")
        assert opened.store._foreign.prefetch._running == 0
        assert opened.places("model.safetensors") == ["disk"]
        assert len(opened.store._foreign._runs) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share: expected 0 to 1, got 1.5"),
        ({"ahead": 257}, "ahead: expected 0 to 256, got 257"),
        ({"concurrency": 0}, "concurrency: expected 1 to 64, got 0"),
        ({"keys": 0}, "keys: expected 1 to 10000000, got 0"),
        ({"models": -1}, "models: expected 0 to 10000, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrefetchConfig(**options)  # type: ignore[arg-type]


runs = st.sampled_from([key(number) for number in range(4)])
names = st.sampled_from([tenant.name for tenant in TENANTS])


class PrefetchStates(StoreStates):
    """The store's own machine, with clients of LMCache besides: a prefetch changes nothing that a client can see."""

    @rule(name=names, key=runs, nbytes=st.sampled_from([1, 5000, 300 << 10]), known=st.booleans())
    def put_chunk(self, name: str, key: str, nbytes: int, known: bool) -> None:
        self.put(name, key, nbytes, known)

    @rule(name=names, key=runs, part=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def get_chunk(self, name: str, key: str, part: tuple[float, float]) -> None:
        self.get(name, key, part)

    @rule(
        name=names,
        keys=st.lists(runs, max_size=8),
        then=st.lists(st.tuples(st.sampled_from(["get", "put", "delete"]), runs), max_size=4),
        after_restart=st.booleans(),
    )
    def look_up(self, name: str, keys: list[str], then: list[tuple[str, str]], after_restart: bool) -> None:
        """HEADs, and what comes right after them, while objects are being prefetched."""
        if after_restart:
            self.restart()

        async def run() -> None:
            for key in keys:
                try:
                    nbytes = self.store.head(name, "bucket", key, name).nbytes
                except NoSuchKey:  # it may have been evicted
                    continue
                assert nbytes == len(self.written[name, key])

        self.runner.run(run())
        for what, key in then:
            if what == "get":
                self.get(name, key, (0.0, 1.0))
            elif what == "put":
                self.put(name, key, 5000, True)
            else:
                self.delete(name, key)

    @rule(name=names, key=runs)
    def delete_chunk(self, name: str, key: str) -> None:
        self.delete(name, key)

    @rule()
    def expire(self) -> None:
        async def run() -> None:
            self.store._foreign.expire()

        self.runner.run(run())

    @invariant()
    def guesses_are_bounded_and_counted(self) -> None:
        if not hasattr(self, "store"):
            return
        self.runner.run(self.quiesce())
        prefetch = self.store._foreign.prefetch
        assert prefetch._running == 0
        assert prefetch.unread_nbytes == sum(entry.record.nbytes for entry in prefetch._guesses)
        assert prefetch.unread_nbytes <= self.memory.limit() // 4
        assert all(guess.arrived and not guess.read for guess in prefetch._guesses.values())


TestPrefetchStates = PrefetchStates.TestCase
TestPrefetchStates.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


# --- asked for --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def prompt(open_test_store: OpenStore) -> list[bytes]:
    """The hashes of eight chunks on disk."""
    async with open_test_store() as opened:
        await opened.put(f"kv/{SPACE.id}/manifest.json", SPACE.canonical_json())
        for number in range(8):
            await opened.put(*chunk(number))
    return [chunk_hash(number) for number in range(8)]


async def test_what_an_engine_asks_for_comes_to_memory(open_test_store: OpenStore, prompt: list[bytes]) -> None:
    async with open_test_store() as opened:
        found = await opened.store.prefetch("alpha", "bucket", SPACE.id, [*prompt, bytes(32)])
        assert (found.tiers, found.ranks, found.wanted) == (("host", "disk"), [1] * 8 + [None], 8)
        await at_rest(opened)
        found = await opened.store.prefetch("alpha", "bucket", SPACE.id, prompt)
        assert (found.ranks, found.wanted) == ([0] * 8, 0)
        assert unread_nbytes(opened) > 0
        for number in range(8):
            await opened.get(chunk(number)[0])
        assert unread_nbytes(opened) == 0
        assert opened.sample("kvgate_prefetch_useful_objects_total") == 8


async def test_what_was_asked_for_in_vain_leaves_memory_again(open_test_store: OpenStore, prompt: list[bytes]) -> None:
    async with open_test_store(prefetch=PrefetchConfig(hold=Seconds(0.1))) as opened:
        await opened.store.prefetch("alpha", "bucket", SPACE.id, prompt)
        await at_rest(opened)
        await until(lambda: opened.places(chunk(7)[0]) == ["disk"])
        assert opened.sample("kvgate_prefetch_wasted_objects_total") == 8


async def test_a_match_prefetches_as_many_as_it_was_told_to(open_test_store: OpenStore, prompt: list[bytes]) -> None:
    async with open_test_store(prefetch=PrefetchConfig(after_match=3)) as opened:
        found = opened.store.match("alpha", "bucket", SPACE.id, b"".join(prompt), 10)
        assert found.ranks == [1] * 8
        await at_rest(opened)
        places = [opened.places(chunk(number)[0])[0] for number in range(8)]
        assert places == ["host"] * 3 + ["disk"] * 5
        found = opened.store.match("alpha", "bucket", SPACE.id, b"".join(prompt), 10)
        assert found.ranks == [0] * 3 + [1] * 5
    async with open_test_store() as opened:
        opened.store.match("alpha", "bucket", SPACE.id, b"".join(prompt), 10)
        await at_rest(opened)
        assert opened.sample("kvgate_prefetched_objects_total") == 0
