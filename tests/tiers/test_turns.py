"""Turns, as a state machine and in the cases that matter."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvgate.errors import TierBusy
from kvgate.tiers.turns import Turn, Turns

OPERATIONS, NBYTES, WAITING = 3, 100, 4


class TurnsMachine(RuleBasedStateMachine):
    turns = Bundle("turns")

    def __init__(self) -> None:
        super().__init__()
        self.subject = Turns(OPERATIONS, NBYTES, WAITING)
        self.live: list[Turn] = []  # as they joined
        self.begun: list[Turn] = []

    @rule(target=turns, nbytes=st.sampled_from([0, 0, 1, 40, 60, 100, 1000]))
    def join(self, nbytes: int) -> Turn | None:
        waiting = [turn for turn in self.live if not turn.on]
        try:
            turn = self.subject.join(nbytes)
        except TierBusy:
            assert len(waiting) == WAITING
            return None
        turn.begun = lambda: self.begun.append(turn)
        self.live.append(turn)
        return turn

    @rule(turn=consumes(turns))
    def leave(self, turn: Turn | None) -> None:
        if turn is not None:
            waited = [each for each in self.live if not each.on and each is not turn]
            self.begun.clear()
            self.subject.leave(turn)
            self.live.remove(turn)
            assert len(self.begun) == len(set(self.begun))
            assert set(self.begun) == {each for each in waited if each.on}

    @invariant()
    def no_more_than_may(self) -> None:
        on = [turn for turn in self.live if turn.on]
        assert len(on) == self.subject.on <= OPERATIONS
        assert sum(turn.nbytes for turn in on) == self.subject.moving_nbytes
        assert self.subject.moving_nbytes <= NBYTES or len([turn for turn in on if turn.nbytes]) == 1
        assert self.subject.waiting == len(self.live) - len(on) <= WAITING

    @invariant()
    def each_kind_in_order(self) -> None:
        for small in (True, False):
            kind = [turn.on for turn in self.live if (turn.nbytes == 0) is small]
            assert True not in kind[kind.index(False) :] if False in kind else True

    @invariant()
    def nobody_waits_without_need(self) -> None:
        waiting = [turn for turn in self.live if not turn.on]
        if waiting:
            first = waiting[0]
            full = self.subject.on == OPERATIONS or (
                first.nbytes == 0 and self.subject.on == OPERATIONS - 1 and any(turn.nbytes for turn in waiting)
            )
            assert full or self.subject.moving_nbytes + first.nbytes > NBYTES
            assert self.subject.on > 0

    def teardown(self) -> None:
        for turn in list(self.live):
            self.subject.leave(turn)
        assert (self.subject.on, self.subject.moving_nbytes, self.subject.waiting) == (0, 0, 0)


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_lookup_overtakes_what_waits_for_bytes_and_leaves_it_a_turn() -> None:
    turns = Turns(3, 100, 10)
    moving = turns.join(100)
    waits = turns.join(50)
    lookups = [turns.join(0) for _ in range(3)]
    assert [waits.on, *[lookup.on for lookup in lookups]] == [False, True, False, False]
    turns.leave(moving)
    assert waits.on
    assert [lookup.on for lookup in lookups] == [True, True, False]


def test_an_operation_larger_than_the_limit_goes_alone() -> None:
    turns = Turns(3, 100, 10)
    large = turns.join(1000)
    assert large.on
    assert not turns.join(1).on


def test_over_its_length_the_queue_refuses_at_once() -> None:
    turns = Turns(1, 100, 2)
    first = turns.join(0)
    second = turns.join(0)
    turns.join(0)
    with pytest.raises(TierBusy):
        turns.join(0)
    turns.leave(first)
    assert second.on
    turns.join(0)
