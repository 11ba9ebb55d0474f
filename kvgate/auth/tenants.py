"""Tenants and their credentials, from the configuration.

A tenant is known by its access keys alone: nothing else that a caller sends can choose one. Its salt separates its
chunk addresses from every other tenant's, so two tenants share chunk hashes only where an operator gives both the same
`salt`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvgate.auth.limits import NO_RATE, RateConfig, Share, TierShareConfig, check_weight
from kvgate.config import Secret, Size, option
from kvgate.errors import ConfigError, UnknownAccessKey

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_ACCESS_KEY = re.compile(r"[A-Za-z0-9_+=.@-]{3,128}")
_MIN_SECRET_CHARS = 16
_SALT_DOMAIN = b"kvgate tenant salt v1\0"


@dataclass(frozen=True)
class AccessKeyConfig:
    """One credential of a tenant."""

    access_key: str = option(help="the public name of the credential, 3 to 128 of A-Z a-z 0-9 _ + = . @ -")
    secret_key: Secret = option(help="the secret that requests are signed with, at least 16 characters")

    def __post_init__(self) -> None:
        if not _ACCESS_KEY.fullmatch(self.access_key):
            raise ConfigError(f"access_key: expected 3 to 128 of A-Z a-z 0-9 _ + = . @ -, got {self.access_key!r}")
        if len(self.secret_key) < _MIN_SECRET_CHARS:
            raise ConfigError(f"secret_key of {self.access_key}: expected at least {_MIN_SECRET_CHARS} characters")


@dataclass(frozen=True)
class TenantConfig:
    """An owner of credentials, buckets, a quota and an address domain."""

    access_keys: tuple[AccessKeyConfig, ...] = option(help="the credentials that speak for this tenant")
    buckets: tuple[str, ...] = option(default=(), help="buckets that exist from the start")
    quota: Size | None = option(default=None, help="bytes that all its objects may have together; null is unlimited")
    salt: Secret | None = option(
        default=None,
        help="any text; equal salts make equal tokens the same chunk hash. By default the tenant's name is used",
    )
    max_buckets: int = option(default=100, help="how many buckets the tenant may have")
    rate: RateConfig = option(default=NO_RATE, help="how fast the tenant may go")
    weight: float = option(
        default=1.0, help="of a full tier, the tenant gets as much for its weight as every other does for its own"
    )
    tiers: Mapping[str, TierShareConfig] = option(
        default_factory=dict, help="the tenant's part of a tier, by the tier's name, where it is set apart"
    )

    def __post_init__(self) -> None:
        if not self.access_keys:
            raise ConfigError("access_keys: expected at least one")
        check_weight(self.weight)
        if self.max_buckets < len(set(self.buckets)):
            raise ConfigError(f"max_buckets: expected at least the {len(set(self.buckets))} of `buckets`")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One owner of objects. `salt` is 32 bytes; a `quota_nbytes` of None is unlimited."""

    name: str
    buckets: tuple[str, ...] = ()
    quota_nbytes: int | None = None
    salt: bytes = field(default=b"", repr=False)
    max_buckets: int = 100
    rate: RateConfig = NO_RATE
    weight: float = 1.0
    tiers: Mapping[str, TierShareConfig] = field(default_factory=dict)

    def share(self, tier: str) -> Share:
        """Its part of a tier."""
        own = self.tiers.get(tier)
        if own is None:
            return Share(weight=self.weight)
        return Share(own.limit, own.floor, self.weight if own.weight is None else own.weight)


def tenant_salt(text: str) -> bytes:
    """The 32 bytes for a configured salt, or for the name of a tenant that has none: a hash in a domain of its own."""
    return hashlib.sha256(_SALT_DOMAIN + text.encode()).digest()


class Tenants:
    """Every tenant of the gateway, and the credential lookup."""

    def __init__(self, configs: Mapping[str, TenantConfig]) -> None:
        """Raises ConfigError for a bad name and for an access key that is given twice."""
        self._tenants: list[Tenant] = []
        self._credentials: dict[str, tuple[Tenant, str]] = {}
        for name, config in configs.items():
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"tenant {name!r}: expected 1 to 63 of a-z 0-9 . _ -, beginning and ending with a letter or digit"
                )
            salt = tenant_salt(name if config.salt is None else config.salt)
            tenant = Tenant(
                name, config.buckets, config.quota, salt, config.max_buckets, config.rate, config.weight, config.tiers
            )
            self._tenants.append(tenant)
            for key in config.access_keys:
                if key.access_key in self._credentials:
                    raise ConfigError(f"access key {key.access_key!r} is given twice; each belongs to one tenant")
                self._credentials[key.access_key] = (tenant, str(key.secret_key))

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants)

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, name: str) -> Tenant | None:
        """The tenant of this name, if there is one."""
        return next((tenant for tenant in self._tenants if tenant.name == name), None)

    def credentials(self) -> Iterator[tuple[str, Tenant, str]]:
        """Every access key, with its tenant and its secret."""
        return ((access_key, *credential) for access_key, credential in self._credentials.items())

    def credential(self, access_key: str) -> tuple[Tenant, str]:
        """The tenant and the secret of an access key. Raises UnknownAccessKey."""
        try:
            return self._credentials[access_key]
        except KeyError:
            raise UnknownAccessKey("no tenant of this gateway has the access key of this request") from None
