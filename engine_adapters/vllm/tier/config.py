"""What an entry of `secondary_tiers` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvgate.chunk.key import check_bucket
from kvgate.client.credentials import Credentials, find_credentials
from kvgate.config import Seconds, build, option


@dataclass(frozen=True)
class TierConfig:
    """The tier's options. There is none for the key pair: vLLM writes its configuration to its log."""

    bucket: str = option(help="the bucket for chunks; it must exist")
    url: str | None = option(default=None, help="where the gateway listens; else as in `credentials`, else KVGATE_URL")
    credentials: Path | None = option(
        default=None,
        help="a file as `kvgate serve` writes it, with the key pair; else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )
    model_name: str | None = option(default=None, help="the model in the space; else as vLLM knows it")
    weights: str | None = option(default=None, help="revision or digest of the weights; else found out from the files")
    lookup_deadline: Seconds = option(
        default=Seconds(0.5), help="the longest that a request waits to know what the gateway has"
    )
    load_deadline: Seconds = option(default=Seconds(5.0), help="the longest that a request waits for its chunks")
    store_deadline: Seconds = option(default=Seconds(10.0), help="the longest that each call to store may take")
    lease: Seconds = option(default=Seconds(30.0), help="how long found chunks are kept for a request that waits")
    threads: int = option(
        default=8, help="threads and connections to the gateway; stores never take more than half of them"
    )
    max_pinned_share: float = option(
        default=0.25, help="share of vLLM's CPU tier that chunks on their way to the gateway may occupy"
    )
    max_lookups: int = option(default=100_000, help="chunks of which is remembered whether the gateway has them")
    weights_may_change: bool = option(
        default=True,
        help="whether a reset of vLLM's caches may mean that the weights are others: then the tier rests from there on",
    )
    enable_kv_events: bool = option(default=False, help="tell in vLLM's KV events what was stored")
    locality: Literal["LOCAL", "REMOTE"] = option(
        default="REMOTE", help="where vLLM's events and load filters say that the gateway is"
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)
        for name in ("lookup_deadline", "load_deadline", "store_deadline", "lease"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be longer than 0")
        if not 2 <= self.threads <= 256:
            raise ValueError(f"threads must be 2 to 256, got {self.threads}")
        if not 0 < self.max_pinned_share <= 1:
            raise ValueError(f"max_pinned_share must be above 0 and at most 1, got {self.max_pinned_share}")
        if self.max_lookups < 1:
            raise ValueError(f"max_lookups must be at least 1, got {self.max_lookups}")

    def find_credentials(self) -> Credentials:
        """Where the gateway is, and the key pair. Raises ConfigError."""
        return find_credentials(self.url, path=self.credentials)


def read_config(values: Mapping[str, object]) -> TierConfig:
    """The options of an entry of `secondary_tiers`. Raises ConfigError naming the key."""
    return build(TierConfig, values, "secondary_tiers")
