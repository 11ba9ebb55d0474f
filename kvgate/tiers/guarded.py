"""A shared tier as the store uses it: it never stalls its caller, is not asked while it is away, and is counted."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvgate.metrics import Metrics
from kvgate.tiers.base import SharedTier
from kvgate.tiers.breaker import Breaker
from kvgate.tiers.circuit import Health, State
from kvgate.tiers.deadline import Deadline
from kvgate.tiers.limit import Limit
from kvgate.tiers.metered import Metered
from kvgate.tiers.retry import Retry
from kvgate.tiers.rules import TierRules

_VALUES: dict[State, int] = {"closed": 0, "half-open": 1, "open": 2}


class Guarded(Metered):
    """What `guarded` gives: the tier with everything around it."""

    def __init__(self, breaker: Breaker, metrics: Metrics) -> None:
        super().__init__(breaker, metrics)
        self._breaker = breaker

    @property
    def health(self) -> Health:
        """Whether the tier is asked, since when, and what failed last."""
        return self._breaker.health

    def collect(self) -> None:
        """Bring the gauges up to date before a scrape."""
        self._metrics.tier_state.labels(self.name).set(_VALUES[self.health.state])


def guarded(
    tier: SharedTier, rules: TierRules, metrics: Metrics, clock: Callable[[], float] = time.monotonic
) -> Guarded:
    """`tier` with its limit, retries, deadline, breaker and meter.

    From the tier outwards, and why in this order:

    1. Limit, next to the tier: a turn lasts until the operation has really ended, also one that nobody waits for any
       more, so that a tier that hangs is not given more and more.
    2. Retry, around it: an operation gives its turn up while it pauses.
    3. Deadline, around both: turns, attempts and pauses share one time, which is what the caller waits at most.
    4. Breaker: it has to see what was late. It does not see single attempts, so that one lost packet is no failure.
    5. Meter, outermost: it counts what the store asked for, with what the breaker kept from the tier.
    """
    return Guarded(Breaker(Deadline(Retry(Limit(tier, rules)), rules), rules, clock), metrics)
