from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme
from redis.crc import key_slot

from kvgate.config import KiB, Seconds, Secret, Size, build
from kvgate.errors import ConfigError, CorruptCopy, NotAdmitted, NotInTier, TierAway, TierError, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.metrics import Metrics
from kvgate.tiers.base import HERE, Name, Record
from kvgate.tiers.guarded import Guarded, guarded
from kvgate.tiers.redis import RedisConfig, RedisTier
from kvgate.tiers.redis_head import decode_head
from kvgate.tiers.rules import TierRules
from tests.contracts.shared_tier import SharedTierContract, name_of
from tests.contracts.tier import content, describe, filled
from tests.tiers.redis_servers import Cluster, Server, free_port, started, wait_until


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"), "redis-server")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"), "valkey-server")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), "redis-server")
    yield cluster
    cluster.kill()


class RedisContract(SharedTierContract):
    """A subclass says in `options` how the tiers are configured, and gives a `url`."""

    capacity_nbytes = None
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    async def tier(self, url: str) -> AsyncIterator[RedisTier]:
        async with started(url, prefix=f"{os.urandom(4).hex()}:", **self.options) as tier:
            yield tier

    @pytest.fixture
    async def other(self, tier: RedisTier) -> AsyncIterator[RedisTier]:
        other = RedisTier(tier._config)
        await other.start(lambda _: None)
        yield other
        await other.close()


class TestRedis(RedisContract):
    @pytest.fixture
    def url(self, redis_server: Server) -> str:
        return redis_server.url


class TestValkey(RedisContract):
    options: ClassVar[dict[str, Any]] = {"ttl": None}

    @pytest.fixture
    def url(self, valkey_server: Server) -> str:
        return valkey_server.url


class TestCluster(RedisContract):
    @pytest.fixture
    def url(self, cluster: Cluster) -> str:
        return cluster.url


class TestOddPiecesAndCapacity(RedisContract):
    capacity_nbytes = 64 << 20
    options: ClassVar[dict[str, Any]] = {"piece": Size(100_000), "capacity": Size(64 << 20), "connections": 1}

    @pytest.fixture
    def url(self, redis_server: Server) -> str:
        return redis_server.url


