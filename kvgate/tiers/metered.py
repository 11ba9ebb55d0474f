"""A tier of which it is counted what it does."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Counter, Histogram

from kvgate.errors import (
    CorruptCopy,
    KVGateError,
    NotAdmitted,
    NotInTier,
    TierAway,
    TierBusy,
    TierFull,
    TierSkipped,
)
from kvgate.metrics import Metrics
from kvgate.tiers.base import SharedTier
from kvgate.tiers.wrapper import Operation, T, Work, Wrapper

_RESULTS: dict[type[BaseException], str] = {
    NotInTier: "missing",
    CorruptCopy: "corrupt",
    NotAdmitted: "refused",
    TierFull: "full",
    TierSkipped: "skipped",
    TierAway: "away",
    TierBusy: "busy",
    asyncio.CancelledError: "cancelled",
}
"""The values of the label `result`, with `ok`, and `failed` for every other error."""

_DIRECTIONS: dict[Operation, str] = {"write": "written", "read": "read"}


class Metered(Wrapper):
    """Counts operations by their result, their time and their bytes."""

    def __init__(self, tier: SharedTier, metrics: Metrics) -> None:
        super().__init__(tier)
        self._metrics = metrics
        self._counters: dict[tuple[Operation, str], Counter] = {}
        self._histograms: dict[Operation, Histogram] = {}
        self._bytes = {
            operation: metrics.tier_bytes.labels(self.name, direction) for operation, direction in _DIRECTIONS.items()
        }

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """See Wrapper."""
        result, began_s = "failed", time.monotonic()
        try:
            done = await work()
            result = "ok"
            return done
        except (KVGateError, asyncio.CancelledError) as error:
            result = _RESULTS.get(type(error), "failed")
            raise
        finally:
            self._count(operation, result, time.monotonic() - began_s)
            if result == "ok" and operation in self._bytes:
                self._bytes[operation].inc(nbytes)

    def _count(self, operation: Operation, result: str, seconds: float) -> None:
        """The children of the metrics are looked up once."""
        counter = self._counters.get((operation, result))
        if counter is None:
            counter = self._metrics.tier_operations.labels(self.name, operation, result)
            self._counters[operation, result] = counter
        counter.inc()
        if result == "skipped":
            return
        histogram = self._histograms.get(operation)
        if histogram is None:
            histogram = self._histograms[operation] = self._metrics.tier_operation_seconds.labels(self.name, operation)
        histogram.observe(seconds)
