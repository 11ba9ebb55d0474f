"""The options of the S3 tier, and what it asks with."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvgate.config import MiB, Seconds, Secret, Size, option
from kvgate.errors import ConfigError
from kvgate.http.endpoint import Endpoint, parse_endpoint
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.s3_calls import S3Calls
from kvgate.tiers.s3_credentials import FixedIdentity, FoundIdentity
from kvgate.tiers.s3_keys import folder_key

_MIN_PART_NBYTES = 5 * MiB
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_@-][A-Za-z0-9._@-]*(?:/[A-Za-z0-9_@-][A-Za-z0-9._@-]*)*)?")


@dataclass(frozen=True)
class S3Config:
    """Which bucket of which store, and how it is used."""

    bucket: str = option(help="the bucket, which must be there; gateways with the same bucket and prefix share it")
    endpoint: str | None = option(default=None, help="http(s)://host[:port] of the store; by default AWS in `region`")
    prefix: str = option(default="kvgate", help="what the keys of all objects begin with, without the slash behind it")
    region: str | None = option(default=None, help="the region; by default AWS_REGION, AWS_DEFAULT_REGION or us-east-1")
    addressing: Literal["auto", "path", "virtual"] = option(
        default="auto",
        help="whether the bucket stands in the `path` or in the host name (`virtual`); `auto`: virtual on AWS only",
    )
    access_key: str | None = option(
        default=None,
        help="public half of the key pair; without it, what AWS's tools find on this machine is used",
    )
    secret_key: Secret | None = option(default=None, help="secret half of the key pair")
    session_token: Secret | None = option(default=None, help="session token, where the key pair is a temporary one")
    profile: str | None = option(default=None, help="profile of ~/.aws to use instead of a key pair")
    ca: Path | None = option(
        default=None, help="file of CA certificates in PEM to trust for https, instead of the system's"
    )
    capacity: Size | None = option(
        default=None, help="bytes that this gateway may put there while it runs; no limit by default"
    )
    part: Size = option(
        default=Size(16 * MiB), help="bytes of an object that one request moves: larger ones go in parts, side by side"
    )
    parallel: int = option(default=4, help="parts of one object that are moved at the same time")
    transfers: int = option(default=16, help="requests that move bodies at the same time, each with a connection")
    lookups: int = option(default=32, help="requests that ask what is there at the same time, each with a connection")
    footers: int = option(
        default=4096, help="objects whose block digests are kept in memory, so that reading takes one request"
    )
    connect_timeout: Seconds = option(default=Seconds(2.0), help="the longest that a connection may take to be made")
    request_timeout: Seconds = option(
        default=Seconds(30.0), help="the longest that one request may take, which moves at most `part` in one direction"
    )
    spool: Path | None = option(
        default=None,
        help="folder for bodies that do not lie in memory as a whole, until they are sent; by default the system's",
    )

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError("bucket: expected the name of a bucket: 3 to 255 letters, digits and `._-`")
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > 256:
            raise ConfigError("prefix: expected parts of letters, digits and `._@-` with a slash between, at most 256")
        if self.endpoint is not None:
            parse_endpoint(self.endpoint, "endpoint")
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError("access_key: a key pair needs both access_key and secret_key")
        if self.session_token is not None and self.access_key is None:
            raise ConfigError("session_token: it goes with access_key and secret_key")
        if self.profile is not None and self.access_key is not None:
            raise ConfigError("profile: it stands instead of access_key and secret_key")
        if self.part < _MIN_PART_NBYTES or self.part % BLOCK_NBYTES:
            raise ConfigError(f"part: expected whole MiB, at least 5MiB, got {self.part} bytes")
        for key, most in (("parallel", 64), ("transfers", 256), ("lookups", 256), ("footers", 1_000_000)):
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected 1 to {most}, got {getattr(self, key)}")
        for key in ("connect_timeout", "request_timeout"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key}: expected more than 0, got {getattr(self, key):g}")


def connect(config: S3Config) -> tuple[str, S3Calls]:
    """What the tier asks with, and in words where that is."""
    region = config.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = parse_endpoint(config.endpoint or f"https://s3.{region}.amazonaws.com", "endpoint")
    virtual = config.addressing == "virtual" or (
        config.addressing == "auto" and config.endpoint is None and "." not in config.bucket
    )
    tls = None
    if endpoint.tls:
        try:
            tls = ssl.create_default_context(cafile=config.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca: {config.ca} cannot be read as certificates in PEM") from error
    if virtual:
        endpoint = Endpoint(endpoint.scheme, f"{config.bucket}.{endpoint.host}", endpoint.port)
    if config.access_key is not None and config.secret_key is not None:
        identities: FixedIdentity | FoundIdentity = FixedIdentity(
            config.access_key, config.secret_key, config.session_token or ""
        )
    else:
        identities = FoundIdentity(config.profile)
    calls = S3Calls(
        endpoint,
        "" if virtual else f"/{config.bucket}",
        region,
        identities,
        tls,
        connections=config.transfers + config.lookups,
        connect_s=config.connect_timeout,
        request_s=config.request_timeout,
    )
    return f"s3://{config.bucket}/{folder_key(config.prefix)} at {endpoint}", calls