class TestUnixSocket(RedisContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        server = Server(tmp_path, "redis-server", "--unixsocket", str(tmp_path / "s"))
        yield f"unix://{tmp_path}/s?db=3"
        server.kill()


class TestGuarded(RedisContract):
    """As the store uses it."""

    @pytest.fixture
    async def tier(self, redis_server: Server) -> AsyncIterator[Guarded]:
        async with started(redis_server.url, prefix=f"{os.urandom(4).hex()}:") as self.inner:
            wrapped = guarded(self.inner, TierRules(timeout=Seconds(60.0), lookup_timeout=Seconds(60.0)), Metrics())
            yield wrapped
            await wrapped.close()

    @pytest.fixture
    async def other(self, tier: Guarded) -> AsyncIterator[RedisTier]:
        async with started(self.inner._config.url, prefix=self.inner._config.prefix) as other:
            yield other


ACL = "+get +getex +set +hset +hget +hlen +persist +pexpire +unlink +multi +exec +eval +select"
"""What docs/tiers.md says that a user needs."""


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    port = free_port()
    names = {"cert": "cert", "key": "key", "ca-cert": "ca"}
    files = [part for name, file in names.items() for part in (f"--tls-{name}-file", str(folder / f"{file}.pem"))]
    server = Server(
        folder,
        "redis-server",
        *("--tls-port", str(port), "--port", "0", "--bind", "127.0.0.1", *files),
        port=port,
        host="127.0.0.1",
        ssl=True,
        ssl_ca_certs=str(folder / "ca.pem"),
        ssl_certfile=str(folder / "cert.pem"),
        ssl_keyfile=str(folder / "key.pem"),
    )
    server.admin("ACL", "SETUSER", "gate", "on", ">pass word/é", "~*", "resetchannels", "-@all", *ACL.split())
    yield server
    server.kill()


class TestTlsAndUser(RedisContract):
    """With a user that may do what docs/tiers.md lists, and nothing else."""

    @pytest.fixture
    async def tier(self, tls_server: Server) -> AsyncIterator[RedisTier]:
        folder = tls_server.folder.parent
        async with started(
            f"rediss://127.0.0.1:{tls_server.port}/2",
            username="gate",
            password=Secret("pass word/é"),
            tls_ca=folder / "ca.pem",
            tls_certificate=folder / "cert.pem",
            tls_key=folder / "key.pem",
            prefix=f"{os.urandom(4).hex()}:",
        ) as tier:
            yield tier

    async def test_a_wrong_password_is_no_reason_to_try_again_and_stays_secret(self, tls_server: Server) -> None:
        folder = tls_server.folder.parent
        tls = {f"tls_{name}": folder / f"{file}.pem" for name, file in (("certificate", "cert"), ("key", "key"))}
        async with started(
            f"rediss://127.0.0.1:{tls_server.port}",
            username="gate",
            password=Secret("hunter2"),
            tls_ca=folder / "ca.pem",
            **tls,
        ) as tier:
            with pytest.raises(TierError, match="refuses the user name or the password") as caught:
                await tier.lookup([Name("tenant", "bucket", "k")])
            assert not caught.value.transient
            assert "hunter2" not in repr(caught.value) + repr(tier._config)

    async def test_a_certificate_of_nobody_known_is_refused(self, tls_server: Server) -> None:
        async with started(f"rediss://127.0.0.1:{tls_server.port}") as tier:
            with pytest.raises(TierAway, match="certificate"):
                await tier.lookup([Name("tenant", "bucket", "k")])


# --- what lies in Redis -----------------------------------------------------------------------------------------------


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(256 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


@pytest.fixture
def empty(redis_server: Server) -> Server:
    redis_server.admin("FLUSHALL")
    return redis_server


async def put(tier: RedisTier, arena: Arena, key: str, body: bytes) -> Record:
    record, blocks = describe(key, body)
    upload = await tier.begin("tenant", len(body))
    try:
        with filled(arena, body) as lease:
            await upload.write(lease, 0, len(body))
        await upload.finish(record, blocks)
    except BaseException:
        await upload.abort()
        raise
    return record


async def get(tier: RedisTier, arena: Arena, record: Record, start: int = 0, stop: int | None = None) -> bytes:
    stop = record.nbytes if stop is None else stop
    with arena.reserve("tenant", stop - start) as lease:
        await tier.open(record, HERE).read_into(start, lease, stop - start)
        return content(lease)


def clients(server: Server) -> int:
    return len(server.admin("CLIENT", "LIST").splitlines())


def stored(server: Server, tier: RedisTier, record: Record) -> tuple[bytes, bytes]:
    """The keys of an object's head and body."""
    head = tier.head_key(name_of(record))
    return head, tier.body_key(decode_head(server.admin("GET", head), name_of(record)).body)


async def test_keys_are_as_documented(empty: Server, arena: Arena) -> None:
    async with started(empty.url, prefix="p:") as tier:
        record = await put(tier, arena, "kv/a b/{x}", b"body")
        head, body = sorted(empty.all_keys(), reverse=True)
        assert head == b"p:head:{}tenant/bucket/kv/a b/{x}"
        assert body.startswith(b"p:body:")
        assert len(body) == len(b"p:body:") + 32
        assert empty.admin("HGET", body, 0) == b"body"
        await tier.delete(record, HERE)
        assert empty.all_keys() == set()


async def test_no_name_chooses_its_slot(cluster: Cluster) -> None:
    tier = RedisTier(RedisConfig(url=cluster.url))
    slots = {key_slot(tier.head_key(Name("tenant", "bucket", "{tag}" + str(number)))) for number in range(100)}
    assert len(slots) > 90


async def test_a_piece_takes_no_more_memory_than_it_must(empty: Server, arena: Arena) -> None:
    async with started(empty.url) as tier:
        record = await put(tier, arena, "k", os.urandom(32 << 20))
        _, body = stored(empty, tier, record)
        assert empty.admin("MEMORY", "USAGE", body, "SAMPLES", 0) < 1.02 * (32 << 20)


async def test_unfinished_upload_expires_by_itself(empty: Server, arena: Arena) -> None:
    async with started(empty.url, upload_ttl=Seconds(0.5), ttl=None) as tier:
        upload = await tier.begin("tenant", None)
        with filled(arena, bytes(3 << 20)) as lease:
            for _ in range(3):
                await upload.write(lease, 0, 3 << 20)
                assert [empty.admin("PTTL", key) > 0 for key in empty.all_keys()] == [True]
        await asyncio.to_thread(wait_until, lambda: not empty.all_keys())  # the gateway is gone, so to speak
        record, blocks = describe("k", bytes(9 << 20))
        with pytest.raises(TierError) as caught:
            await upload.finish(record, blocks)
        assert caught.value.transient
        assert await tier.lookup([name_of(record)]) == [None]
        assert empty.all_keys() == set()


async def test_reading_renews_the_ttl_and_looking_up_does_not(empty: Server, arena: Arena) -> None:
    async with started(empty.url, ttl=Seconds(1000.0)) as tier:
        record = await put(tier, arena, "k", os.urandom(3 << 20))
        keys = stored(empty, tier, record)
        assert all(900_000 < empty.admin("PTTL", key) <= 1_000_000 for key in keys)
        for key in keys:
            empty.admin("PEXPIRE", key, 60_000)
        assert await tier.lookup([name_of(record)]) == [record]
        assert all(empty.admin("PTTL", key) <= 60_000 for key in keys)
        await get(tier, arena, record)
        assert all(empty.admin("PTTL", key) > 900_000 for key in keys)


async def test_without_ttl_objects_stay(empty: Server, arena: Arena) -> None:
    async with started(empty.url, ttl=None) as tier:
        record = await put(tier, arena, "k", b"body")
        await get(tier, arena, record)
        assert [empty.admin("PTTL", key) for key in stored(empty, tier, record)] == [-1, -1]


async def test_an_adopted_copy_stays_though_its_writer_died_before_it_said_so(empty: Server, arena: Arena) -> None:
    async with started(empty.url, ttl=None) as tier:
        record = await put(tier, arena, "k", b"body")
        _, body = stored(empty, tier, record)
        empty.admin("PEXPIRE", body, 60_000)  # as it is between the head and the word that the body stays
        used = tier.usage()
        await put(tier, arena, "k", b"body")
        assert empty.admin("PTTL", body) == -1
        assert len(empty.all_keys()) == 2
        assert tier.usage() == used


async def test_gateways_with_pieces_of_different_lengths_share(empty: Server, arena: Arena) -> None:
    body = os.urandom(5 * BLOCK_NBYTES + 77)
    async with started(empty.url, piece=Size(64 * KiB)) as small, started(empty.url, piece=Size(3_000_001)) as large:
        for key, writer, reader in (("a", small, large), ("b", large, small)):
            record = await put(writer, arena, key, body)
            assert await get(reader, arena, record) == body
            for first in range(5):
                at = first * BLOCK_NBYTES
                assert await get(reader, arena, record, at, at + BLOCK_NBYTES) == body[at : at + BLOCK_NBYTES]


# --- copies that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "another's", "not a string"])
async def test_a_damaged_piece_is_noticed(empty: Server, arena: Arena, damage: str) -> None:
    async with started(empty.url) as tier:
        body = os.urandom(3 * BLOCK_NBYTES)
        record = await put(tier, arena, "k", body)
        other = await put(tier, arena, "other", os.urandom(3 * BLOCK_NBYTES))
        _, key = stored(empty, tier, record)
        piece = empty.admin("HGET", key, 1)
        wrong = {
            "flipped": piece[:1000] + bytes([piece[1000] ^ 1]) + piece[1001:],
            "short": piece[:-1],
            "long": piece + b"x",
            "another's": empty.admin("HGET", stored(empty, tier, other)[1], 1),
        }
        if damage in wrong:
            empty.admin("HSET", key, 1, wrong[damage])
        else:
            empty.admin("SET", key, "text")
        with pytest.raises(CorruptCopy):
            await get(tier, arena, record)
        assert await tier.lookup([name_of(other)]) == [other]  # and the connections are none the worse for it
        assert len(await get(tier, arena, other)) == 3 * BLOCK_NBYTES
        await tier.delete(record, HERE)
        assert len(empty.all_keys()) == 2


@pytest.mark.parametrize("what", ["body", "piece", "head"])
async def test_what_redis_has_evicted_is_no_hit(empty: Server, arena: Arena, what: str) -> None:
    async with started(empty.url) as tier:
        body = os.urandom(3 * BLOCK_NBYTES)
        record = await put(tier, arena, "k", body)
        head, key = stored(empty, tier, record)
        if what == "piece":
            empty.admin("HDEL", key, 1)
        else:
            empty.admin("DEL", key if what == "body" else head)
        assert await tier.lookup([name_of(record)]) == [None]
        with pytest.raises(NotInTier):
            await get(tier, arena, record)
        again = await put(tier, arena, "k", body)
        assert await tier.lookup([name_of(record)]) == [again]
        assert await get(tier, arena, record) == body


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "another's"])
async def test_a_damaged_head_is_no_hit_and_is_replaced(empty: Server, arena: Arena, damage: str) -> None:
    async with started(empty.url) as tier:
        record = await put(tier, arena, "k", b"body")
        other = await put(tier, arena, "other", b"body")
        head, _ = stored(empty, tier, record)
        value = empty.admin("GET", head)
        wrong = {
            "empty": b"",
            "text": b"text" * 100,
            "truncated": value[:-1],
            "flipped": value[:60] + bytes([value[60] ^ 1]) + value[61:],
            "another's": empty.admin("GET", stored(empty, tier, other)[0]),
        }
        empty.admin("SET", head, wrong[damage])
        assert await tier.lookup([name_of(record)]) == [None]
        with pytest.raises(CorruptCopy):
            await get(tier, arena, record)
        assert await put(tier, arena, "k", b"body") == record
        assert await get(tier, arena, record) == b"body"
        empty.admin("SET", head, wrong[damage])
        await tier.delete(record, HERE)
        assert empty.admin("EXISTS", head) == 0


