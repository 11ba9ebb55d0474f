"""The redis tier when servers die, hang, fail over and move their slots, and when its callers go away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from kvgate.config import Seconds
from kvgate.errors import NotInTier, TierAway, TierError
from kvgate.memory.arena import Arena
from kvgate.server.http1.eager import run_eagerly
from kvgate.tiers.base import HERE, Record
from kvgate.tiers.redis import RedisTier
from tests.contracts.shared_tier import name_of
from tests.contracts.tier import content, describe, filled
from tests.tiers.redis_servers import Cluster, Server, free_port, started, wait_until

PATIENCE_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "redis-server")
    yield server
    server.kill()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(256 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


async def put(tier: RedisTier, arena: Arena, key: str, body: bytes) -> Record:
    record, blocks = describe(key, body)
    upload = await tier.begin("tenant", len(body))
    try:
        with filled(arena, body) as lease:
            await upload.write(lease, 0, len(body))
        await upload.finish(record, blocks)
    except BaseException:
        with contextlib.suppress(TimeoutError):  # which the wrappers of a tier see to otherwise
            async with asyncio.timeout(1.0):
                await upload.abort()
        raise
    return record


async def get(tier: RedisTier, arena: Arena, record: Record) -> bytes:
    with arena.reserve("tenant", record.nbytes) as lease:
        await tier.open(record, HERE).read_into(0, lease, record.nbytes)
        return content(lease)


async def until_it_works(attempt: Any) -> None:
    """Return when `attempt` raises no TierError that says that the tier is away, or that trying again may help."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await attempt()
                return
            except TimeoutError:
                pass
            except TierError as error:
                if not error.transient:
                    raise
            await asyncio.sleep(0.05)


async def fresh_put(url: str, arena: Arena) -> None:
    async with started(url, connect_timeout=Seconds(0.2)) as tier:
        await put(tier, arena, "fresh", b"body")


def knows(sentinel: Server, *, replicas: int, sentinels: int) -> bool:
    state = sentinel.admin("INFO", "sentinel")["master0"]
    return (state["slaves"], state["sentinels"]) == (replicas, sentinels)


# --- callers that go away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 3])
async def test_cancelled_at_any_moment_nobody_gets_somebody_elses_answer(
    server: Server, arena: Arena, connections: int
) -> None:
    random_ = random.Random(connections)
    async with started(server.url, connections=connections) as tier:
        bodies = {f"k{number}": os.urandom(number * 400_000) for number in range(8)}
        records = {key: await put(tier, arena, key, body) for key, body in bodies.items()}
        ended = {"done": 0, "cancelled": 0}

        async def read() -> None:
            key = random_.choice(list(records))
            assert await get(tier, arena, records[key]) == bodies[key]

        async def look_up() -> None:
            keys = random_.choices([*records, "absent"], k=20)
            names = [name_of(records["k0"])._replace(key=key) for key in keys]
            assert await tier.lookup(names) == [records.get(key) for key in keys]

        async def write() -> None:
            body, key = os.urandom(random_.randrange(3_000_000)), f"new{random_.random()}"
            record = await put(tier, arena, key, body)
            assert await get(tier, arena, record) == body
            await tier.delete(record, HERE)
            assert await tier.lookup([name_of(record)]) == [None]

        async def work() -> None:
            for _ in range(60):
                task = asyncio.create_task(random_.choice([read, look_up, write])())
                if random_.random() < 0.6:
                    await asyncio.wait([task], timeout=random_.random() ** 2 * 0.04)
                    task.cancel()
                try:
                    await task
                    ended["done"] += 1
                except asyncio.CancelledError:
                    ended["cancelled"] += 1

        await asyncio.gather(*[work() for _ in range(6)])
        assert min(ended.values()) > 50, ended
        assert arena.lease_count == 0
        for key, body in bodies.items():
            assert await get(tier, arena, records[key]) == body


