"""What each wrapper adds, and what all of them do together, around a tier that is slow, broken or stubborn."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvgate.errors import CorruptCopy, NotInTier, TierAway, TierBusy, TierError, TierFull, TierSkipped
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.metrics import Metrics
from kvgate.tiers.base import HERE, Name, Record
from kvgate.tiers.breaker import Breaker
from kvgate.tiers.deadline import Deadline
from kvgate.tiers.guarded import Guarded, guarded
from kvgate.tiers.limit import Limit
from kvgate.tiers.metered import Metered
from kvgate.tiers.retry import Retry
from kvgate.tiers.rules import TierRules
from tests.contracts.tier import content, describe, filled
from tests.tiers.far import FarTier, Place, name_of

SOMETHING = Name("tenant", "bucket", "k")
PATIENCE_S = 20
"""How long a test waits for what has to come."""


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    gc.collect()
    assert arena.lease_count == 0
    arena.close()


def rules(**values: Any) -> TierRules:
    """Rules with deadlines that nothing meets by chance."""
    return TierRules(**({"timeout": 60.0, "lookup_timeout": 60.0, "retry_after": 0.05} | values))


def put(place: Place, body: bytes) -> Record:
    record, blocks = describe("k", body)
    place.objects[name_of(record)] = (record, body, blocks)
    return record


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def transient() -> TierError:
    return TierError("a hiccup", transient=True)


# --- limit ------------------------------------------------------------------------------------------------------------


async def test_limit_lets_so_many_operations_in_and_all_of_them_in_the_end(place: Place) -> None:
    tier = Limit(FarTier(place), rules(operations=4))
    assert await asyncio.gather(*[tier.lookup([SOMETHING]) for _ in range(32)]) == [[None]] * 32
    assert place.most == 4
    assert (tier.turns.on, tier.turns.waiting) == (0, 0)


async def test_limit_lets_so_many_bytes_in(place: Place, arena: Arena) -> None:
    record = put(place, os.urandom(1000))
    tier = Limit(FarTier(place), rules(in_flight=2500))

    async def read() -> None:
        with arena.reserve("tenant", 1000) as lease:
            await tier.open(record, HERE).read_into(0, lease, 1000)

    await asyncio.gather(*[read() for _ in range(10)])
    assert place.most == 2


async def test_limit_answers_at_once_when_its_queue_is_full(place: Place) -> None:
    place.open.clear()
    tier = Limit(FarTier(place), rules(operations=1))
    tasks = [asyncio.create_task(tier.lookup([SOMETHING])) for _ in range(9)]
    await until(lambda: tier.turns.waiting == 8)
    with pytest.raises(TierBusy) as caught:
        await tier.lookup([SOMETHING])
    assert caught.value.transient
    place.open.set()
    await asyncio.gather(*tasks)


async def test_limit_ends_a_wait_before_the_time_of_the_operation_is_over(place: Place) -> None:
    place.open.clear()
    tier = Limit(FarTier(place), rules(operations=1, lookup_timeout=0.1))
    first = asyncio.create_task(tier.lookup([SOMETHING]))
    await until(lambda: tier.turns.on == 1)
    with pytest.raises(TierBusy):
        await tier.lookup([SOMETHING])
    assert tier.turns.waiting == 0
    place.open.set()
    await first


async def test_limit_loses_no_turn_to_those_who_are_cancelled(place: Place) -> None:
    place.open.clear()
    tier = Limit(FarTier(place), rules(operations=2))
    tasks = [asyncio.create_task(tier.lookup([SOMETHING])) for _ in range(10)]
    await until(lambda: tier.turns.waiting == 8)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks[::2], return_exceptions=True)
    place.open.set()
    await asyncio.gather(*tasks[1::2])
    assert (tier.turns.on, tier.turns.waiting) == (0, 0)


# --- deadline ---------------------------------------------------------------------------------------------------------


async def test_deadline_ends_a_call_and_holds_its_lease_until_the_copy_has_ended(place: Place, arena: Arena) -> None:
    record = put(place, os.urandom(100_000))
    place.open.clear()
    place.stubborn = True
    tier = Deadline(FarTier(place), rules(timeout=0.05))
    with arena.reserve("tenant", record.nbytes) as lease, pytest.raises(TierAway, match="read within"):
        await tier.open(record, HERE).read_into(0, lease, record.nbytes)
    assert arena.lease_count > 0
    assert tier.left == 1
    place.open.set()
    await until(lambda: arena.lease_count == 0)
    assert tier.left == 0
    await tier.close()


async def test_deadline_cancels_what_it_does_not_wait_for(place: Place, arena: Arena) -> None:
    record = put(place, os.urandom(1000))
    place.open.clear()
    tier = Deadline(FarTier(place), rules(timeout=0.05))
    with arena.reserve("tenant", record.nbytes) as lease, pytest.raises(TierAway):
        await tier.open(record, HERE).read_into(0, lease, record.nbytes)
    await until(lambda: place.now == 0)
    assert arena.lease_count == 0


async def test_deadline_grows_with_the_bytes_to_move(place: Place, arena: Arena) -> None:
    record = put(place, os.urandom(100_000))
    tier = Deadline(FarTier(place), rules(timeout=0.01, min_rate=10_000))
    place.open.clear()
    with arena.reserve("tenant", record.nbytes) as lease:
        reading = asyncio.create_task(tier.open(record, HERE).read_into(0, lease, record.nbytes))
        await asyncio.sleep(0.1)
        assert not reading.done()
        place.open.set()
        await reading


async def test_a_cancelled_caller_is_not_kept_waiting_either(place: Place, arena: Arena) -> None:
    place.open.clear()
    place.stubborn = True
    tier = Deadline(FarTier(place), rules())
    with filled(arena, b"x" * 1000) as lease:
        upload_of = asyncio.create_task(tier.begin("tenant", 1000))
        place.open.set()
        upload = await upload_of
        place.open.clear()
        writing = asyncio.create_task(upload.write(lease, 0, 1000))
        await until(lambda: place.calls["write"] == 1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    assert arena.lease_count > 0
    place.open.set()
    await until(lambda: arena.lease_count == 0)
    await upload.abort()


async def test_an_upload_that_was_begun_too_late_is_aborted(place: Place) -> None:
    place.open.clear()
    place.stubborn = True
    tier = Deadline(FarTier(place), rules(timeout=0.05))
    with pytest.raises(TierAway):
        await tier.begin("tenant", 1000)
    place.open.set()
    await until(lambda: place.calls["abort"] == 1)
    await until(lambda: tier.left == 0)


async def test_a_tier_that_breaks_off_by_itself_is_away(place: Place) -> None:
    place.errors["lookup"] = [asyncio.CancelledError()]  # type: ignore[list-item]
    with pytest.raises(TierAway, match="broke off"):
        await Deadline(FarTier(place), rules()).lookup([SOMETHING])


# --- retry ------------------------------------------------------------------------------------------------------------


async def test_retry_hides_a_passing_error(place: Place, arena: Arena) -> None:
    body = os.urandom(2 * BLOCK_NBYTES)
    record = put(place, body)
    tier = Retry(FarTier(place))
    for operation in ("lookup", "read", "publish", "delete"):
        place.errors[operation] = [transient(), TierAway("not reached")]
    assert await tier.lookup([SOMETHING]) == [record]
    told: list[int] = []
    with arena.reserve("tenant", record.nbytes) as lease:
        await tier.open(record, HERE).read_into(0, lease, record.nbytes, told.append)
        assert content(lease) == body
    assert told == [BLOCK_NBYTES]
    await tier.publish(record, HERE)
    await tier.delete(record, HERE)
    assert [place.calls[name] for name in ("lookup", "read", "publish", "delete")] == [3, 3, 3, 3]


async def test_retry_gives_up(place: Place) -> None:
    place.errors["lookup"] = [transient() for _ in range(10)]
    with pytest.raises(TierError, match="a hiccup"):
        await Retry(FarTier(place)).lookup([SOMETHING])
    assert place.calls["lookup"] == 3


@pytest.mark.parametrize(
    "error", [TierError("for good"), TierFull("full"), NotInTier("gone"), CorruptCopy("bad"), TierBusy("queue")]
)
async def test_retry_leaves_other_errors_alone(place: Place, error: TierError) -> None:
    place.errors["lookup"] = [error]
    with pytest.raises(type(error)):
        await Retry(FarTier(place)).lookup([SOMETHING])
    assert place.calls["lookup"] == 1


async def test_retry_reads_once_more_what_was_corrupt(place: Place, arena: Arena) -> None:
    record = put(place, b"body")
    reader = Retry(FarTier(place)).open(record, HERE)
    with arena.reserve("tenant", record.nbytes) as lease:
        place.errors["read"] = [CorruptCopy("on its way")]
        await reader.read_into(0, lease, record.nbytes)
        assert content(lease) == b"body"
        place.errors["read"] = [CorruptCopy("at rest"), CorruptCopy("at rest")]
        with pytest.raises(CorruptCopy):
            await reader.read_into(0, lease, record.nbytes)
    assert place.calls["read"] == 4


async def test_retry_never_writes_over_what_somebody_may_be_sending(place: Place, arena: Arena) -> None:
    record = put(place, os.urandom(2 * BLOCK_NBYTES))
    place.errors["read-on"] = [transient()]
    told: list[int] = []
    with arena.reserve("tenant", record.nbytes) as lease, pytest.raises(TierError, match="a hiccup"):
        await Retry(FarTier(place)).open(record, HERE).read_into(0, lease, record.nbytes, told.append)
    assert told == [BLOCK_NBYTES]
    assert place.calls["read"] == 1


async def test_retry_leaves_uploads_to_whoever_has_the_bytes(place: Place, arena: Arena) -> None:
    tier = Retry(FarTier(place))
    place.errors["begin"] = [transient()]
    with pytest.raises(TierError):
        await tier.begin("tenant", 10)
    place.errors["write"] = [transient()]
    upload = await tier.begin("tenant", 10)
    with filled(arena, bytes(10)) as lease, pytest.raises(TierError):
        await upload.write(lease, 0, 10)
    await upload.abort()
    assert (place.calls["begin"], place.calls["write"]) == (2, 1)


# --- breaker ----------------------------------------------------------------------------------------------------------


async def fail(tier: Breaker | Guarded, times: int) -> None:
    for _ in range(times):
        with pytest.raises(TierError):
            await tier.lookup([SOMETHING])


async def test_breaker_leaves_a_failing_tier_alone_and_finds_it_again_without_anybody_asking(place: Place) -> None:
    place.errors["lookup"] = [TierAway("no route") for _ in range(5)]
    tier = Breaker(FarTier(place), rules(failures=3))
    await fail(tier, 3)
    assert tier.health.away
    with pytest.raises(TierSkipped, match="no route"):
        await tier.begin("tenant", 1)
    assert place.calls["begin"] == 0
    await until(lambda: not tier.health.away)
    assert place.calls["lookup"] == 6
    assert await tier.lookup([SOMETHING]) == [None]
    await tier.close()


async def test_answers_are_no_failures_and_end_a_row_of_them(place: Place) -> None:
    tier = Breaker(FarTier(place), rules(failures=2))
    for error in (NotInTier("gone"), TierFull("full"), CorruptCopy("bad")):
        place.errors["lookup"] = [transient(), error]
        await fail(tier, 2)
    assert tier.health.state == "closed"
    place.errors["lookup"] = [transient(), TierBusy("queue"), TierError("for good"), transient()]
    await fail(tier, 4)
    assert tier.health.state == "open"
    await tier.close()


async def test_what_lets_go_reaches_a_tier_that_is_away(place: Place) -> None:
    tier = Breaker(FarTier(place), rules(failures=1, retry_after=60.0))
    record = put(place, b"body")
    upload, reader = await tier.begin("tenant", 1), tier.open(record, HERE)
    place.errors["lookup"] = [TierAway("no route")]
    await fail(tier, 1)
    await upload.abort()
    await reader.close()
    assert (place.calls["abort"], place.calls["close"]) == (1, 1)
    await tier.close()


async def test_a_tier_that_is_away_at_the_start_is_started_later(place: Place) -> None:
    place.errors["start"] = [TierAway("no route"), TierAway("no route")]
    tier = Breaker(FarTier(place), rules())
    await tier.start(lambda _: None)
    assert tier.health.away
    await until(lambda: not tier.health.away)
    assert place.calls["start"] == 3
    await tier.close()


async def test_a_tier_that_can_never_start_says_so(place: Place) -> None:
    place.errors["start"] = [TierError("wrong password")]
    with pytest.raises(TierError, match="wrong password"):
        await Breaker(FarTier(place), rules()).start(lambda _: None)


async def test_what_waiting_does_not_mend_is_told_once_and_stands_in_the_health(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.errors["lookup"] = [TierError("wrong password") for _ in range(5)]
    tier = Breaker(FarTier(place), rules(failures=1))
    await fail(tier, 5)
    assert (tier.health.state, tier.health.error) == ("closed", "wrong password")
    assert len(caplog.records) == 1


async def test_closing_ends_a_trial_that_hangs(place: Place) -> None:
    tier = Breaker(FarTier(place), rules(failures=1))
    place.errors["lookup"] = [TierAway("no route")]
    await fail(tier, 1)
    place.open.clear()
    await until(lambda: tier.health.state == "half-open")
    await tier.close()
    assert place.now == 0


async def test_a_defect_in_a_trial_does_not_end_the_trials(place: Place) -> None:
    tier = Breaker(FarTier(place), rules(failures=1))
    place.errors["lookup"] = [TierAway("no route"), ValueError("a defect"), TierBusy("queue"), TierError("for good")]
    await fail(tier, 1)
    await until(lambda: not tier.health.away)
    assert place.calls["lookup"] == 5
    await tier.close()


# --- metered ----------------------------------------------------------------------------------------------------------


async def test_metered_counts_operations_bytes_and_errors(place: Place, arena: Arena) -> None:
    metrics = Metrics()
    tier = Metered(FarTier(place), metrics)
    record, blocks = describe("k", b"x" * 1000)
    upload = await tier.begin("tenant", 1000)
    with filled(arena, b"x" * 1000) as lease:
        await upload.write(lease, 0, 1000)
        await upload.finish(record, blocks)
        await tier.open(record, HERE).read_into(0, lease, 1000)
        place.errors["read"] = [NotInTier("gone")]
        with pytest.raises(NotInTier):
            await tier.open(record, HERE).read_into(0, lease, 1000)
    place.errors["lookup"] = [TierSkipped("away"), TierAway("away"), ValueError("a defect")]
    for error in (TierSkipped, TierAway, ValueError):
        with pytest.raises(error):
            await tier.lookup([SOMETHING])
    place.open.clear()
    task = asyncio.create_task(tier.lookup([SOMETHING]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    def operations(operation: str, result: str) -> float | None:
        labels = {"tier": "far", "operation": operation, "result": result}
        return metrics.registry.get_sample_value("kvgate_tier_operations_total", labels)

    assert [operations(name, "ok") for name in ("begin", "write", "finish", "read")] == [1, 1, 1, 1]
    assert operations("read", "missing") == 1
    assert [operations("lookup", result) for result in ("skipped", "away", "failed", "cancelled")] == [1, 1, 1, 1]
    for direction in ("written", "read"):
        labels = {"tier": "far", "direction": direction}
        assert metrics.registry.get_sample_value("kvgate_tier_bytes_total", labels) == 1000
    labels = {"tier": "far", "operation": "lookup"}
    assert metrics.registry.get_sample_value("kvgate_tier_operation_seconds_count", labels) == 3


# --- all of them ------------------------------------------------------------------------------------------------------


async def test_a_tier_that_hangs_costs_a_few_deadlines_and_then_nothing(place: Place) -> None:
    metrics = Metrics()
    tier = guarded(FarTier(place), rules(lookup_timeout=0.2, failures=3, retry_after=60.0), metrics)
    place.open.clear()
    began = time.monotonic()
    await fail(tier, 3)
    assert time.monotonic() - began >= 0.6
    calls = place.calls["lookup"]
    await fail(tier, 100)
    assert place.calls["lookup"] == calls
    assert tier.health.state == "open"
    assert "lookup within 0.2 s" in tier.health.error
    tier.collect()
    assert metrics.registry.get_sample_value("kvgate_tier_state", {"tier": "far"}) == 2
    await tier.close()


async def test_a_tier_that_hangs_stubbornly_is_not_given_more_than_its_limit(place: Place) -> None:
    place.open.clear()
    place.stubborn = True
    tier = guarded(FarTier(place), rules(operations=2, lookup_timeout=0.1, failures=1000), Metrics())
    await asyncio.gather(*[tier.lookup([SOMETHING]) for _ in range(10)], return_exceptions=True)
    await asyncio.gather(*[tier.lookup([SOMETHING]) for _ in range(10)], return_exceptions=True)
    assert place.most == place.now == 2
    place.open.set()
    await until(lambda: place.now == 0)
    await tier.close()


async def test_a_tier_that_is_only_busy_does_not_count_as_away(place: Place) -> None:
    place.open.clear()
    tier = guarded(FarTier(place), rules(operations=1, failures=1), Metrics())
    first = asyncio.create_task(tier.lookup([SOMETHING]))
    results = await asyncio.gather(
        *[asyncio.wait_for(tier.lookup([SOMETHING]), 0.1) for _ in range(20)], return_exceptions=True
    )
    assert {type(result) for result in results} == {TierBusy, TimeoutError}
    place.open.set()
    await first
    assert tier.health.state == "closed"
    await tier.close()


async def test_no_attempt_is_made_after_the_deadline(place: Place) -> None:
    tier = guarded(FarTier(place), rules(lookup_timeout=0.05), Metrics())
    place.errors["lookup"] = [transient() for _ in range(1000)]
    for _ in range(2):
        with pytest.raises(TierError):
            await tier.lookup([SOMETHING])
    calls = place.calls["lookup"]
    await asyncio.sleep(0.3)
    assert place.calls["lookup"] == calls <= 6
    await tier.close()