async def test_a_head_of_another_body_is_another_version(empty: Server, arena: Arena) -> None:
    async with started(empty.url) as tier:
        record = await put(tier, arena, "k", b"body")
        with pytest.raises(NotInTier):
            await get(tier, arena, record._replace(crc64nvme=record.crc64nvme ^ 1))
        with pytest.raises(NotAdmitted):
            await put(tier, arena, "k", b"BODY")
        assert len(empty.all_keys()) == 2


# --- room -------------------------------------------------------------------------------------------------------------


async def test_a_full_redis_is_a_full_tier_and_nothing_is_left_behind(tmp_path: Path, arena: Arena) -> None:
    server = Server(tmp_path, "redis-server", "--maxmemory", "24mb", "--maxmemory-policy", "noeviction")
    try:
        async with started(server.url) as tier:
            kept = await put(tier, arena, "kept", os.urandom(8 << 20))
            with pytest.raises(TierFull):
                await put(tier, arena, "large", os.urandom(32 << 20))
            assert len(server.all_keys()) == 2
            assert await tier.lookup([name_of(kept)]) == [kept]
            assert len(await get(tier, arena, kept)) == 8 << 20
    finally:
        server.kill()


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
async def test_where_redis_evicts_an_object_is_whole_or_a_miss(tmp_path: Path, arena: Arena, name: str) -> None:
    server = Server(tmp_path, name, "--maxmemory", "32mb", "--maxmemory-policy", "allkeys-random")
    try:
        async with started(server.url) as tier:
            bodies = {f"k{number}": os.urandom(2 << 20) for number in range(40)}
            records = []
            for key, body in bodies.items():
                with contextlib.suppress(TierError):  # a body can be evicted before it is an object's
                    records.append(await put(tier, arena, key, body))
            server.admin("CONFIG", "SET", "maxmemory", 0)  # what is there now stays
            found = await tier.lookup([name_of(record) for record in records])
            there = [record for record in found if record is not None]
            assert 0 < len(there) < len(records)
            for record in there:
                assert await get(tier, arena, record) == bodies[record.key]
            for record, hit in zip(records, found, strict=True):
                if hit is None:
                    with pytest.raises(NotInTier):
                        await get(tier, arena, record)
    finally:
        server.kill()


