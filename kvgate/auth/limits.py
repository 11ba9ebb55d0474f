"""What an operator sets for one tenant besides its quota: how fast it may go, and its part of each tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvgate.config import MiB, Seconds, Size, format_size, option
from kvgate.errors import ConfigError

_LEAST_LIMIT = 4 * MiB
"""With less there would be no memory to stream anything through."""

_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class RateConfig:
    """How fast a tenant may go. What is over it is answered 503 SlowDown with Retry-After."""

    requests: float | None = option(default=None, help="requests a second; null is unlimited")
    read_bytes: Size | None = option(default=None, help="bytes of objects a second that are read; null is unlimited")
    write_bytes: Size | None = option(
        default=None, help="bytes of objects a second that are written; null is unlimited"
    )
    burst: Seconds = option(
        default=Seconds(1.0), help="how long a quiet time can be made up for: so many seconds' worth may come at once"
    )

    def __post_init__(self) -> None:
        for key in ("requests", "read_bytes", "write_bytes", "burst"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{key}: expected more than 0, got {value:g}; leave it out for no limit")


NO_RATE = RateConfig()
"""Of a tenant that may go as fast as it can."""


class Share(NamedTuple):
    """A tenant's part of one tier. See TierShareConfig; bytes are those of bodies."""

    limit_nbytes: int | None = None
    floor_nbytes: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class TierShareConfig:
    """A tenant's part of one tier, where it is not that of every tenant."""

    limit: Size | None = option(
        default=None,
        help="bytes that the tenant may have there at most; at it, its new objects take the place of its old",
    )
    floor: Size = option(
        default=Size(0),
        help="bytes there that are never evicted for another tenant's sake; all floors fit into the tier",
    )
    weight: float | None = option(default=None, help="as the tenant's weight, for this tier")

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.limit is not None and self.limit < max(self.floor, _LEAST_LIMIT):
            least = "the floor" if self.floor > _LEAST_LIMIT else format_size(_LEAST_LIMIT)
            raise ConfigError(f"limit: expected at least {least}, got {format_size(self.limit)}")


def check_weight(weight: float | None) -> None:
    """Raises ConfigError naming the key."""
    if weight is not None and not _LEAST_WEIGHT <= weight <= 1 / _LEAST_WEIGHT:
        raise ConfigError(f"weight: expected {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g}, got {weight:g}")
