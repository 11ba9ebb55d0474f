from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.store.index import Entry
from kvgate.store.write_queue import WriteQueue
from kvgate.tiers.base import Record


def entry(tenant: str, key: str = "k", nbytes: int = 1) -> Entry:
    return Entry(Record(tenant, "b", key, nbytes, 0, 0), ("copy",))


async def drain(queue: WriteQueue, count: int) -> list[str]:
    """Tenant and key of what is taken, one after the other."""
    taken = []
    for _ in range(count):
        each = await asyncio.wait_for(queue.take(), 5)
        taken.append(f"{each.record.tenant}/{each.record.key}")
        queue.end(each)
    return taken


async def test_one_tenant_is_first_in_first_out() -> None:
    queue = WriteQueue(None)
    entries = [entry("a", str(number)) for number in range(4)]
    for each in entries:
        assert queue.put(each) is None
    assert queue.put(entries[0]) is None
    assert len(queue) == 4
    assert await drain(queue, 4) == ["a/0", "a/1", "a/2", "a/3"]
    assert len(queue) == 0


async def test_who_comes_with_one_object_does_not_wait_behind_a_flood() -> None:
    queue = WriteQueue(None)
    for number in range(100):
        queue.put(entry("flood", str(number), 1000))
    assert await drain(queue, 10) == [f"flood/{number}" for number in range(10)]
    queue.put(entry("quiet", "only", 1000))
    assert "quiet/only" in await drain(queue, 2)


async def test_a_full_queue_lets_go_of_the_oldest_of_who_has_the_most() -> None:
    queue = WriteQueue(5)
    quiet = entry("quiet")
    assert queue.put(quiet) is None
    flood = [entry("flood", str(number)) for number in range(7)]
    fallen = [queue.put(each) for each in flood]
    assert fallen == [None, None, None, None, flood[0], flood[1], flood[2]]
    assert quiet in queue
    assert flood[0] not in queue
    assert set(queue.clear()) == {quiet, *flood[3:]}
    assert len(queue) == 0


async def test_what_is_being_written_counts_until_its_end() -> None:
    queue = WriteQueue(None)
    each = entry("a")
    queue.put(each)
    taken = await queue.take()
    assert (taken is each, len(queue), each in queue) == (True, 1, True)
    assert queue.put(each) is None
    assert len(queue) == 1
    waiting = asyncio.ensure_future(queue.wait_until_empty(10))
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.end(each)
    await waiting


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=2, max_size=4),
    sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    rounds=st.integers(1, 60),
)
@settings(deadline=None)
def test_tenants_that_always_wait_get_bytes_by_their_weights(
    weights: list[float], sizes: list[int], rounds: int
) -> None:
    async def run() -> None:
        by_name = {f"t{number}": weight for number, weight in enumerate(weights)}
        queue = WriteQueue(None, by_name.__getitem__)
        for number, name in enumerate(by_name):
            for turn in range(rounds * 10):
                queue.put(entry(name, str(turn), sizes[(turn + number) % len(sizes)]))
        got = dict.fromkeys(by_name, 0.0)
        for _ in range(rounds):
            each = await queue.take()
            got[each.record.tenant] += max(1, each.record.nbytes) / by_name[each.record.tenant]
            queue.end(each)
        largest = max(1, *sizes) / min(weights)
        assert max(got.values()) - min(got.values()) <= largest + 1e-6

    asyncio.run(run())
