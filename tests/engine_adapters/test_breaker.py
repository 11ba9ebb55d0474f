"""The circuit breaker."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine_adapters.breaker import Breaker

pytestmark = pytest.mark.engine


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(first_s=1.0, longest_s=5.0, clock=clock)


def test_calls_are_allowed_until_one_fails(breaker: Breaker) -> None:
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()


def test_pauses_double_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    for pause_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        breaker.failed()
        clock.now_s += pause_s - 0.01
        assert not breaker.allows()
        clock.now_s += 0.02
        assert breaker.allows()


def test_a_success_ends_the_pause_and_forgets_its_length(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    clock.now_s += 1.5
    breaker.failed()
    breaker.succeeded()
    assert breaker.allows()
    breaker.failed()
    clock.now_s += 1.01
    assert breaker.allows()


def test_calls_that_fail_together_count_once(breaker: Breaker, clock: Clock) -> None:
    for _ in range(5):
        breaker.failed()
    clock.now_s += 1.01
    assert breaker.allows()
