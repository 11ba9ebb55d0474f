"""Every wrapper is a shared tier, and so are all of them together."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable

import pytest

from kvgate.metrics import Metrics
from kvgate.tiers.base import SharedTier, Tier
from kvgate.tiers.breaker import Breaker
from kvgate.tiers.deadline import Deadline
from kvgate.tiers.guarded import guarded
from kvgate.tiers.limit import Limit
from kvgate.tiers.metered import Metered
from kvgate.tiers.retry import Retry
from kvgate.tiers.rules import TierRules
from kvgate.tiers.wrapper import Wrapper
from tests.contracts.shared_tier import SharedTierContract
from tests.tiers.far import FarTier, Place

RULES = TierRules(timeout=60, lookup_timeout=60)
"""No deadline, however slow the machine is."""

WRAPPED: dict[str, Callable[[SharedTier], SharedTier]] = {
    "nothing": lambda tier: tier,
    "wrapper": Wrapper,
    "limit": lambda tier: Limit(tier, RULES),
    "one-at-a-time": lambda tier: Limit(tier, TierRules(operations=1, timeout=60, lookup_timeout=60)),
    "retry": Retry,
    "deadline": lambda tier: Deadline(tier, RULES),
    "breaker": lambda tier: Breaker(tier, RULES),
    "metered": lambda tier: Metered(tier, Metrics()),
    "guarded": lambda tier: guarded(tier, RULES, Metrics()),
}


class TestEveryWrapper(SharedTierContract):
    capacity_nbytes = None

    @pytest.fixture(params=WRAPPED)
    def wrap(self, request: pytest.FixtureRequest) -> Callable[[SharedTier], SharedTier]:
        return WRAPPED[request.param]

    @pytest.fixture
    def place(self) -> Place:
        return Place()

    @pytest.fixture
    async def tier(self, place: Place, wrap: Callable[[SharedTier], SharedTier]) -> AsyncIterator[Tier]:
        tier = wrap(FarTier(place))
        await tier.start(lambda _: None)
        yield tier
        await tier.close()

    @pytest.fixture
    async def other(self, place: Place, wrap: Callable[[SharedTier], SharedTier]) -> AsyncIterator[SharedTier]:
        other = wrap(FarTier(place))
        await other.start(lambda _: None)
        yield other
        await other.close()


def test_a_wrapper_hands_on_every_method_of_a_shared_tier() -> None:
    methods = {name for name, _ in inspect.getmembers(SharedTier, inspect.isfunction) if not name.startswith("_")}
    assert methods <= set(vars(Wrapper))
