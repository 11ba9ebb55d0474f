"""The circuit breaker, as a state machine with a clock of its own and in the cases that matter."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvgate.tiers.circuit import Circuit

FAILURES, RETRY_AFTER_S = 3, 10.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class CircuitMachine(RuleBasedStateMachine):
    """Calls that begin and end in any order, and a model that keeps no more than the invariants say."""

    calls = Bundle("calls")
    trials = Bundle("trials")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.circuit = Circuit(FAILURES, RETRY_AFTER_S, self.clock)
        self.state = "closed"
        self.in_a_row = 0
        self.opened_s = 0.0
        self.changes = 0

    def change(self, state: str) -> None:
        self.state, self.in_a_row = state, 0
        self.changes += 1
        if state == "open":
            self.opened_s = self.clock.now_s

    @rule(seconds=st.sampled_from([0.5, RETRY_AFTER_S / 2, RETRY_AFTER_S, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(target=calls)
    def a_call_begins(self) -> tuple[int, int] | None:
        return (self.circuit.period, self.changes) if self.circuit.state == "closed" else None

    @rule(call=consumes(calls), how=st.sampled_from(["succeeded", "failed", "failed", "left"]))
    def a_call_ends(self, call: tuple[int, int] | None, how: str) -> None:
        if call is None:
            return
        self.tell(call[0], how)
        if call[1] != self.changes or how == "left":
            return
        self.in_a_row = 0 if how == "succeeded" else self.in_a_row + 1
        if self.in_a_row == FAILURES:
            self.change("open")

    @rule(target=trials)
    def a_trial_is_wanted(self) -> tuple[int, int] | None:
        due = self.state == "open" and self.clock.now_s >= self.opened_s + RETRY_AFTER_S
        assert self.circuit.try_now() is due
        if not due:
            return None
        self.change("half-open")
        return self.circuit.period, self.changes

    @rule(trial=consumes(trials), how=st.sampled_from(["succeeded", "failed", "left"]))
    def a_trial_ends(self, trial: tuple[int, int] | None, how: str) -> None:
        if trial is None:
            return
        self.tell(trial[0], how)
        if trial[1] == self.changes:
            self.change("closed" if how == "succeeded" else "open")

    def tell(self, period: int, how: str) -> None:
        if how == "failed":
            self.circuit.failed(period, "no answer")
        else:
            getattr(self.circuit, how)(period)

    @invariant()
    def same_state(self) -> None:
        assert self.circuit.state == self.state
        assert self.circuit.health.away == (self.state != "closed")

    @invariant()
    def an_open_circuit_can_always_be_tried_in_time(self) -> None:
        if self.state == "open":
            assert self.circuit.due_s() <= RETRY_AFTER_S


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_says_since_when_and_why() -> None:
    clock = Clock()
    circuit = Circuit(2, RETRY_AFTER_S, clock)
    clock.now_s += 7
    assert (circuit.health.state, circuit.health.for_s, circuit.health.error) == ("closed", 7, "")
    circuit.failed(circuit.period, "first")
    circuit.failed(circuit.period, "second")
    clock.now_s += RETRY_AFTER_S
    assert circuit.try_now()
    circuit.failed(circuit.period, "third")
    clock.now_s += 5
    assert (circuit.health.state, circuit.health.for_s, circuit.health.error) == ("open", RETRY_AFTER_S + 5, "third")
    clock.now_s += 5
    assert circuit.try_now()
    circuit.succeeded(circuit.period)
    assert (circuit.health.state, circuit.health.for_s, circuit.health.error) == ("closed", 0, "third")
