"""Options of the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgate.config import MiB, Seconds, Size, option
from kvgate.errors import ConfigError
from kvgate.store.discovery import DiscoveryConfig
from kvgate.store.jobs import JobsConfig
from kvgate.store.prefetch import PrefetchConfig
from kvgate.store.retention import RetentionConfig
from kvgate.store.scrub import ScrubConfig


@dataclass(frozen=True)
class StoreConfig:
    """What an acknowledgement promises, and the store's limits."""

    ack: Literal["memory", "disk"] = option(
        default="memory",
        help="when a PUT is answered: `memory`, once the object can be read; `disk`, once it also survives a restart: "
        "the first private tier is then written `through`",
    )
    eviction: str = option(default="lru", help="eviction policy, by its name in the entry points `kvgate.eviction`")
    max_object: Size = option(default=Size(5 << 30), help="bytes of the largest object that is accepted")
    window: Size = option(
        default=Size(8 * MiB), help="bytes of memory that one request streams an object through that is not in memory"
    )
    read_ahead: int = option(
        default=2,
        help="chunks of one `read` call that are loaded and not sent yet; more hide a slow tier, and take its memory",
    )
    stop_timeout: Seconds = option(
        default=Seconds(10.0),
        help="how long a stop waits for what shared tiers are still to get; private tiers get everything",
    )
    memory_wait: Seconds = option(
        default=Seconds(2.0),
        help="how long a request waits for memory while objects are being written to disk, before it gets 503 SlowDown",
    )
    min_part: Size = option(
        default=Size(5 * MiB),
        help="bytes that each part of a multipart upload must have but the last; S3 clients send at least 5MiB",
    )
    upload_ttl: Seconds = option(
        default=Seconds(7 * 86400.0),
        help="how long a multipart upload may stay unfinished before it and its parts are deleted",
    )
    lifecycle_day: Seconds = option(
        default=Seconds(86400.0), help="what lifecycle rules mean by a day; less than 24h is for tests of the rules"
    )
    lifecycle_interval: Seconds = option(
        default=Seconds(60.0), help="how often expired objects are looked for, in the buckets that have lifecycle rules"
    )
    max_lease: Seconds = option(default=Seconds(300.0), help="the longest lease that a client can get")
    max_leases: int = option(default=100_000, help="how many leases can be open at the same time")
    max_reservations: int = option(
        default=1024, help="how many chunks one tenant can have reserved for writing in slices at the same time"
    )
    ghosts: int = option(
        default=100_000,
        help="objects of one tenant, gone or refused, of which `explain` can say what became of them; 150 bytes each, "
        "0 remembers none",
    )
    published: int = option(
        default=100_000,
        help="objects in memory that the native data plane may answer for by itself, about 1 kB each; more where there "
        "are more small ones in use, 0 has Python answer everything, uploads too",
    )
    reserved_share: float = option(
        default=0.5,
        help="the share of memory that reserved chunks may take; one tenant gets at most as much of it as is left free",
    )
    discovery: DiscoveryConfig = option(
        default=DiscoveryConfig(), help="how objects are found that other gateways have put into shared tiers"
    )
    prefetch: PrefetchConfig = option(
        default=PrefetchConfig(), help="what is learnt from clients of other KV systems, and fetched for them ahead"
    )
    scrub: ScrubConfig = option(default=ScrubConfig(), help="the verification of copies that nobody reads")

    jobs: JobsConfig = option(default=JobsConfig(), help="how many jobs tenants may have, and what they may do at once")
    retention: RetentionConfig = option(default=RetentionConfig(), help="how much owners may ask to be kept")

    def __post_init__(self) -> None:
        if self.window < MiB:
            raise ConfigError(f"window: expected at least 1MiB, got {self.window} bytes")
        if not 1 <= self.read_ahead <= 64:
            raise ConfigError(f"read_ahead: expected 1 to 64, got {self.read_ahead}")
        for key in ("lifecycle_day", "lifecycle_interval"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key}: expected more than 0 seconds")
        for key in ("max_leases", "max_reservations"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: expected at least 1, got {getattr(self, key)}")
        if not 0 <= self.ghosts <= 100_000_000:
            raise ConfigError(f"ghosts: expected 0 to 100000000, got {self.ghosts}")
        if not 0 <= self.published <= 10_000_000:
            raise ConfigError(f"published: expected 0 to 10000000, got {self.published}")
        if not 0 <= self.reserved_share <= 1:
            raise ConfigError(f"reserved_share: expected 0 to 1, got {self.reserved_share:g}")