async def test_room_comes_back_though_redis_has_dropped_the_object(empty: Server, arena: Arena) -> None:
    async with started(empty.url, capacity=Size(8 << 20)) as tier:
        record = await put(tier, arena, "k", os.urandom(5 << 20))
        assert tier.room("tenant") < 3 << 20 < tier.limit()
        empty.admin("FLUSHALL")
        await tier.delete(record, HERE)
        await tier.delete(record, HERE)
        assert tier.usage().nbytes == 0


# --- names and configuration ------------------------------------------------------------------------------------------


async def test_a_read_only_tier_reads_from_a_replica_and_renews_nothing(
    tmp_path: Path, empty: Server, arena: Arena
) -> None:
    replica = Server(tmp_path, "redis-server", "--replicaof", "127.0.0.1", str(empty.port))
    try:
        async with started(empty.url) as tier, started(replica.url, read_only=True) as reader:
            record = await put(tier, arena, "k", os.urandom(3 << 20))
            await asyncio.to_thread(wait_until, lambda: replica.all_keys() == empty.all_keys())
            assert reader.read_only
            assert await reader.lookup([name_of(record)]) == [record]
            assert await get(reader, arena, record) == await get(tier, arena, record)
    finally:
        replica.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "url: this key is required"),
        ({"url": "http://x"}, "url: expected redis://host:port/db"),
        ({"url": "redis://gate:secret@x"}, "url: put the user and the password into"),
        ({"url": "redis://x:0"}, "url: expected"),
        ({"url": "redis://x/one"}, "url: expected"),
        ({"url": "redis+sentinel://x"}, "url: expected"),
        ({"url": "redis+cluster://x,y/1"}, "url: a cluster has no databases"),
        ({"url": "redis://x", "prefix": "{a}"}, "prefix: expected"),
        ({"url": "redis://x", "piece": "1KiB"}, "piece: expected 64KiB to 16MiB"),
        ({"url": "redis://x", "connections": 0}, "connections: expected 1 to 1024"),
        ({"url": "redis://x", "ttl": 0}, "ttl: expected at least 1ms"),
        ({"url": "redis://x", "tls_key": "/x"}, "tls_certificate: expected together with tls_key"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(RedisConfig, options)
    assert "secret" not in str(caught.value)


async def test_a_server_that_is_not_there_is_away_and_keeps_nobody_from_starting(arena: Arena) -> None:
    async with started(f"redis://127.0.0.1:{free_port()}") as tier:
        record, _ = describe("k", b"body")
        with pytest.raises(TierAway):
            await tier.lookup([name_of(record)])
        with pytest.raises(TierAway):
            await put(tier, arena, "k", b"body")
        with pytest.raises(TierAway):
            await get(tier, arena, record)
        with pytest.raises(TierAway):
            await tier.delete(record, HERE)
        assert tier.usage().nbytes == 0


async def test_no_more_connections_than_configured(empty: Server, arena: Arena) -> None:
    async with started(empty.url, connections=3) as tier:
        before = clients(empty)
        await asyncio.gather(*[put(tier, arena, f"k{number}", os.urandom(1 << 20)) for number in range(20)])
        assert clients(empty) <= before + 3


async def test_a_connection_that_the_server_closed_is_replaced_unseen(empty: Server, arena: Arena) -> None:
    async with started(empty.url) as tier:
        record = await put(tier, arena, "k", b"body")
        empty.admin("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.to_thread(wait_until, lambda: clients(empty) == 1)
        await asyncio.sleep(0.05)
        assert await get(tier, arena, record) == b"body"
