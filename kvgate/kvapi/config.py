"""Limits of the calls under /_kv/v1/."""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.config import MiB, Size, option
from kvgate.errors import ConfigError


@dataclass(frozen=True)
class KVApiConfig:
    """What one call may ask for."""

    max_hashes: int = option(
        default=65_536, help="chunk hashes of one match; raise it for chunks of few tokens under very long prompts"
    )
    max_read: int = option(default=1024, help="chunks of one read; clients split longer ones over connections")
    max_explain: int = option(default=4096, help="objects of one explain; clients split longer lists")
    max_body: Size = option(default=Size(8 * MiB), help="bytes of the largest request body that is read")

    def __post_init__(self) -> None:
        for key, count in (
            ("max_hashes", self.max_hashes),
            ("max_read", self.max_read),
            ("max_explain", self.max_explain),
        ):
            if count < 1:
                raise ConfigError(f"{key}: expected at least 1, got {count}")
        if self.max_body < 1024:
            raise ConfigError(f"max_body: expected at least 1KiB, got {self.max_body} bytes")
