"""What an operator sets for one tenant besides its quota: how fast it may go, and its part of each tier."""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.config import Seconds, Size, option
from kvgate.errors import ConfigError


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
