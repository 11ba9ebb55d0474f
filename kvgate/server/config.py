"""The configuration of a gateway: one dataclass per component, composed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvgate import config, plugins
from kvgate.auth.cluster import ClusterConfig
from kvgate.auth.session import MAX_TTL_S, MIN_TTL_S
from kvgate.auth.tenants import TenantConfig
from kvgate.chunk.key import check_bucket, split_owner
from kvgate.config import KiB, MiB, Seconds, Size, option
from kvgate.errors import ConfigError, InvalidBucketName
from kvgate.kvapi.config import KVApiConfig
from kvgate.store.config import StoreConfig
from kvgate.store.shares import check_floors
from kvgate.tiers.peer import PeerTier
from kvgate.tiers.rules import TierRules

MEMORY_TIER = "host"

_TIER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MODE = re.compile(r"0?[0-7]{3}")
_MAX_SOCKET_PATH_NBYTES = 107
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class ListenConfig:
    """Where the gateway listens, and how long it waits for its peers."""

    host: str = option(default="127.0.0.1", help="address to listen on; 0.0.0.0 is every IPv4 address")
    port: int = option(default=9000, help="port of S3 and kvapi; 0 takes a free one")
    unix_socket: str | None = option(
        default=None, help="path of a unix socket that also takes S3 and kvapi, for clients on the same host"
    )
    admin_port: int = option(default=9001, help="port of /metrics, /healthz and /readyz; 0 takes a free one")
    max_header: Size = option(default=Size(16 * KiB), help="bytes of the longest request line or header that is read")
    idle_timeout: Seconds = option(default=Seconds(75.0), help="how long a connection may be idle between requests")
    header_timeout: Seconds = option(
        default=Seconds(10.0), help="how long a peer may take to send the headers of a request once it has begun"
    )
    body_timeout: Seconds = option(
        default=Seconds(30.0), help="how long a peer may pause while it sends or takes a body"
    )
    min_rate: Size = option(
        default=Size(16 * KiB),
        help="bytes a second that a body must move at on the average, after body_timeout; 0 lets it be slower",
    )
    buffered_bodies: Size = option(
        default=Size(256 * MiB),
        help="bytes of calls and XML documents that may be on their way in at once; one more is answered 503 SlowDown",
    )
    drain_timeout: Seconds = option(
        default=Seconds(30.0), help="how long requests in flight may go on after SIGTERM before they are cut"
    )
    max_skew: Seconds = option(default=Seconds(900.0), help="how far a request's time may be from the gateway's")
    session_ttl: Seconds = option(
        default=Seconds(3600.0),
        help="the longest that a session token may be used instead of signatures, at most 7d; 0 turns tokens off",
    )
    sigv2: bool = option(
        default=True,
        help="accept URLs and forms that are presigned by Signature Version 2, boto3's default in us-east-1",
    )
    max_connections: int = option(
        default=16_384, help="connections at the same time; one more is answered 503 and closed"
    )
    movers: int = option(
        default=2,
        help="threads that copy large bodies between memory and sockets, and as many that answer GETs of hot objects; "
        "one a core that is free for it",
    )
    region: str = option(default="us-east-1", help="the S3 region that the gateway names; any region may sign")
    domains: tuple[str, ...] = option(
        default=(),
        help="host names of the gateway; with s3.example.com here, bucket.s3.example.com addresses a bucket",
    )
    exact_ranges: bool = option(
        default=False,
        help="answer 416 to a Range that ends behind the end of the object, for clients that take less for success",
    )
    tls_certificate: str | None = option(
        default=None, help="PEM file with the certificate and its chain; with it, every listener but admin is HTTPS"
    )
    tls_key: str | None = option(default=None, help="PEM file with the private key of tls_certificate")

    shm_socket: str | None = option(
        default=None, help="path of a unix socket by which engines on this host map their tenant's memory"
    )
    shm_mode: str = option(
        default="0600",
        help="permissions of shm_socket, in octal digits; 0660 lets a group of users in whose engines attach",
    )
    shm_lease: Seconds = option(
        default=Seconds(30.0),
        help="how long an engine may take to copy what it was granted, or to fill what it reserved",
    )

    def __post_init__(self) -> None:
        for key in ("port", "admin_port"):
            check_port(key, getattr(self, key))
        for key, most in (("max_connections", 1_000_000), ("movers", 64)):
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected 1 to {most}, got {getattr(self, key)}")
        if self.port == self.admin_port != 0:
            raise ConfigError(f"admin_port: expected another port than `port`, got {self.admin_port} for both")
        if self.session_ttl and not MIN_TTL_S <= self.session_ttl <= MAX_TTL_S:
            raise ConfigError(f"session_ttl: expected 0, or 1s to 7d, got {self.session_ttl:g} s")
        for domain in self.domains:
            if not _DOMAIN.fullmatch(domain):
                raise ConfigError(f"domains: expected a host name such as s3.example.com, got {domain!r}")
        if not _MODE.fullmatch(self.shm_mode):
            raise ConfigError(f"shm_mode: expected three octal digits such as 0660, in quotes, got {self.shm_mode!r}")
        if len((self.shm_socket or "").encode()) > _MAX_SOCKET_PATH_NBYTES:
            raise ConfigError(f"shm_socket: the path of a socket has at most {_MAX_SOCKET_PATH_NBYTES} bytes")
        if self.shm_lease <= 0:
            raise ConfigError("shm_lease: expected more than 0 seconds")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate: expected together with tls_key, or neither")


@dataclass(frozen=True)
class ListenerConfig:
    """A port besides `listen.port`, for clients that can name a key only: all its requests are for one bucket."""

    port: int = option(help="port of the listener; 0 takes a free one")
    bucket: str = option(
        help="the bucket, of whichever tenant signs the request; <tenant>_<bucket> is that tenant's for all"
    )
    exact_ranges: bool = option(default=False, help="as listen.exact_ranges, for this listener")

    def __post_init__(self) -> None:
        check_port("port", self.port)
        try:
            check_bucket(split_owner(self.bucket)[1])
        except InvalidBucketName as error:
            raise ConfigError(f"bucket: {error}") from None


def check_port(key: str, port: int) -> None:
    """Raises ConfigError naming the key."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"{key}: expected 0 to 65535, got {port}")


