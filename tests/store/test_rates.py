from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.limits import RateConfig
from kvgate.auth.tenants import Tenant
from kvgate.config import Seconds, Size
from kvgate.errors import QuotaExceeded, RateLimited
from kvgate.metrics import Metrics
from kvgate.store.rates import Rates, TokenBucket
from kvgate.store.refusals import Refusals


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rates_of(clock: Clock, **config: RateConfig) -> tuple[Rates, Refusals]:
    refusals = Refusals(Metrics())
    rates = Rates(refusals, clock)
    rates.load([Tenant(name, rate=rate) for name, rate in config.items()])
    return rates, refusals


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    clock = Clock()
    rates, refusals = rates_of(clock, slow=RateConfig(requests=2.0, burst=Seconds(2.0)))
    for _ in range(4):
        rates.requests.take("slow")
    with pytest.raises(RateLimited) as raised:
        rates.requests.take("slow")
    assert raised.value.retry_after_s == 1, "half a second, rounded up"
    clock.now += 0.5
    rates.requests.take("slow")
    with pytest.raises(RateLimited):
        rates.requests.take("slow")
    assert refusals.of("slow") == {
        "requests": 2,
        "read_bytes": 0,
        "write_bytes": 0,
        "quota": 0,
        "tier_limit": 0,
    }


def test_one_large_object_passes_and_is_paid_for_afterwards() -> None:
    clock = Clock()
    rates, _ = rates_of(clock, slow=RateConfig(read_bytes=Size(100)))
    rates.read.take("slow", 1000)
    for passed_s, left_s in ((0.0, 10), (4.5, 5), (4.0, 1)):
        clock.now += passed_s
        with pytest.raises(RateLimited) as raised:
            rates.read.take("slow", 1)
        assert raised.value.retry_after_s == left_s
    clock.now += 1
    rates.read.take("slow", 1)


def test_tenants_and_kinds_have_nothing_to_do_with_each_other() -> None:
    rates, _ = rates_of(Clock(), slow=RateConfig(write_bytes=Size(1)), other=RateConfig(write_bytes=Size(1)))
    rates.write.take("slow", 50)
    with pytest.raises(RateLimited):
        rates.write.take("slow", 1)
    rates.write.take("other", 1)
    rates.read.take("slow", 1 << 40)
    rates.requests.take("slow")
    for _ in range(1000):
        rates.write.take("nobody", 1 << 40)


def test_an_upload_of_unknown_length_owes_what_comes() -> None:
    rates, _ = rates_of(Clock(), slow=RateConfig(write_bytes=Size(100)))
    counted: list[int] = []
    take = rates.upload("slow", counted.append)
    take(0)
    take(5000)
    take(5000)
    assert counted == [0, 5000, 5000], "an upload that was let in goes on to its end"
    with pytest.raises(RateLimited) as raised:
        rates.upload("slow", counted.append)(0)
    assert raised.value.retry_after_s == math.ceil((10_000 - 100 + 1) / 100)
    assert counted == [0, 5000, 5000], "what the rate refuses is not counted anywhere else"


def test_what_the_quota_refuses_costs_nothing() -> None:
    rates, _ = rates_of(Clock(), slow=RateConfig(write_bytes=Size(100)))

    def refuse(_: int) -> None:
        raise QuotaExceeded("no")

    for _ in range(3):
        with pytest.raises(QuotaExceeded):
            rates.upload("slow", refuse)(1000)
    rates.write.take("slow", 1)


def test_less_than_a_token_of_burst_still_lets_something_in() -> None:
    clock = Clock()
    rates, _ = rates_of(clock, slow=RateConfig(requests=0.1))
    rates.requests.take("slow")
    with pytest.raises(RateLimited) as raised:
        rates.requests.take("slow")
    assert raised.value.retry_after_s == 10
    clock.now += 10
    rates.requests.take("slow")


@given(
    rate=st.floats(0.5, 1000),
    burst_s=st.floats(0.1, 5),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500)), max_size=60),
)
def test_over_any_time_no_more_is_let_in_than_was_promised(
    rate: float, burst_s: float, steps: list[tuple[float, int]]
) -> None:
    now = 0.0
    bucket = TokenBucket(rate, rate * burst_s, now)
    let_in: list[tuple[float, int]] = []
    for passed_s, cost in steps:
        now += passed_s
        wait_s = bucket.wait_s(now)
        assert bucket.wait_s(now) == wait_s, "to ask changes nothing"
        if wait_s == 0:
            bucket.take(cost)
            let_in.append((now, cost))
    for first in range(len(let_in)):
        for last in range(first, len(let_in)):
            before_last = sum(cost for _, cost in let_in[first:last])
            most = bucket.burst + rate * (let_in[last][0] - let_in[first][0])
            assert before_last <= most + 1e-6 * max(1.0, most)


@given(rate=st.floats(0.5, 1e6), cost=st.integers(10**6, 10**12))
def test_after_the_wait_that_was_told_it_passes(rate: float, cost: int) -> None:
    bucket = TokenBucket(rate, rate, 0.0)
    bucket.take(cost)
    wait_s = bucket.wait_s(0.0)
    assert wait_s > 0
    assert bucket.wait_s(0.98 * wait_s) > 0
    assert bucket.wait_s(math.ceil(wait_s)) == 0