async def test_a_cancelled_command_leaves_no_reply_for_the_next_one(server: Server, arena: Arena) -> None:
    async with started(server.url, connections=1) as tier:
        one = await put(tier, arena, "one", b"1" * 1000)
        two = await put(tier, arena, "two", b"2" * 1000)
        server.signal(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await get(tier, arena, one)
        server.signal(signal.SIGCONT)
        assert await get(tier, arena, two) == b"2" * 1000
        assert await tier.lookup([name_of(two), name_of(one)]) == [two, one]


async def test_a_cancelled_read_writes_nothing_more(server: Server, arena: Arena) -> None:
    async with started(server.url) as tier:
        body = os.urandom(16 << 20)
        record = await put(tier, arena, "k", body)
        for number in range(20):
            lease = arena.reserve("tenant", len(body))
            told: list[int] = []
            reading = asyncio.create_task(tier.open(record, HERE).read_into(0, lease, len(body), told.append))
            while len(told) <= number % 5:
                await asyncio.sleep(0)
            reading.cancel()
            lease.release()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert arena.lease_count == 0
            with arena.reserve("tenant", len(body)) as other:  # the same memory
                for view in other.views:
                    view[:] = bytes(len(view))
                await asyncio.sleep(0.01)  # what was under way comes, or would
                assert content(other) == bytes(len(body))


async def test_a_lookup_needs_no_task_of_its_own(server: Server, arena: Arena) -> None:
    """As a handler of the plain front begins one."""
    async with started(server.url) as tier:
        record = await put(tier, arena, "k", b"body")
        await tier.close()
        await tier.start(lambda _: None)
        found: asyncio.Future[list[Record | None]] = asyncio.get_running_loop().create_future()

        async def handler() -> None:
            found.set_result(await tier.lookup([name_of(record)]))

        tasks: list[asyncio.Task[None]] = []
        asyncio.get_running_loop().call_soon(
            run_eagerly, handler(), lambda work: tasks.append(asyncio.create_task(work))
        )
        assert await found == [record]
        assert len(tasks) == 1


async def test_a_server_that_hangs_holds_no_lease_when_its_caller_has_gone(server: Server, arena: Arena) -> None:
    async with started(server.url) as tier:
        body = os.urandom(16 << 20)
        record = await put(tier, arena, "k", body)
        server.signal(signal.SIGSTOP)
        for attempt in (get(tier, arena, record), put(tier, arena, "new", body)):
            task = asyncio.create_task(attempt)
            await asyncio.wait([task], timeout=0.3)
            assert not task.done()
            assert arena.lease_count > 0
            task.cancel()
            await asyncio.wait([task], timeout=0.3)
            if not task.done():  # it is dropping what it wrote, and the server still hangs
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert arena.lease_count == 0
        server.signal(signal.SIGCONT)
        assert await get(tier, arena, record) == body
        assert tier.usage().nbytes == pytest.approx(16 << 20, rel=0.01)


# --- servers that go away ---------------------------------------------------------------------------------------------


async def test_killed_in_the_middle_the_tier_is_away_and_works_again_after_a_restart(
    server: Server, arena: Arena
) -> None:
    random_ = random.Random(3)
    bodies = {f"k{number}": os.urandom(8 << 20) for number in range(3)}
    async with started(server.url) as tier:
        for _ in range(6):
            records = {key: await put(tier, arena, key, body) for key, body in bodies.items()}
            reads = [asyncio.create_task(get(tier, arena, records[key])) for key in bodies]
            writes = [asyncio.create_task(put(tier, arena, f"new{key}", body)) for key, body in bodies.items()]
            await asyncio.sleep(random_.random() * 0.05)
            server.kill()
            for key, result in zip(bodies, await asyncio.gather(*reads, return_exceptions=True), strict=True):
                assert isinstance(result, TierAway) or result == bodies[key]
            for result in await asyncio.gather(*writes, return_exceptions=True):
                assert isinstance(result, TierAway | Record)
            with pytest.raises(TierAway):
                await tier.lookup([name_of(record) for record in records.values()])
            assert arena.lease_count == 0
            server.start()
            assert await tier.lookup([name_of(record) for record in records.values()]) == [None] * 3
            with pytest.raises(NotInTier):
                await get(tier, arena, records["k0"])
            for record in records.values():
                await tier.delete(record, HERE)


async def test_while_the_server_loads_its_data_the_tier_is_away(tmp_path: Path, arena: Arena) -> None:
    primary = Server(tmp_path, "redis-server")
    replica = Server(tmp_path, "redis-server", "--replica-serve-stale-data", "no")
    try:
        primary.kill()
        replica.admin("REPLICAOF", "127.0.0.1", primary.port)
        async with started(replica.url) as tier:
            record, _ = describe("k", b"body")
            with pytest.raises(TierAway):
                await tier.lookup([name_of(record)])
    finally:
        replica.kill()


async def test_sentinels_name_the_new_server_after_the_old_one_has_died_or_hangs(tmp_path: Path, arena: Arena) -> None:
    primary = Server(tmp_path, "redis-server")
    replica = Server(tmp_path, "redis-server", "--replicaof", "127.0.0.1", str(primary.port))
    sentinels = []
    for _ in range(2):
        port = free_port()
        folder = tmp_path / f"sentinel{port}"
        folder.mkdir()
        (folder / "conf").write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor kv 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds kv 500\nsentinel failover-timeout kv 1000\n"
        )
        sentinels.append(Server(folder, "redis-server", str(folder / "conf"), "--sentinel", port=port))
    url = f"redis+sentinel://127.0.0.1:{free_port()},{','.join(f'127.0.0.1:{s.port}' for s in sentinels)}/kv"
    try:
        async with started(url) as tier:
            body = os.urandom(3 << 20)
            record = await put(tier, arena, "k", body)
            await asyncio.to_thread(wait_until, lambda: replica.all_keys() == primary.all_keys())
            await asyncio.to_thread(wait_until, lambda: all(knows(each, replicas=1, sentinels=2) for each in sentinels))
            sentinels[0].signal(signal.SIGSTOP)  # it hangs, and the other one is asked
            await until_it_works(lambda: fresh_put(url, arena))
            sentinels[0].signal(signal.SIGCONT)
            primary.signal(signal.SIGSTOP)  # it hangs: only a caller's patience ends
            await until_it_works(lambda: put(tier, arena, "new", body))
            assert await get(tier, arena, record) == body
            assert await tier.lookup([name_of(record)]) == [record]
            primary.signal(signal.SIGCONT)  # it is made a replica of the new one
            await asyncio.to_thread(wait_until, lambda: primary.admin("ROLE")[0] == b"slave")
            await asyncio.to_thread(wait_until, lambda: primary.all_keys() == replica.all_keys())
            await put(tier, arena, "newer", body)
            replica.kill()
            await until_it_works(lambda: put(tier, arena, "newest", body))
            assert await get(tier, arena, record) == body
    finally:
        for each in (*sentinels, primary, replica):
            each.kill()


