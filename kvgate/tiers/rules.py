"""The rules of one tier: what the store writes to it, brings up from it, and expects of it. Every tier has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgate.config import MiB, Seconds, Size, option
from kvgate.errors import ConfigError


@dataclass(frozen=True)
class TierRules:
    """Keys that stand among a tier's own options, under its name."""

    write: Literal["back", "through", "on-evict", "never"] = option(
        default="back",
        help="when objects are written here: `back`, in the background; `through`, before the PUT is answered; "
        "`on-evict`, when they leave the tier above; `never`",
    )
    promote: Literal["always", "second-touch", "never"] = option(
        default="always",
        help="whether what is read here is brought to memory: `always`, only when it is read again, or `never`",
    )
    eviction: str | None = option(
        default=None,
        help="the policy of this tier, by its name in the entry points `kvgate.eviction`; by default store.eviction",
    )
    write_budget: Size | None = option(
        default=None, help="bytes a day that may be written here, for an SSD that should last; no limit by default"
    )
    write_burst: Size = option(
        default=Size(1024 * MiB), help="bytes that may be written at once after a quiet time, within write_budget"
    )
    writers: int = option(default=2, help="objects that are written here at the same time, in the background")
    operations: int = option(default=32, help="operations in flight; those over it wait. For shared tiers")
    in_flight: Size = option(
        default=Size(256 * MiB), help="bytes in flight, but always one operation; those over it wait. For shared tiers"
    )
    timeout: Seconds = option(
        default=Seconds(5.0),
        help="how long one operation may take, with 1s more for each `min_rate` bytes of it. For shared tiers",
    )
    min_rate: Size = option(
        default=Size(32 * MiB), help="bytes a second that the tier must move to keep the timeout. For shared tiers"
    )
    lookup_timeout: Seconds = option(
        default=Seconds(0.5),
        help="how long a lookup may take before it counts as a miss, so that a slow tier never stalls an engine",
    )
    failures: int = option(
        default=3, help="failures in a row after which the tier counts as away and is left alone. For shared tiers"
    )
    retry_after: Seconds = option(
        default=Seconds(1.0), help="how long a tier that is away is left alone before one operation tries it again"
    )
    hedge_after: Seconds = option(
        default=Seconds(0.25),
        help="how long a read from here may bring nothing before the next tier that holds the object is read as well",
    )
    journal: int = option(
        default=10_000,
        help="objects that may wait to be written here, also while the tier is away; the oldest beyond it are dropped "
        "from the wait, and counted",
    )

    def __post_init__(self) -> None:
        for key, most in (("writers", 64), ("operations", 4096), ("failures", 1000), ("journal", 10_000_000)):
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected 1 to {most}, got {getattr(self, key)}")
        for key in ("timeout", "lookup_timeout", "retry_after", "hedge_after", "min_rate", "in_flight"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key}: expected more than 0, got {getattr(self, key):g}")

    def allowed_s(self, nbytes: int, *, lookup: bool = False) -> float:
        """How long an operation that moves `nbytes` may take, its wait and its retries included."""
        return self.lookup_timeout if lookup else self.timeout + nbytes / self.min_rate
