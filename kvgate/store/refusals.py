"""What tenants were refused, and why, since the gateway started."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from kvgate.metrics import Metrics

Reason = Literal["requests", "read_bytes", "write_bytes", "quota", "tier_limit"]
"""Over a rate; over the quota of all tiers; over the limit of a tier, so that a tier does not get the object."""

REASONS: tuple[Reason, ...] = get_args(Reason)


class Refusals:
    """Counts by tenant and reason; the metrics have the reasons only."""

    def __init__(self, metrics: Metrics) -> None:
        self._counts: Counter[tuple[str, Reason]] = Counter()
        self._children = {reason: metrics.refusals.labels(reason) for reason in REASONS}

    def note(self, tenant: str, reason: Reason) -> None:
        """Count one."""
        self._counts[tenant, reason] += 1
        self._children[reason].inc()

    def of(self, tenant: str) -> dict[str, int]:
        """How often a tenant was refused, by every reason."""
        return {reason: self._counts[tenant, reason] for reason in REASONS}
