"""Gateways that are read from: real ones, ones that are gone, and ones that lie."""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme

from kvgate.auth.sigv4 import Credential
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.client.sync import Client
from kvgate.config import Seconds
from kvgate.errors import ConfigError, CorruptCopy, NotAdmitted, NotInTier, TierAway, TierError
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest
from kvgate.tiers.base import HERE, Name, Record
from kvgate.tiers.peer import PeerConfig, PeerTier
from kvgate.tiers.peer_records import pack_record
from tests.client.chunks import SPACE, chunks
from tests.client.peer import Peer, Server
from tests.contracts.tier import SIZES, content, describe
from tests.gateways import ALPHA, RunningGateway, default_config, free_port

CLUSTER = Credential("CLUSTERKEY000", "cluster-secret-0123456789abcdef")
BUCKET = "alpha-bucket"

_numbers = itertools.count()


def cluster_section(credential: Credential = CLUSTER) -> dict[str, str]:
    return {"access_key": credential.access_key, "secret_key": credential.secret_key}


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that others may read from: use keys of your own."""
    folder = tmp_path_factory.mktemp("far")
    config = default_config(folder) | {"cluster": cluster_section()}
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


Peers = Callable[..., Any]


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """Make a started tier that reads from gateways at these URLs."""
    made: list[PeerTier] = []

    async def make(*urls: str, credential: Credential = CLUSTER, **options: Any) -> PeerTier:
        tier = PeerTier(PeerConfig(urls=urls, **({"ask_timeout": Seconds(5.0)} | options)))
        tier.join(credential)
        await tier.start(lambda _: pytest.fail("a peer's objects are not reported"))
        made.append(tier)
        return tier

    yield make
    for tier in made:
        await tier.close()


@pytest.fixture
def lie() -> Iterator[Callable[[Callable[[Peer], object]], str]]:
    """A server that answers as a test says: its URL."""
    servers: list[Server] = []

    def start(serve: Callable[[Peer], object]) -> str:
        servers.append(Server(serve))
        return f"http://127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        server.stop()


def put(gateway: RunningGateway, body: bytes, key: str | None = None) -> Name:
    key = key or f"key {next(_numbers)}"
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30, local=False) as client:
        client.put(BUCKET, key, body, content_type="text/plain", metadata={"a": "b"})
    return Name("alpha", BUCKET, key)


async def get(tier: PeerTier, arena: Arena, record: Record, start: int = 0, stop: int | None = None) -> bytes:
    stop = record.nbytes if stop is None else stop
    reader = tier.open(record, HERE)
    try:
        with arena.reserve(record.tenant, stop - start) as lease:
            blocks = await reader.read_into(start, lease, stop - start)
            read = content(lease)
            digest = BlockDigest()
            digest.update(memoryview(read))
            assert list(blocks) == list(digest.blocks)
            return read
    finally:
        await reader.close()


async def found(tier: PeerTier, name: Name) -> Record:
    (record,) = await tier.lookup([name])
    assert record is not None
    return record


# --- what another gateway has -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", SIZES)
async def test_reads_what_another_gateway_has(far: RunningGateway, peers: Peers, arena: Arena, nbytes: int) -> None:
    body = os.urandom(nbytes)
    name = put(far, body)
    tier = await peers(far.url)
    record = await found(tier, name)
    assert (record[:3], record.nbytes) == (name, nbytes)
    assert record.attributes.items() >= {"content-type": "text/plain", "x-amz-meta-a": "b"}.items()
    assert await get(tier, arena, record) == body


async def test_reads_any_run_of_blocks(far: RunningGateway, peers: Peers, arena: Arena) -> None:
    body = os.urandom(3 * BLOCK_NBYTES + 100)
    name, tier = put(far, body), await peers(far.url)
    record = await found(tier, name)
    for start, stop in [(0, BLOCK_NBYTES), (BLOCK_NBYTES, 3 * BLOCK_NBYTES), (3 * BLOCK_NBYTES, len(body))]:
        assert await get(tier, arena, record, start, stop) == body[start:stop]


async def test_says_on_the_way_what_has_arrived(far: RunningGateway, peers: Peers, arena: Arena) -> None:
    body = os.urandom(32 * BLOCK_NBYTES)
    name, tier = put(far, body), await peers(far.url)
    record, told = await found(tier, name), []
    with arena.reserve(record.tenant, len(body)) as lease:
        await tier.open(record, HERE).read_into(0, lease, len(body), told.append)
        assert content(lease) == body
    assert told == sorted(told)
    assert 0 < told[0] <= told[-1] < len(body)


async def test_what_lies_only_on_its_disk_is_read_too(
    start_gateway: Callable[..., RunningGateway], peers: Peers, arena: Arena
) -> None:
    gateway = start_gateway(cluster=cluster_section())
    bodies = [os.urandom(nbytes) for nbytes in (0, 5, 3 * BLOCK_NBYTES + 5)]
    names = [put(gateway, body) for body in bodies]
    gateway.restart()  # now memory is empty
    tier = await peers(gateway.url)
    records = await tier.lookup(names)
    for record, body in zip(records, bodies, strict=True):
        assert record is not None
        assert await get(tier, arena, record) == body
    again = await peers(gateway.url)
    assert await again.lookup(names) == records


async def test_lookup_keeps_order_and_tells_names_apart(far: RunningGateway, peers: Peers) -> None:
    keys = ["l/a/b", "l/a%2Fb", "l/A", "l/a:b", "l/a b", "l/a+b", "l/é", "l/e\u0301", "l/" + "a" * 1022]
    names = [put(far, key.encode(), key) for key in keys]
    tier = await peers(far.url)
    absent = [Name("alpha", BUCKET, "absent"), Name("beta", BUCKET, keys[0]), Name("alpha", "shared-name", keys[0])]
    records = await tier.lookup([absent[0], *names, *absent[1:]])
    assert [record and Name(*record[:3]) for record in records] == [None, *names, None, None]
    assert [record.nbytes for record in records if record] == [len(key.encode()) for key in keys]


async def test_very_many_names_are_asked_in_few_calls(far: RunningGateway, peers: Peers) -> None:
    name, tier = put(far, b"body"), await peers(far.url)
    before = far.answered("PeerRecords")
    names = [Name("alpha", BUCKET, f"absent{number}") for number in range(1500)]
    records = await tier.lookup([*names, name])
    assert [record is not None for record in records] == [False] * 1500 + [True]
    assert far.answered("PeerRecords") - before == 2


async def test_object_that_is_gone_or_another_one_is_a_miss(far: RunningGateway, peers: Peers, arena: Arena) -> None:
    gone, replaced = put(far, b"gone"), put(far, b"first")
    tier = await peers(far.url)
    records = [await found(tier, name) for name in (gone, replaced)]
    with Client(far.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.delete(BUCKET, gone.key)
        client.put(BUCKET, replaced.key, b"second")
    for record in records:
        with pytest.raises(NotInTier):
            await get(tier, arena, record)
    assert await tier.lookup([gone]) == [None]
    assert await get(tier, arena, await found(tier, replaced)) == b"second"


async def test_reader_finds_by_itself_what_it_was_not_told_of(far: RunningGateway, peers: Peers, arena: Arena) -> None:
    """The record may be from another life of this gateway: who has the object is asked then."""
    name, first = put(far, b"body"), await peers(far.url)
    record = await found(first, name)
    assert await get(await peers(far.url), arena, record) == b"body"
    with pytest.raises(NotInTier):
        await get(await peers(far.url), arena, record._replace(crc64nvme=1))


async def test_cancelled_read_holds_its_lease_until_the_thread_has_ended(
    far: RunningGateway, peers: Peers, arena: Arena
) -> None:
    body = os.urandom(16 << 20)
    name, tier = put(far, body), await peers(far.url)
    record = await found(tier, name)
    for number in range(10):
        async with asyncio.timeout(30):
            while arena.headroom(record.tenant) < len(body):  # reads that were cancelled have it still
                await asyncio.sleep(0.01)
        lease = arena.reserve(record.tenant, len(body))
        task = asyncio.create_task(tier.open(record, HERE).read_into(0, lease, len(body)))
        for _ in range(number):
            await asyncio.sleep(0.001)
        task.cancel()
        lease.release()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(30):
        while arena.lease_count:
            await asyncio.sleep(0.01)
    assert await get(tier, arena, record) == body


async def test_nothing_is_ever_written(far: RunningGateway, peers: Peers) -> None:
    tier, (record, _) = await peers(far.url), describe("k", b"body")
    assert (tier.read_only, tier.shared, tier.room("alpha"), tier.usage().nbytes) == (True, True, 0, 0)
    for call in (tier.begin("alpha", 1), tier.publish(record, HERE), tier.delete(record, HERE)):
        with pytest.raises(NotAdmitted):
            await call


# --- several gateways -------------------------------------------------------------------------------------------------


async def test_each_object_is_found_wherever_it_is(
    far: RunningGateway, start_gateway: Callable[..., RunningGateway], peers: Peers, arena: Arena
) -> None:
    second = start_gateway(cluster=cluster_section())
    names = [put(gateway, b"body") for gateway in [far, second] * 10]
    tier = await peers(far.url, second.url)
    before = far.answered("PeerRecords") + second.answered("PeerRecords")
    records = await tier.lookup(names)
    assert all(records)
    calls = far.answered("PeerRecords") + second.answered("PeerRecords") - before
    assert 2 <= calls <= 4  # each gateway for those that it should have, then for those that the other one has not
    for record in records:
        assert await get(tier, arena, record) == b"body"
    second.kill()
    remaining = await tier.lookup(names)
    assert [record is not None for record in remaining] == [True, False] * 10


async def test_no_more_gateways_are_asked_than_may_be(far: RunningGateway, peers: Peers, lie: Any) -> None:
    asked: list[int] = []

    def empty(number: int) -> Callable[[Peer], None]:
        def serve(peer: Peer) -> None:
            while (request := peer.request())[0]:
                asked.append(number)
                answer(peer, [None] * len(msgpack.unpackb(request[1])["keys"]))

        return serve

    tier = await peers(*[lie(empty(number)) for number in range(4)], ask=2)
    assert await tier.lookup([Name("alpha", BUCKET, "k")]) == [None]
    assert len(asked) == len(set(asked)) == 2


async def test_gateway_that_is_gone_is_left_alone_and_the_others_answer(
    far: RunningGateway, peers: Peers, arena: Arena
) -> None:
    names = [put(far, b"body") for _ in range(20)]
    tier = await peers(f"http://127.0.0.1:{free_port()}", far.url, rest=Seconds(60.0))
    assert all(await tier.lookup(names))
    assert tier._awake() == [far.url]
    assert all(await tier.lookup(names))


async def test_gateway_that_swallows_what_it_is_sent_costs_its_time_and_no_more(
    far: RunningGateway, peers: Peers, lie: Any
) -> None:
    names = [put(far, b"body") for _ in range(20)]
    tier = await peers(lie(lambda peer: peer.stopped.wait()), far.url, ask_timeout=Seconds(1.0), rest=Seconds(60.0))
    async with asyncio.timeout(30):
        assert all(await tier.lookup(names))
    assert tier._awake() == [far.url]


async def test_gateway_that_is_slower_than_its_caller_waits_is_left_alone_too(
    far: RunningGateway, peers: Peers, lie: Any
) -> None:
    """The time that a lookup has may be over before that of one call is."""
    names = [put(far, b"body") for _ in range(20)]
    tier = await peers(lie(lambda peer: peer.stopped.wait()), far.url, ask_timeout=Seconds(60.0), rest=Seconds(60.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await tier.lookup(names)
    async with asyncio.timeout(30):
        assert all(await tier.lookup(names))
    assert tier._awake() == [far.url]


async def test_tier_is_away_only_when_no_gateway_answers(
    start_gateway: Callable[..., RunningGateway], peers: Peers, arena: Arena
) -> None:
    gateway = start_gateway(cluster=cluster_section())
    name, tier = put(gateway, b"body"), await peers(gateway.url, rest=Seconds(0.05))
    record = await found(tier, name)
    gateway.kill()
    for _ in range(3):
        with pytest.raises(TierAway):
            await tier.lookup([name])
    with pytest.raises(TierError):
        await get(tier, arena, record)
    gateway.start()
    async with asyncio.timeout(60):
        while True:
            try:
                again = await found(tier, name)
                break
            except TierAway:
                await asyncio.sleep(0.05)
    assert again.same_body(record)
    assert await get(tier, arena, record) == b"body"


async def test_without_any_other_gateway_all_is_a_miss(peers: Peers) -> None:
    url = "http://127.0.0.1:9"
    tier = await peers(url, advertise=url)
    assert await tier.lookup([Name("alpha", BUCKET, "k")]) == [None]


async def test_what_is_remembered_is_bounded(far: RunningGateway, peers: Peers, arena: Arena) -> None:
    names = [put(far, b"body") for _ in range(6)]
    tier = await peers(far.url, remembered=2)
    records = await tier.lookup(names)
    assert len(tier._known) == 2
    for record in records:
        assert await get(tier, arena, record) == b"body"


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "credential",
    [
        Credential(ALPHA.access_key, ALPHA.secret_key),
        Credential(CLUSTER.access_key, "another-secret-0123456789"),
        Credential("STRANGER00", CLUSTER.secret_key),
    ],
)
async def test_who_has_another_credential_learns_nothing(
    far: RunningGateway, peers: Peers, arena: Arena, credential: Credential
) -> None:
    name = put(far, b"body")
    record = await found(await peers(far.url), name)
    tier = await peers(far.url, credential=credential)
    with pytest.raises(TierAway):
        await tier.lookup([name])
    with pytest.raises(TierError):
        await get(tier, arena, record)


async def test_over_tls_only_who_has_a_certificate_is_read_from(
    start_gateway: Callable[..., RunningGateway], peers: Peers, arena: Arena, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    for name, ca in (("ours", authority), ("strange", stranger)):
        ca.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "gateway.pem")
    pem = str(tmp_path / "gateway.pem")
    gateway = start_gateway(cluster=cluster_section(), listen={"tls_certificate": pem, "tls_key": pem})
    body, url = os.urandom(9 * BLOCK_NBYTES + 5), gateway.url.replace("http:", "https:")
    context = ssl.create_default_context(cafile=tmp_path / "ours.pem")
    with Client(url, ALPHA.access_key, ALPHA.secret_key, tls=context, deadline_s=30) as client:
        client.put(BUCKET, "k", body)
    tier = await peers(url, tls_ca=tmp_path / "ours.pem")
    record = await found(tier, Name("alpha", BUCKET, "k"))
    assert await get(tier, arena, record) == body
    assert await get(tier, arena, record, BLOCK_NBYTES, 2 * BLOCK_NBYTES) == body[BLOCK_NBYTES : 2 * BLOCK_NBYTES]
    misled = await peers(url, tls_ca=tmp_path / "strange.pem")
    with pytest.raises(TierAway):
        await misled.lookup([Name("alpha", BUCKET, "k")])


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls_ca"):
        PeerTier(PeerConfig(urls=("https://127.0.0.1:9",), tls_ca=tmp_path / "absent.pem"))


async def test_tier_without_a_credential_does_not_start() -> None:
    tier = PeerTier(PeerConfig(urls=("http://127.0.0.1:9",)))
    with pytest.raises(TierError, match="cluster"):
        await tier.start(lambda _: None)
    await tier.close()


# --- gateways that lie ------------------------------------------------------------------------------------------------

BODY = os.urandom(2 * BLOCK_NBYTES + 77)
RECORD, BLOCKS = describe("k", BODY)
NAME = Name("tenant", "bucket", "k")


def answer(peer: Peer, records: object) -> None:
    peer.respond(msgpack.packb({"records": records}), "content-type: application/msgpack")


def liar(
    body: Callable[[Peer], object] = lambda peer: peer.respond(BODY),
    records: Callable[[Peer], object] = lambda peer: answer(peer, [pack_record(RECORD, BLOCKS)]),
) -> Callable[[Peer], None]:
    """A gateway that has the object `k`, and answers calls for records and for bytes as it likes."""

    def serve(peer: Peer) -> None:
        while head := peer.request()[0]:
            (records if head.startswith(b"POST") else body)(peer)

    return serve


async def test_answers_that_the_lies_below_are_made_from_are_believed(peers: Peers, lie: Any, arena: Arena) -> None:
    tier = await peers(lie(liar()))
    assert await tier.lookup([NAME]) == [RECORD]
    assert await get(tier, arena, RECORD) == BODY


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([], id="none"),
        pytest.param([None, None], id="too many"),
        pytest.param("records", id="no list"),
        pytest.param([7], id="no map"),
        pytest.param([pack_record(*describe("other", BODY))], id="another object"),
        pytest.param([pack_record(RECORD, BLOCKS) | {"nbytes": 5}], id="another length"),
        pytest.param([pack_record(RECORD._replace(crc64nvme=1), BLOCKS)], id="another digest"),
        pytest.param([pack_record(RECORD, BLOCKS[:-1])], id="a block missing"),
    ],
)
async def test_records_that_do_not_agree_are_not_believed(peers: Peers, lie: Any, told: object) -> None:
    tier = await peers(lie(liar(records=lambda peer: answer(peer, told))))
    with pytest.raises(TierAway):
        await tier.lookup([NAME])
    assert tier._awake() == []


@pytest.mark.parametrize(
    "respond",
    [
        pytest.param(lambda peer: peer.respond(b"<html>"), id="a page"),
        pytest.param(lambda peer: peer.respond(b"\x81\xa7records\xc7\xff"), id="cut msgpack"),
        pytest.param(lambda peer: peer.respond(bytes(17 << 20)), id="endless"),
        pytest.param(lambda peer: peer.respond(b"x", nbytes=100) or peer.sock.close(), id="broken off"),
        pytest.param(lambda peer: peer.sock.sendall(b"garbage\r\n\r\n") or peer.sock.close(), id="no HTTP"),
        pytest.param(lambda peer: peer.respond(status="500 Oops"), id="500"),
        pytest.param(lambda peer: peer.respond(status="302 Found"), id="a redirect"),
    ],
)
async def test_answers_that_are_none_are_no_misses(peers: Peers, lie: Any, respond: Callable[[Peer], object]) -> None:
    tier = await peers(lie(liar(records=respond)))
    with pytest.raises(TierAway):
        await tier.lookup([NAME])


FLIPPED = BODY[: BLOCK_NBYTES + 9] + bytes([BODY[BLOCK_NBYTES + 9] ^ 1]) + BODY[BLOCK_NBYTES + 10 :]


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        pytest.param(lambda peer: peer.respond(FLIPPED), CorruptCopy, id="a flipped bit"),
        pytest.param(lambda peer: peer.respond(os.urandom(len(BODY))), CorruptCopy, id="another object"),
        pytest.param(lambda peer: peer.respond(BODY[:-1]), CorruptCopy, id="short"),
        pytest.param(lambda peer: peer.respond(BODY + b"x"), CorruptCopy, id="long"),
        pytest.param(lambda peer: peer.respond(b""), CorruptCopy, id="nothing"),
        pytest.param(
            lambda peer: peer.respond(BODY[:-1], nbytes=len(BODY)) or peer.sock.close(), TierAway, id="broken off"
        ),
        pytest.param(lambda peer: peer.respond(status="404 Not Found"), NotInTier, id="404"),
        pytest.param(lambda peer: peer.respond(status="503 Slow Down"), TierError, id="503"),
        pytest.param(lambda peer: peer.respond(BODY, status="206 Partial Content"), TierError, id="206"),
    ],
)
async def test_bytes_that_are_not_the_object_are_never_taken_for_it(
    peers: Peers, lie: Any, arena: Arena, respond: Callable[[Peer], object], error: type[TierError]
) -> None:
    tier = await peers(lie(liar(respond)))
    assert await tier.lookup([NAME]) == [RECORD]
    with pytest.raises(error):
        await get(tier, arena, RECORD)


@pytest.mark.parametrize("kind", ["chunk", "manifest", "no chunk at all"])
async def test_object_that_says_itself_that_it_is_another_one_is_not_taken(
    peers: Peers, lie: Any, arena: Arena, kind: str
) -> None:
    """A gateway that mixes up its objects gives digests that agree."""
    (hash_, right), (_, wrong) = chunks(b"salt", 2)
    key = str(ChunkKey(SPACE.id, hash_.hex()))
    if kind == "manifest":
        key, right, wrong = str(ManifestKey(SPACE.id)), SPACE.canonical_json(), SPACE.canonical_json()[:-1] + b" }"
    elif kind == "no chunk at all":
        wrong = os.urandom(len(right))
    for body, is_right in ((right, True), (wrong, False)):
        record, blocks = describe(key, body)
        told = [pack_record(record, blocks)]
        serve = liar(lambda peer, body=body: peer.respond(body), lambda peer, told=told: answer(peer, told))
        tier = await peers(lie(serve))
        assert await tier.lookup([Name(*record[:3])]) == [record]
        if is_right:
            assert await get(tier, arena, record) == body
        else:
            with pytest.raises(CorruptCopy):
                await get(tier, arena, record)


async def test_bytes_that_follow_an_answer_are_not_taken_for_the_next_one(peers: Peers, lie: Any, arena: Arena) -> None:
    tier = await peers(lie(liar(lambda peer: peer.respond(BODY + FLIPPED, nbytes=len(BODY)))))
    await tier.lookup([NAME])
    for _ in range(3):
        assert await get(tier, arena, RECORD) == BODY


async def test_blocks_before_a_bad_one_are_told_of_and_the_bad_one_is_not(peers: Peers, lie: Any, arena: Arena) -> None:
    tier, told = await peers(lie(liar(lambda peer: peer.respond(FLIPPED)))), []
    await tier.lookup([NAME])
    with arena.reserve("tenant", len(BODY)) as lease:
        with pytest.raises(CorruptCopy):
            await tier.open(RECORD, HERE).read_into(0, lease, len(BODY), told.append)
        assert all(nbytes <= BLOCK_NBYTES for nbytes in told)


async def test_liar_is_left_alone_and_an_honest_gateway_is_read(peers: Peers, lie: Any, arena: Arena) -> None:
    tier = await peers(lie(liar(lambda peer: peer.respond(FLIPPED))), lie(liar()), rest=Seconds(60.0))
    for _ in range(2):  # at most one of them is the liar's
        await tier.lookup([NAME])
        try:
            assert await get(tier, arena, RECORD) == BODY
        except CorruptCopy:
            continue
    assert await get(tier, arena, RECORD) == BODY


async def test_gateway_that_lost_the_object_since_is_no_miss_while_another_has_it(
    peers: Peers, lie: Any, arena: Arena
) -> None:
    lost: list[bool] = []

    def forgetful(peer: Peer) -> None:
        while head := peer.request()[0]:
            if head.startswith(b"POST"):
                answer(peer, [None if lost else pack_record(RECORD, BLOCKS)])
            else:
                lost.append(True)
                peer.respond(status="404 Not Found")

    tier = await peers(lie(forgetful), lie(liar()))
    await tier.lookup([NAME])
    assert await get(tier, arena, RECORD) == BODY


async def test_read_that_trickles_is_given_up_with_its_caller_and_counts_against_the_gateway(
    peers: Peers, lie: Any, arena: Arena
) -> None:
    def trickle(peer: Peer) -> None:
        peer.respond(b"", nbytes=len(BODY))
        while not peer.stopped.wait(0.05):
            peer.sock.sendall(b"x")

    tier = await peers(lie(liar(trickle)), rest=Seconds(60.0))
    await tier.lookup([NAME])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            await get(tier, arena, RECORD)
    assert tier._awake() == []
    async with asyncio.timeout(30):
        while arena.lease_count:
            await asyncio.sleep(0.01)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "urls"),
        ({"urls": ("ftp://a",)}, "urls"),
        ({"urls": ("http://a/b",)}, "urls"),
        ({"urls": ("http://a",), "advertise": "a:9000"}, "advertise"),
        ({"urls": ("http://a",), "ask": 0}, "ask"),
        ({"urls": ("http://a",), "threads": 0}, "threads"),
        ({"urls": ("http://a",), "rest": Seconds(0.0)}, "rest"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PeerConfig(**options)