@dataclass(frozen=True)
class GatewayConfig:
    """Everything that `kvgate serve --config` reads."""

    tenants: Mapping[str, TenantConfig] = option(help="the tenants by name")
    unsigned_tenant: str | None = option(
        default=None,
        help="the tenant whose bucket an unsigned request means by a plain name; the only tenant, where there is one",
    )
    listen: ListenConfig = option(default=ListenConfig(), help="addresses and timeouts")
    listeners: tuple[ListenerConfig, ...] = option(default=(), help="further ports, each for one bucket")
    tiers: Mapping[str, Any] = option(
        default_factory=lambda: {MEMORY_TIER: {}},
        help="options of each tier by its name, the fastest first; `host` is always the first; with the key "
        "`kind` a tier can have any name, so that there can be two of a kind",
    )
    store: StoreConfig = option(default=StoreConfig(), help="acknowledgement, eviction and limits")
    kvapi: KVApiConfig = option(default=KVApiConfig(), help="limits of the calls under /_kv/v1/")
    cluster: ClusterConfig | None = option(
        default=None,
        help="what this gateway and its peers prove to each other; without it, none of them may ask this one",
    )

    def __post_init__(self) -> None:
        if not self.tenants:
            raise ConfigError("tenants: expected at least one")
        if self.unsigned_tenant is not None and self.unsigned_tenant not in self.tenants:
            raise ConfigError(f"unsigned_tenant: expected one of `tenants`, got {self.unsigned_tenant!r}")
        ports = [self.listen.port, self.listen.admin_port, *(listener.port for listener in self.listeners)]
        if twice := sorted({port for port in ports if port and ports.count(port) > 1}):
            raise ConfigError(f"listeners: expected a port of its own for each, got {twice[0]} twice")
        for name, tenant in self.tenants.items():
            for bucket in tenant.buckets:
                try:
                    check_bucket(bucket)
                except InvalidBucketName as error:
                    raise ConfigError(f"tenants.{name}.buckets: {error}") from None
        if self.cluster is not None and any(
            key.access_key == self.cluster.access_key for tenant in self.tenants.values() for key in tenant.access_keys
        ):
            raise ConfigError("cluster.access_key: expected one that no tenant has")
        for each in self.tier_options():
            if issubclass(each.kind, PeerTier) and self.cluster is None:
                raise ConfigError(f"tiers.{each.name}: gateways that read from each other need `cluster`")
        self._check_shares()
        if len(self.tier_options()) == 1 and self.store.ack == "disk":
            raise ConfigError("store.ack: `disk` needs a tier below memory; configure `tiers.disk`, or use `memory`")

    def _check_shares(self) -> None:
        """Raises ConfigError for a tier that there is not, and for floors that do not fit into one."""
        tiers = self.tier_options()
        names = [tier.name for tier in tiers]
        for name, tenant in self.tenants.items():
            for tier in tenant.tiers:
                if tier not in names:
                    raise ConfigError(f"tenants.{name}.tiers.{tier}: expected one of {', '.join(names)}")
        for each in tiers:
            floors = {
                name: tenant.tiers[each.name].floor
                for name, tenant in self.tenants.items()
                if each.name in tenant.tiers
            }
            check_floors(each.name, getattr(each.options, "capacity", None), floors)

    def tier_options(self) -> list[TierOptions]:
        """Each tier as it is configured, memory first. Raises ConfigError."""
        names = [MEMORY_TIER, *(name for name in self.tiers if name != MEMORY_TIER)]
        return [_tier_options(name, self.tiers.get(name)) for name in names]


class TierOptions(NamedTuple):
    """One tier: its name, the class of its kind, that class's options, and its rules."""

    name: str
    kind: Any
    options: Any
    rules: TierRules

    def make(self) -> Any:
        """The tier, not started."""
        tier = self.kind(self.options)
        tier.name = self.name
        return tier


def _tier_options(name: str, values: object) -> TierOptions:
    where = f"tiers.{name}"
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of the tier's options")
    if not _TIER_NAME.fullmatch(name):
        raise ConfigError(f"{where}: a tier's name is lower-case letters, digits and hyphens, at most 32")
    kind = values.get("kind", name)
    if not isinstance(kind, str):
        raise ConfigError(f"{where}.kind: expected the name of a kind of tier, such as disk")
    if (name == MEMORY_TIER) != (kind == MEMORY_TIER):
        raise ConfigError(f"{where}.kind: there is one tier of the kind {MEMORY_TIER}, under that name")
    tier = plugins.load("kvgate.tiers", kind)
    own = {field.name for field in dataclasses.fields(TierRules)}
    if not own.isdisjoint(field.name for field in dataclasses.fields(tier.Config)):
        raise ConfigError(f"{where}: the plug-in {kind!r} has an option that every tier has")
    rules = config.build(TierRules, {key: value for key, value in values.items() if key in own}, where)
    rest = {key: value for key, value in values.items() if key not in own and key != "kind"}
    return TierOptions(name, tier, config.build(tier.Config, rest, where), rules)