# --- clusters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, "valkey-server")
    yield cluster
    cluster.kill()


async def test_slots_that_move_are_followed_at_every_stage(cluster: Cluster, arena: Arena) -> None:
    async with started(cluster.url) as tier:
        bodies = {f"k{number}": os.urandom(300_000) for number in range(12)}
        records = {key: await put(tier, arena, key, body) for key, body in bodies.items()}
        source, target = cluster.nodes[0], cluster.nodes[2]
        ids = {node.port: node.admin("CLUSTER", "MYID").decode() for node in cluster.nodes}
        moving = sorted({key_slot(key) for key in source.all_keys()})
        assert moving

        async def all_is_well() -> None:
            assert await tier.lookup([name_of(record) for record in records.values()]) == list(records.values())
            for key, body in bodies.items():
                assert await get(tier, arena, records[key]) == body
            key = f"new{random.random()}"
            await tier.delete(await put(tier, arena, key, b"body"), HERE)

        for slot in moving:
            target.admin("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
            source.admin("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        await all_is_well()
        for key in source.all_keys():
            source.admin("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        assert source.all_keys() == set()
        await all_is_well()
        for slot in moving:
            for node in (target, source, cluster.nodes[1]):
                node.admin("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
        await all_is_well()


async def test_writes_into_slots_that_are_on_their_way_find_theirs(cluster: Cluster, arena: Arena) -> None:
    """What is not there yet is written where the slot is going to."""
    async with started(cluster.url) as tier:
        source, target = cluster.nodes[0], cluster.nodes[1]
        body = os.urandom(200_000)
        keys = [f"k{number}" for number in range(300)]
        record, _ = describe("", body)
        slots = {key: key_slot(tier.head_key(name_of(record)._replace(key=key))) for key in keys}
        chosen = [key for key, slot in slots.items() if slot < 16384 // 3][:10]
        for slot in {slots[key] for key in chosen}:
            target.admin("CLUSTER", "SETSLOT", slot, "IMPORTING", source.admin("CLUSTER", "MYID"))
            source.admin("CLUSTER", "SETSLOT", slot, "MIGRATING", target.admin("CLUSTER", "MYID"))
        records = [await put(tier, arena, key, body) for key in chosen]
        assert await tier.lookup([name_of(each) for each in records]) == records
        for each in records:
            assert await get(tier, arena, each) == body
            await tier.delete(each, HERE)
        assert cluster.all_keys() == set()


async def test_a_cluster_without_one_of_its_servers_serves_what_the_others_have(tmp_path: Path, arena: Arena) -> None:
    cluster = Cluster(tmp_path, "redis-server")
    try:
        for node in cluster.nodes:
            node.admin("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with started(cluster.url) as tier:
            records = [await put(tier, arena, f"k{number}", b"body") for number in range(40)]
            cluster.nodes[2].kill()
            found = await tier.lookup([name_of(record) for record in records])
            assert 0 < len([record for record in found if record is not None]) < 40
            for record, hit in zip(records, found, strict=True):
                if hit is not None:
                    assert await get(tier, arena, record) == b"body"
            cluster.nodes[0].kill()
            cluster.nodes[1].kill()
            with pytest.raises(TierAway):
                await tier.lookup([name_of(record) for record in records])
    finally:
        cluster.kill()


async def test_a_node_that_hangs_keeps_nobody_from_the_others(cluster: Cluster, arena: Arena) -> None:
    """Though it is the first that is asked who has what, and lookups have less patience than that takes."""
    async with started(cluster.url) as tier:
        for node in cluster.nodes:
            node.admin("CONFIG", "SET", "cluster-require-full-coverage", "no")
        records = [await put(tier, arena, f"k{number}", b"body") for number in range(40)]
        hanging, *others = cluster.nodes
        elsewhere = set().union(*[node.all_keys() for node in others])
        (record, *_) = [each for each in records if await keys_of(tier, each) <= elsewhere]
        hanging.signal(signal.SIGSTOP)
        async with started(cluster.url, connect_timeout=Seconds(0.5)) as fresh:

            async def look_up() -> None:
                async with asyncio.timeout(0.2):
                    assert await fresh.lookup([name_of(record)]) == [record]

            await until_it_works(look_up)


async def keys_of(tier: RedisTier, record: Record) -> set[bytes]:
    head = await tier.fetch_head(record)
    return {tier.head_key(name_of(record)), tier.body_key(head.body)}


async def test_a_replica_that_takes_over_is_found(tmp_path: Path, arena: Arena) -> None:
    cluster = Cluster(tmp_path, "redis-server")
    replica = Server(tmp_path, "redis-server", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    try:
        async with started(cluster.url) as tier:
            old = cluster.nodes[0]
            replica.admin("CLUSTER", "MEET", "127.0.0.1", old.port)
            await asyncio.to_thread(
                wait_until, lambda: replica.admin("CLUSTER", "REPLICATE", old.admin("CLUSTER", "MYID")) in (b"OK", True)
            )
            body = os.urandom(2 << 20)
            records = [await put(tier, arena, f"k{number}", body) for number in range(6)]
            await asyncio.to_thread(wait_until, lambda: replica.all_keys() == old.all_keys() != set())
            old.kill()

            async def all_are_there() -> None:
                for record in records:
                    assert await get(tier, arena, record) == body

            await until_it_works(all_are_there)
            assert await tier.lookup([name_of(record) for record in records]) == records
    finally:
        replica.kill()
        cluster.kill()
