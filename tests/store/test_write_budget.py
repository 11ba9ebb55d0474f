"""A tier's write budget lets a day's bytes through in a day, and bursts after quiet times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvgate.store.write_budget import WriteBudget

DAY = 86_400


def test_a_burst_goes_at_once_and_then_the_rate_of_a_day() -> None:
    now = [0.0]
    budget = WriteBudget(DAY, 100, lambda: now[0])
    assert budget.take(60)
    assert not budget.take(60)
    assert budget.take(40)
    now[0] = 10.0
    assert not budget.take(11)
    assert budget.take(10)
    now[0] = 1e6
    assert budget.left_nbytes == 100


def test_an_object_larger_than_the_burst_is_made_up_for_afterwards() -> None:
    now = [0.0]
    budget = WriteBudget(DAY, 100, lambda: now[0])
    assert budget.take(500)
    now[0] = 400.0
    assert not budget.take(1)
    now[0] = 401.0
    assert budget.take(1)


def test_what_was_not_written_is_given_back() -> None:
    budget = WriteBudget(DAY, 100, lambda: 0.0)
    assert budget.take(100)
    budget.give_back(100)
    assert budget.take(100)


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 300)), max_size=60))
def test_never_more_than_the_rate_and_one_burst(asked: list[tuple[float, int]]) -> None:
    now, written = [0.0], 0
    budget = WriteBudget(DAY, 200, lambda: now[0])
    for pause, nbytes in asked:
        now[0] += pause
        written += nbytes * budget.take(nbytes)
        assert written <= now[0] + 200 + 100.001  # one object may be 100 bytes larger than the burst
