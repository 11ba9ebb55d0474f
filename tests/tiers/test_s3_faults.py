"""The S3 tier against a store that fails: through a proxy that cuts, delays and corrupts, and killed in the middle."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from kvgate.config import Seconds, Secret, Size
from kvgate.errors import CorruptCopy, NotInTier, TierAway, TierError
from kvgate.memory.arena import Arena
from kvgate.tiers.base import HERE, Record
from kvgate.tiers.footer import MAGIC
from kvgate.tiers.s3 import S3Tier
from tests.contracts.shared_tier import name_of
from tests.contracts.tier import content, describe, filled
from tests.faults.proxy import (
    NONE,
    Blackhole,
    Corrupt,
    Cut,
    Fault,
    FaultProxy,
    Flow,
    Refuse,
    Reply,
    Status,
    Step,
    Truncate,
)
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.stores import Seaweed, Store

BODY = os.urandom(12 << 20)
RECORD, BLOCKS = describe("k", BODY)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    assert arena.lease_count == 0
    arena.close()


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(int(seaweed.store.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def store(seaweed: Seaweed, proxy: FaultProxy) -> Store:
    return replace(seaweed.store, endpoint=f"http://127.0.0.1:{proxy.port}")


@asynccontextmanager
async def opened(store: Store, **options: Any) -> AsyncIterator[S3Tier]:
    options = {"prefix": uuid.uuid4().hex, "part": Size(5 << 20), "request_timeout": Seconds(20.0)} | options
    tier = S3Tier(store.config(**options))
    await tier.start(lambda _: None)
    try:
        yield tier
    finally:
        await tier.close()


@pytest.fixture
async def tier(store: Store) -> AsyncIterator[S3Tier]:
    async with opened(store) as tier:
        yield tier


async def put(tier: S3Tier, arena: Arena, record: Record = RECORD, body: bytes = BODY, blocks: Any = BLOCKS) -> None:
    upload = await tier.begin(record.tenant, len(body))
    try:
        with filled(arena, body) as lease:
            await upload.write(lease, 0, len(body))
        await upload.finish(record, blocks)
    finally:
        await upload.abort()


async def get(tier: S3Tier, arena: Arena, record: Record = RECORD) -> bytes:
    reader = tier.open(record, HERE)
    with arena.reserve(record.tenant, record.nbytes) as lease:
        try:
            await reader.read_into(0, lease, record.nbytes)
        finally:
            assert arena.lease_count == 1  # nothing writes to the lease any more, whether it failed or not
        return content(lease)


FAULTS: list[tuple[Fault, type[TierError]]] = [
    (Cut(3 << 20), TierAway),
    (Cut(3 << 20, how="reset"), TierAway),
    (Cut(0), TierAway),
    (Cut(10, how="reset"), TierAway),
    (Refuse(), TierAway),
    (Status(503), TierAway),
    (Status(429), TierAway),
    (Status(500), TierError),
    (Status(502), TierError),
    (Corrupt(at=2 << 20), CorruptCopy),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS, ids=[repr(fault) for fault, _ in FAULTS])
async def test_read_through_a_fault_fails_and_then_succeeds(
    tier: S3Tier, proxy: FaultProxy, arena: Arena, fault: Fault, kind: type[TierError]
) -> None:
    await put(tier, arena)
    tier.footers.forget(name_of(RECORD))
    proxy.fault = fault
    with pytest.raises(kind) as raised:
        await get(tier, arena)
    assert raised.value.transient or kind is CorruptCopy
    proxy.fault = NONE
    assert await get(tier, arena) == BODY


@pytest.mark.parametrize("fault", [Blackhole(), Truncate(1 << 20, 1000)], ids=repr)
async def test_store_that_falls_silent_is_away(store: Store, proxy: FaultProxy, arena: Arena, fault: Fault) -> None:
    async with opened(store) as tier:
        await put(tier, arena)
        prefix = tier._config.prefix
    async with opened(store, prefix=prefix, request_timeout=Seconds(1.0)) as tier:
        proxy.fault = fault
        with pytest.raises(TierAway, match="within 1 s"):
            await get(tier, arena)
        proxy.fault = NONE
        assert await get(tier, arena) == BODY


@pytest.mark.parametrize(
    "fault",
    [
        Cut(2 << 20, "request"),
        Cut(100, "request", "reset"),
        Cut(0),
        Refuse(),
        Status(503),
        Corrupt(2 << 20, direction="request"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("nbytes", [4 << 20, 12 << 20])
async def test_write_through_a_fault_leaves_nothing_and_then_succeeds(
    tier: S3Tier, proxy: FaultProxy, seaweed: Seaweed, arena: Arena, fault: Fault, nbytes: int
) -> None:
    body = BODY[:nbytes]
    record, blocks = describe("k", body)
    await tier.honours_conditions()
    proxy.fault = fault
    with pytest.raises(TierError):
        await put(tier, arena, record, body, blocks)
    assert tier.usage().nbytes == 0
    proxy.fault = NONE
    await asyncio.gather(*tier._tasks, return_exceptions=True)
    await put(tier, arena, record, body, blocks)
    tier.footers.forget(name_of(record))
    assert await get(tier, arena, record) == body


async def test_answer_that_is_lost_leaves_the_object(tier: S3Tier, proxy: FaultProxy, arena: Arena) -> None:
    record, blocks = describe("k", b"body")
    await tier.honours_conditions()
    proxy.fault = Cut(0)
    with pytest.raises(TierAway):
        await put(tier, arena, record, b"body", blocks)
    proxy.fault = NONE
    assert tier.usage().nbytes == 0
    await put(tier, arena, record, b"body", blocks)
    assert await get(tier, arena, record) == b"body"
    assert 0 < tier.usage().nbytes < 1000
    await tier.delete(record, HERE)
    assert tier.usage().nbytes == 0


async def test_object_that_nobody_counted_gives_back_no_room(tier: S3Tier, proxy: FaultProxy, arena: Arena) -> None:
    record, blocks = describe("k", b"body")
    other, other_blocks = describe("other", bytes(1000))
    await put(tier, arena, other, bytes(1000), other_blocks)
    before = tier.usage()
    proxy.fault = Cut(0)
    with pytest.raises(TierAway):
        await put(tier, arena, record, b"body", blocks)
    proxy.fault = NONE
    await tier.delete(record, HERE)
    assert await tier.lookup([name_of(record)]) == [None]
    assert tier.usage() == before


@dataclass(frozen=True)
class ConflictOnce(Fault):
    """The first PUT is answered as AWS does while somebody else writes the key."""

    left: list[int] = field(default_factory=lambda: [1], compare=False)

    def step(self, flow: Flow, piece: bytes) -> Step:
        if flow.direction == "answer" or not self.left or not (flow.held or piece.startswith(b"PUT ")):
            return Step(len(piece), piece)
        flow.held += piece
        if not flow.held.endswith(MAGIC):  # the last bytes of what is sent
            return Step(len(piece))
        self.left.clear()
        answer = b"<Error><Code>ConditionalRequestConflict</Code><Message>busy</Message></Error>"
        lines = f"HTTP/1.1 409 Conflict\r\ncontent-length: {len(answer)}\r\nconnection: close\r\n\r\n"
        return Step(len(piece), reply=lines.encode() + answer, end="close")


async def test_conflict_with_a_writer_who_gives_up_is_tried_again(
    tier: S3Tier, proxy: FaultProxy, arena: Arena
) -> None:
    record, blocks = describe("k", b"body")
    await tier.honours_conditions()
    proxy.fault = fault = ConflictOnce()
    await put(tier, arena, record, b"body", blocks)
    assert not fault.left
    assert await tier.lookup([name_of(record)]) == [record]


async def test_noise_on_the_line_never_gives_a_wrong_byte(store: Store, proxy: FaultProxy, arena: Arena) -> None:
    """Any answer, its head included, may have flipped bits: what comes is right, or a TierError."""
    async with opened(store, request_timeout=Seconds(1.0)) as tier:
        await noise(tier, proxy, arena)


async def noise(tier: S3Tier, proxy: FaultProxy, arena: Arena) -> None:
    body = BODY[: 3 << 19]
    record, blocks = describe("k", body)
    await put(tier, arena, record, body, blocks)
    proxy.fault = Corrupt(every=3000)
    outcomes = []
    for _ in range(60):
        tier.footers.forget(name_of(record))
        try:
            outcomes.append(await tier.lookup([name_of(record)]) in ([record], [None]))
        except TierError:
            outcomes.append(True)
        tier.footers.forget(name_of(record))
        try:
            outcomes.append(await get(tier, arena, record) == body)
        except TierError:
            outcomes.append(True)
    assert all(outcomes)
    proxy.fault = NONE
    assert await get(tier, arena, record) == body


async def test_pause_that_the_store_asks_for_is_kept(tier: S3Tier, proxy: FaultProxy, arena: Arena) -> None:
    record, blocks = describe("k", b"body")
    await put(tier, arena, record, b"body", blocks)
    proxy.fault = Reply(b"HTTP/1.1 503 Slow Down\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    with pytest.raises(TierAway, match="answered 503"):
        await tier.lookup([name_of(record)])
    proxy.fault = NONE
    before = proxy.connections
    with pytest.raises(TierAway, match="left alone"):
        await tier.lookup([name_of(record)])
    assert proxy.connections == before
    while True:
        try:
            assert await tier.lookup([name_of(record)]) == [record]
            break
        except TierAway:
            await asyncio.sleep(0.05)


async def test_connections_that_the_store_ended_are_made_anew(tier: S3Tier, proxy: FaultProxy, arena: Arena) -> None:
    record, blocks = describe("k", b"body")
    await put(tier, arena, record, b"body", blocks)
    for _ in range(3):
        proxy.fault = Refuse()
        proxy.fault = NONE
        assert await tier.lookup([name_of(record)]) == [record]
        assert await get(tier, arena, record) == b"body"


async def test_cancelled_read_ends_at_once_and_lets_go_of_its_memory(
    tier: S3Tier, proxy: FaultProxy, arena: Arena
) -> None:
    await put(tier, arena)
    proxy.fault = Blackhole()
    lease = arena.reserve("tenant", len(BODY))
    task = asyncio.create_task(tier.open(RECORD, HERE).read_into(0, lease, len(BODY)))
    await asyncio.sleep(0.2)
    assert arena.lease_count > 1
    task.cancel()
    lease.release()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(15):  # the request itself had 20 s
        while arena.lease_count:
            await asyncio.sleep(0.01)


async def test_close_does_not_wait_for_a_store_that_is_silent(store: Store, proxy: FaultProxy) -> None:
    async with asyncio.timeout(15):
        async with opened(store) as tier:
            proxy.fault = Blackhole()
            task = asyncio.create_task(tier.lookup([name_of(RECORD)]))
            await asyncio.sleep(0.1)
        with pytest.raises(TierAway):
            await task
    with pytest.raises(TierError, match="is closed"):
        await tier.lookup([name_of(RECORD)])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"secret_key": Secret("wrong-secret")}, "SignatureDoesNotMatch; mend: mend secret_key"),
        ({"access_key": "NOBODY"}, "InvalidAccessKeyId; mend: mend access_key"),
    ],
)
async def test_refusal_names_the_cause_and_the_mend(
    seaweed: Seaweed, arena: Arena, options: dict[str, Any], complaint: str
) -> None:
    async with opened(seaweed.store, **options) as tier:
        for ask in (tier.lookup([name_of(RECORD)]), put(tier, arena), get(tier, arena)):
            with pytest.raises(TierError, match=complaint) as raised:
                await ask
            assert not raised.value.transient
            assert "secret" not in str(raised.value).replace("secret_key", "")


async def test_missing_bucket_is_named(gateway: RunningGateway, arena: Arena) -> None:
    store = Store(gateway.url, "no-such-bucket", ALPHA.access_key, ALPHA.secret_key)
    async with opened(store) as tier:
        for ask in (tier.lookup([name_of(RECORD)]), put(tier, arena), get(tier, arena)):
            with pytest.raises(TierError, match="404 NoSuchBucket; mend: make the bucket") as raised:
                await ask
            assert not raised.value.transient


async def test_bucket_of_another_tenant_is_refused(gateway: RunningGateway, arena: Arena) -> None:
    store = Store(gateway.url, "alpha_alpha-bucket", BETA.access_key, BETA.secret_key)
    async with opened(store) as tier:
        with pytest.raises(TierError, match="403 AccessDenied; mend: allow its key pair s3:GetObject"):
            await tier.lookup([name_of(RECORD)])


async def test_address_without_a_store_is_away(seaweed: Seaweed, arena: Arena) -> None:
    async with opened(replace(seaweed.store, endpoint="http://127.0.0.1:1")) as tier:
        with pytest.raises(TierAway, match=r"the S3 store at http://127\.0\.0\.1:1: no connection"):
            await tier.lookup([name_of(RECORD)])


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"], ids=repr
)
async def test_what_is_no_s3_store_is_no_copy(tier: S3Tier, proxy: FaultProxy, arena: Arena, answer: bytes) -> None:
    proxy.fault = Reply(answer)
    with pytest.raises(TierError):
        await get(tier, arena)


# --- the store dies ---------------------------------------------------------------------------------------------------


async def test_nothing_is_read_over_what_has_arrived_when_the_object_is_written_anew(
    seaweed: Seaweed, arena: Arena
) -> None:
    """The same body under another footer is another version of the object to the store."""
    loop, told = asyncio.get_running_loop(), []
    async with opened(seaweed.store, parallel=1) as tier:
        await put(tier, arena)
        assert await tier.lookup([name_of(RECORD)]) == [RECORD]

        async def write_anew() -> None:
            await tier.delete(RECORD, HERE)
            await put(tier, arena, RECORD._replace(mtime_ms=RECORD.mtime_ms + 1))

        def arrived(nbytes: int) -> None:
            told.append(nbytes)
            if len(told) == 1:
                asyncio.run_coroutine_threadsafe(write_anew(), loop).result(60)

        reader = tier.open(RECORD, HERE)
        with arena.reserve(RECORD.tenant, RECORD.nbytes) as lease, pytest.raises(NotInTier):
            await reader.read_into(0, lease, RECORD.nbytes, arrived)
        assert told == sorted(set(told))
        assert await get(tier, arena) == BODY


async def test_store_that_is_killed_comes_back_with_what_it_had(
    tmp_path_factory: pytest.TempPathFactory, arena: Arena
) -> None:
    server = Seaweed(tmp_path_factory.mktemp("killed"))
    server.start()
    try:
        async with opened(server.store) as tier:
            await put(tier, arena)
            second, blocks = describe("second", BODY)
            reading = asyncio.create_task(get(tier, arena))
            await asyncio.sleep(0.01)
            server.kill()
            ended = (await asyncio.gather(reading, return_exceptions=True))[0]
            assert ended == BODY or isinstance(ended, TierAway)
            for operation in (tier.lookup([name_of(RECORD)]), put(tier, arena, second, BODY, blocks)):
                with pytest.raises(TierAway):
                    await operation
            server.start()
            assert await get(tier, arena) == BODY
            for delay_s in (0.05,):
                writing = asyncio.create_task(put(tier, arena, second, BODY, blocks))
                await asyncio.sleep(delay_s)
                server.kill()
                ended = (await asyncio.gather(writing, return_exceptions=True))[0]
                assert ended is None or isinstance(ended, TierError)
                server.start()
            await put(tier, arena, second, BODY, blocks)
            assert await tier.lookup([name_of(RECORD), name_of(second)]) == [RECORD, second]
            try:
                assert await get(tier, arena, second) == BODY
            except (NotInTier, CorruptCopy) as error:
                raise AssertionError("what was acknowledged is not there") from error
    finally:
        server.kill()
