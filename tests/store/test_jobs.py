"""Where jobs may be, how many there are, and who sees them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvgate.config import Seconds, Size
from kvgate.errors import ConfigError, NoSuchJob, Overloaded
from kvgate.store.jobs import ENDS, MAX_EXAMPLES, Job, JobsConfig, JobTable, State, loads
from kvgate.store.values import Selection

NOW_MS = 1_700_000_000_000
ALL = Selection("bucket", None, "")


class Table(JobTable):
    """With a clock that stands still."""

    def __init__(self, **options: Any) -> None:
        self.now_ms = NOW_MS
        super().__init__(JobsConfig(**options), lambda: self.now_ms)


def job(**members: Any) -> Job:
    return Job("1", "t", "copy", ALL, {}, NOW_MS, **members)


def test_a_tenant_has_so_many_jobs_and_so_many_at_work() -> None:
    table = Table(active=3, running=1)
    first, second, _ = (table.add("t", "copy", ALL, {}) for _ in range(3))
    with pytest.raises(Overloaded, match="active"):
        table.add("t", "copy", ALL, {})
    other = table.add("u", "copy", ALL, {})
    assert table.startable() == [first, other]
    assert table.startable() == []
    first.state = State.CHECKING
    assert table.startable() == []
    first.end(State.DONE, NOW_MS)
    assert table.startable() == [second]
    table.add("t", "copy", ALL, {})


def test_nobody_finds_anothers_job() -> None:
    table = Table()
    mine = table.add("t", "copy", ALL, {})
    assert table.get("t", mine.id) is mine
    for tenant, id in (("u", mine.id), ("t", "no-such")):
        with pytest.raises(NoSuchJob, match="there is no such job"):
            table.get(tenant, id)
    assert table.of("u") == []


def test_jobs_that_have_ended_are_forgotten_by_age_and_by_number() -> None:
    table = Table(kept=2, keep_for=Seconds(10), running=8)
    jobs = [table.add("t", "copy", ALL, {}) for _ in range(4)]
    for each in jobs[:3]:
        table.now_ms += 1000
        each.end(State.DONE, table.now_ms)
    assert table.forget_old() == [jobs[0]]
    table.now_ms += 9500
    assert table.forget_old() == [jobs[1]]
    table.now_ms += 1_000_000
    assert table.forget_old() == [jobs[2]]
    assert table.of("t") == [jobs[3]]  # which has not ended


def test_the_first_end_counts_and_lets_the_keys_go() -> None:
    ended = dataclasses.replace(job(), selection=Selection("bucket", ("a", "b")))
    assert ended.end(State.CANCELLED, NOW_MS + 5)
    assert not ended.end(State.DONE, NOW_MS + 9)
    assert (ended.state, ended.ended_ms, ended.selected, ended.selection.keys) == ("cancelled", NOW_MS + 5, 2, ())


def test_a_job_names_a_few_examples_and_reasons() -> None:
    one = job()
    for number in range(100):
        one.note_unmet(f"k{number}", "why")
        one.note_failed(f"reason {number}")
    assert (one.unmet, one.failed) == (100, 100)
    assert len(one.examples) == MAX_EXAMPLES
    assert len(one.reasons) <= 17
    assert sum(one.reasons.values()) == 100


def test_time_is_that_of_the_work() -> None:
    one = job()
    assert one.seconds(NOW_MS + 5000) == 0
    one.started_ms = NOW_MS + 1000
    assert one.seconds(NOW_MS + 5000) == 4
    one.end(State.DONE, NOW_MS + 2000)
    assert one.seconds(NOW_MS + 5000) == 1


def test_jobs_of_an_earlier_run_are_interrupted() -> None:
    table = Table()
    running = dataclasses.replace(job(state=State.RUNNING, started_ms=NOW_MS), id="2", created_ms=NOW_MS + 1)
    done = job(state=State.DONE, ended_ms=NOW_MS)
    assert table.load([running, done]) == [running]
    assert [each.state for each in table.of("t")] == [State.INTERRUPTED, State.DONE]
    named = loads(dataclasses.replace(job(), id="3", selection=Selection("bucket", ("a", "b"))).dumps())
    assert table.load([named]) == [named]
    assert named.selected == 2
    assert running.message == "the gateway stopped"


@settings(deadline=None)
@given(
    st.builds(
        Job,
        id=st.text(min_size=1, max_size=9),
        tenant=st.text(min_size=1, max_size=9),
        kind=st.sampled_from(["copy", "pin"]),
        selection=st.builds(Selection, st.text(max_size=9), st.none() | st.just(()), st.text(max_size=9)),
        options=st.dictionaries(st.sampled_from(["tier", "pin_s"]), st.text(max_size=9) | st.floats(0, 9)),
        created_ms=st.integers(0, 1 << 45),
        started_ms=st.none() | st.integers(0, 1 << 45),
        ended_ms=st.none() | st.integers(0, 1 << 45),
        state=st.sampled_from(State),
        total=st.integers(0, 1 << 40),
        done_nbytes=st.integers(0, 1 << 60),
        reasons=st.dictionaries(st.text(max_size=9), st.integers(1, 99)).map(Counter),
        examples=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=3),
        message=st.text(max_size=9),
        selected=st.none() | st.integers(0, 99),
    )
)
def test_what_is_written_down_leads_back(written: Job) -> None:
    assert loads(written.dumps()) == written


def test_keys_are_counted_and_not_written_down() -> None:
    written = dataclasses.replace(job(), selection=Selection("bucket", ("a", "b")))
    assert "a" not in loads(written.dumps()).selection.keys  # type: ignore[operator]
    assert loads(written.dumps()).selected == 2


@pytest.mark.parametrize(
    "options",
    [{"active": 0}, {"running": 0}, {"operations": 0}, {"in_flight": Size(5)}, {"memory_share": 2}, {"kept": -1}],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        JobsConfig(**options)


class JobStates(RuleBasedStateMachine):
    """Whatever happens in whatever order, the numbers stay within their limits and an end is final."""

    @initialize()
    def begin(self) -> None:
        self.table = Table(active=3, running=2, kept=2, keep_for=Seconds(5))
        self.ended: dict[str, tuple[State, int | None]] = {}

    @rule(tenant=st.sampled_from("tu"))
    def add(self, tenant: str) -> None:
        full = sum(not each.has_ended for each in self.table.of(tenant)) >= 3
        try:
            self.table.add(tenant, "copy", ALL, {})
        except Overloaded:
            assert full
        else:
            assert not full

    @rule()
    def start(self) -> None:
        for each in self.table.startable():
            assert each.started_ms == self.table.now_ms

    @rule(tenant=st.sampled_from("tu"), place=st.integers(0, 5), state=st.sampled_from(sorted(ENDS)))
    def end(self, tenant: str, place: int, state: State) -> None:
        jobs = self.table.of(tenant)
        if place < len(jobs):
            jobs[place].end(state, self.table.now_ms)
            self.ended.setdefault(jobs[place].id, (jobs[place].state, jobs[place].ended_ms))

    @rule(ms=st.integers(1, 4000))
    def pass_time(self, ms: int) -> None:
        self.table.now_ms += ms

    @rule()
    def forget(self) -> None:
        for each in self.table.forget_old():
            assert each.has_ended
        for tenant in "tu":
            assert sum(each.has_ended for each in self.table.of(tenant)) <= 2

    @invariant()
    def limits_hold(self) -> None:
        for tenant in "tu":
            jobs = self.table.of(tenant)
            assert sum(not each.has_ended for each in jobs) <= 3
            assert sum(each.state in (State.RUNNING, State.CHECKING) for each in jobs) <= 2

    @invariant()
    def ends_are_final(self) -> None:
        for tenant in "tu":
            for each in self.table.of(tenant):
                if each.id in self.ended:
                    assert (each.state, each.ended_ms) == self.ended[each.id]


TestJobStates = JobStates.TestCase
TestJobStates.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
