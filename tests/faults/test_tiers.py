"""Each remote tier behind its guard and the proxy, under every fault.

No wrong byte, no late call, no lease that stays, and soon after the fault everything is as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pytest

from kvgate.errors import TierError, TierSkipped
from kvgate.memory.arena import Arena
from kvgate.metrics import Metrics
from kvgate.tiers.base import HERE, Name, Record, SharedTier
from kvgate.tiers.guarded import Guarded, guarded
from kvgate.tiers.rules import TierRules
from tests.contracts.tier import content, describe, filled
from tests.faults.proxy import NONE
from tests.faults.remotes import FAULTS, REMOTES, Remote

T = TypeVar("T")

RULES = TierRules(timeout=0.6, min_rate=32 << 20, lookup_timeout=0.3, retry_after=0.2, operations=16)
SUFFER_S = 1.0
SLACK_S = 0.1
RECOVERY_S = 5.0
END_S = 30.0
SIZES = [1000, 70_000, (2 << 20) + 17]


@pytest.fixture(scope="module", params=REMOTES)
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with REMOTES[request.param](tmp_path_factory.mktemp(request.param)) as remote:
        yield remote


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(128 << 20)
    yield arena
    gc.collect()
    assert arena.lease_count == 0
    arena.close()


@dataclass
class Lateness:
    """How late this event loop has been, which is the machine's doing: what calls took may be longer by as much.

    A call waits for the loop more than once; the longest overrun while it was under way is allowed for twice.
    """

    overruns: list[tuple[float, float]] = field(default_factory=list)

    async def watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            now = time.monotonic()
            self.overruns.append((now, now - before - 0.01))

    def since(self, began: float) -> float:
        return 2 * max((late for at, late in self.overruns if at >= began), default=0.0)


@dataclass
class Caller:
    """Calls a tier all the time, and holds it to what it promises."""

    tier: Guarded
    arena: Arena
    late: Lateness
    objects: list[tuple[Record, bytes]]
    ended: list[str] = field(default_factory=list)
    written: list[tuple[Record, bytes]] = field(default_factory=list)
    overdue: list[str] = field(default_factory=list)

    async def timed(self, what: str, allowed_s: float, call: Awaitable[T]) -> T:
        began = time.monotonic()
        result = "ok"
        try:
            return await call
        except TierSkipped:
            result = "skipped"
            raise
        except TierError as error:
            result = type(error).__name__
            raise
        finally:
            took = time.monotonic() - began
            await asyncio.sleep(0.02)  # the yardstick has to see the same time
            if took > allowed_s + SLACK_S + self.late.since(began):
                self.overdue.append(f"{what} took {took:.3f} s of {allowed_s:.3f} s")
            self.ended.append(f"{what}: {result}")

    async def look_up(self) -> list[Record | None]:
        records = [record for record, _ in self.objects]
        names = [Name(*record[:3]) for record in records] + [Name("tenant", "bucket", "absent")]
        found = await self.timed("lookup", RULES.lookup_timeout, self.tier.lookup(names))
        for expected, record in zip([*records, None], found, strict=True):
            assert record is None or record == expected
        return found

    async def read(self, record: Record, body: bytes) -> None:
        reader = self.tier.open(record, HERE)
        try:
            with self.arena.reserve("tenant", record.nbytes) as lease:
                allowed_s = RULES.allowed_s(record.nbytes)
                await self.timed("read", allowed_s, reader.read_into(0, lease, record.nbytes))
                assert content(lease) == body
        finally:
            await reader.close()

    async def write(self) -> Record:
        body = os.urandom(500_000)
        record, blocks = describe(f"new/{os.urandom(8).hex()}", body)
        allowed_s = RULES.allowed_s(len(body))
        upload = await self.timed("begin", RULES.timeout, self.tier.begin("tenant", len(body)))
        try:
            with filled(self.arena, body) as lease:
                await self.timed("write", allowed_s, upload.write(lease, 0, len(body)))
            await self.timed("finish", allowed_s, upload.finish(record, blocks))
        finally:
            await self.timed("abort", RULES.timeout, _quietly(upload.abort()))
        self.written.append((record, body))
        return record

    async def everything(self) -> None:
        """Raises TierError unless all of it works."""
        found = await self.look_up()
        if None in found[:-1]:
            raise TierError("what was there is not found")
        for record, body in self.objects:
            await self.read(record, body)
        if not self.tier.read_only:
            record = await self.write()
            await self.timed("delete", RULES.timeout, self.tier.delete(record, HERE))

    async def suffer(self, until: float) -> None:
        """Calls, one after the other, whatever becomes of them."""
        while time.monotonic() < until:
            calls: list[Callable[[], Awaitable[object]]] = [
                self.look_up,
                *[partial(self.read, *item) for item in self.objects],
            ]
            for call in calls if self.tier.read_only else [*calls, self.write]:
                try:
                    await call()
                except TierError:
                    await asyncio.sleep(0.01)


async def _quietly(call: Awaitable[None]) -> None:
    with contextlib.suppress(TierError):  # what the server keeps of an upload is the server's to forget
        await call


@pytest.fixture
async def late() -> AsyncIterator[Lateness]:
    late = Lateness()
    watching = asyncio.create_task(late.watch())
    yield late
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def put(remote: Remote, tier: SharedTier, arena: Arena, body: bytes) -> Record:
    if remote.put is not None:
        name = await asyncio.to_thread(remote.put, f"old/{os.urandom(8).hex()}", body)
        (found,) = await tier.lookup([name])
        assert found is not None
        return found
    record, blocks = describe(f"old/{os.urandom(8).hex()}", body)
    upload = await tier.begin("tenant", len(body))
    with filled(arena, body) as lease:
        await upload.write(lease, 0, len(body))
    await upload.finish(record, blocks)
    return record


@pytest.mark.parametrize("name", FAULTS)
async def test_a_remote_tier_under_a_fault(remote: Remote, arena: Arena, late: Lateness, name: str) -> None:
    direct = remote.make(remote.port)
    await direct.start(lambda _: None)
    tier = guarded(remote.make(remote.proxy.port), RULES, Metrics())
    await tier.start(lambda _: None)
    objects = []
    for nbytes in SIZES:
        body = os.urandom(nbytes)
        objects.append((await put(remote, direct, arena, body), body))
    callers = [Caller(tier, arena, late, objects) for _ in range(4)]
    try:
        await until_it_works(callers[0])
        for each in callers:
            each.ended.clear()
            each.written.clear()
            each.overdue.clear()

        remote.proxy.fault = remote.fault(name)
        until = time.monotonic() + SUFFER_S
        await asyncio.gather(*[each.suffer(until) for each in callers])

        remote.proxy.fault = NONE
        took_s = await until_it_works(callers[0])
        assert took_s <= RECOVERY_S + late.since(time.monotonic() - took_s)
        for _ in range(3):
            await asyncio.gather(*[each.everything() for each in callers])

        assert [each.overdue for each in callers] == [[]] * len(callers)
        assert tier.health.state == "closed"
        for record, body in [item for each in callers for item in each.written]:
            await never_wrong(direct, arena, record, body)
    finally:
        remote.proxy.fault = NONE
        await tier.close()
        await direct.close()
    deadline = time.monotonic() + END_S
    while arena.lease_count:
        assert time.monotonic() < deadline, "a lease was leaked"
        await asyncio.sleep(0.02)


async def until_it_works(caller: Caller) -> float:
    """How long it took until every operation worked once in a row."""
    began = time.monotonic()
    while True:
        try:
            await caller.everything()
            return time.monotonic() - began
        except TierError:
            assert time.monotonic() - began < END_S, caller.tier.health
            await asyncio.sleep(0.02)


async def never_wrong(tier: SharedTier, arena: Arena, record: Record, body: bytes) -> None:
    """What was written through a fault, or with a bit flipped on the way, is there as it was, or not at all."""
    reader = tier.open(record, HERE)
    with arena.reserve("tenant", record.nbytes) as lease:
        try:
            await reader.read_into(0, lease, record.nbytes)
        except TierError:
            return
        finally:
            await reader.close()
        assert content(lease) == body


async def test_a_tier_that_is_away_at_the_start_is_found_later(remote: Remote, arena: Arena, late: Lateness) -> None:
    remote.proxy.fault = remote.fault("refuse")
    tier = guarded(remote.make(remote.proxy.port), RULES, Metrics())
    try:
        await tier.start(lambda _: None)
        caller = Caller(tier, arena, late, [])
        with pytest.raises(TierError):
            await caller.everything()
        remote.proxy.fault = NONE
        assert await until_it_works(caller) <= RECOVERY_S + late.since(0)
    finally:
        remote.proxy.fault = NONE
        await tier.close()
