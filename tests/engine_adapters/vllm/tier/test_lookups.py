"""What the tier knows of chunks: no HIT without a lease, no lease that is not given back, no question asked twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_adapters.vllm.tier.lookups import Lease, Lookups, Question, Verdict

DEADLINE_S, STALE_S, LEASE_S = 1.0, 2.0, 30.0
A, B, C = (letter * 32 + bytes(4) for letter in (b"a", b"b", b"c"))
OTHER_GROUP = b"a" * 32 + bytes([0, 0, 0, 1])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lookups(clock: Clock | None = None, max_keys: int = 100) -> Lookups:
    return Lookups(deadline_s=DEADLINE_S, stale_s=STALE_S, max_keys=max_keys, clock=clock or Clock())


def ask(known: Lookups, *keys: bytes, request: str = "one") -> list[Verdict]:
    return [known.look_up(key, request, may_ask=True) for key in keys]


def lease(clock: Clock, name: str, *keys: bytes) -> Lease:
    return Lease(name, clock.now + LEASE_S, set(keys))


def test_chunks_of_a_request_are_asked_for_together_and_in_order() -> None:
    known = lookups()
    assert ask(known, A, B, C, OTHER_GROUP, A) == [Verdict.RETRY] * 5
    assert known.questions() == [Question(0, (A, B, C)), Question(1, (OTHER_GROUP,))]
    assert known.questions() == []


def test_two_requests_share_one_question() -> None:
    known = lookups()
    ask(known, A, B)
    ask(known, A, C, request="two")
    assert known.questions() == [Question(0, (A, B)), Question(0, (C,))]


def test_what_is_not_in_the_answer_is_a_miss() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A, B)
    (question,) = known.questions()
    known.answer(question, [A], [lease(clock, "lease", A)])
    assert ask(known, A, B) == [Verdict.HIT, Verdict.MISS]


def test_nobody_waits_longer_than_the_deadline_and_the_late_answer_gives_its_lease_back() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A)
    (question,) = known.questions()
    clock.now += DEADLINE_S + 0.1
    assert ask(known, A) == [Verdict.MISS]
    known.answer(question, [A], [lease(clock, "lease", A)])
    assert ask(known, A) == [Verdict.MISS]
    assert known.leases_over() == ["lease"]


def test_without_a_gateway_everything_is_a_miss_at_once() -> None:
    known = lookups()
    assert known.look_up(A, "one", may_ask=False) is Verdict.MISS
    assert known.questions() == []


def test_a_lease_ends_when_its_last_chunk_was_loaded_or_has_failed() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A, B)
    (question,) = known.questions()
    known.answer(question, [A, B], [lease(clock, "lease", A, B)])
    known.loaded([A])
    assert known.leases_over() == []
    known.failed([B])
    assert known.leases_over() == ["lease"]
    assert ask(known, B) == [Verdict.MISS], "vLLM would load it again for ever"
    assert ask(known, A) == [Verdict.RETRY], "it may be gone by now"


def test_a_hit_is_none_when_its_lease_has_run_out() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A)
    (question,) = known.questions()
    known.answer(question, [A], [lease(clock, "lease", A)])
    clock.now += LEASE_S
    assert ask(known, A) == [Verdict.MISS]


def test_requests_that_end_give_the_lease_back() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A)
    ask(known, A, request="two")
    (question,) = known.questions()
    known.answer(question, [A], [lease(clock, "lease", A)])
    known.finished("one")
    assert known.leases_over() == []
    known.finished("two")
    assert known.leases_over() == ["lease"]
    assert len(known) == 0


def test_an_answer_for_a_request_that_has_ended_gives_its_lease_back() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A)
    (question,) = known.questions()
    known.finished("one")
    known.answer(question, [A], [lease(clock, "lease", A)])
    assert known.leases_over() == ["lease"]


def test_a_new_request_asks_again_for_what_was_missed_a_while_ago() -> None:
    clock = Clock()
    known = lookups(clock)
    ask(known, A)
    known.answer(known.questions()[0], [], [])
    assert ask(known, A, request="two") == [Verdict.MISS]
    clock.now += STALE_S + 0.1
    assert ask(known, A) == [Verdict.MISS]
    assert ask(known, A, request="three") == [Verdict.RETRY]
    assert known.questions() == [Question(0, (A,))]


def test_no_more_chunks_are_remembered_than_allowed() -> None:
    known = lookups(max_keys=2)
    assert ask(known, A, B, C) == [Verdict.RETRY, Verdict.RETRY, Verdict.MISS]
    known.finished("one")
    assert ask(known, C, request="two") == [Verdict.RETRY]


class LookupMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the leases that are open are those that some request still needs."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.lookups = lookups(self.clock, max_keys=6)
        self.open_questions: list[Question] = []
        self.leases: dict[str, Lease] = {}
        self.finished: set[str] = set()
        self.over: list[str] = []

    keys = st.lists(st.sampled_from([bytes([n]) * 32 + bytes(4) for n in range(8)]), min_size=1, max_size=4)
    requests = st.sampled_from(["r1", "r2", "r3"])

    @rule(keys=keys, request=requests, may_ask=st.booleans())
    def look_up(self, keys: list[bytes], request: str, may_ask: bool) -> None:
        for key in keys:
            if self.lookups.look_up(key, request, may_ask=may_ask) is Verdict.HIT:
                assert any(key in each.keys and each.expires_at > self.clock.now for each in self.leases.values())

    @rule()
    def end_step(self) -> None:
        self.open_questions += self.lookups.questions()

    @precondition(lambda self: self.open_questions)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        question = self.open_questions.pop(data.draw(st.integers(0, len(self.open_questions) - 1)))
        present = question.keys[: data.draw(st.integers(0, len(question.keys)))]
        given = []
        if present:
            name = f"lease{len(self.leases)}"
            given = [self.leases.setdefault(name, lease(self.clock, name, *present))]
        self.lookups.answer(question, present, given)

    @rule(keys=keys)
    def loaded(self, keys: list[bytes]) -> None:
        self.lookups.loaded(keys)

    @rule(keys=keys)
    def failed(self, keys: list[bytes]) -> None:
        self.lookups.failed(keys)

    @rule(request=requests)
    def finish(self, request: str) -> None:
        self.lookups.finished(request)

    @rule(seconds=st.sampled_from([0.1, 1.5, 40.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def leases_end_once(self) -> None:
        self.over += self.lookups.leases_over()
        assert len(self.over) == len(set(self.over))
        assert len(self.lookups) <= 6

    def teardown(self) -> None:
        for request in ("r1", "r2", "r3"):
            self.lookups.finished(request)
        for question in self.open_questions + self.lookups.questions():
            self.lookups.answer(question, [], [])
        self.over += self.lookups.leases_over()
        assert sorted(self.over) == sorted(self.leases), "a lease was kept for nobody"
        assert len(self.lookups) == 0


LookupMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLookups = LookupMachine.TestCase
