"""Session tokens: what a client may send for a while instead of signing each request.

    kvs1.<end, seconds since the epoch>.<access key, base64url>.<HMAC-SHA256 of all before the last dot, hex>

The HMAC's key is derived from the credential's secret, its access key and its tenant, in a domain of its own. So
nothing is stored; every gateway that has the credential takes the token; and one that has not, or has it with another
secret or for another tenant, does not.

Invariants
1. A token is accepted only while its credential is the one that it was verified with, and before its end.
2. What is remembered of a token is that its HMAC was right, for at most _MAX_VERIFIED tokens.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvgate.auth.tenants import Tenant, Tenants
from kvgate.errors import ExpiredToken, InvalidArgument, InvalidToken, UnknownAccessKey, UnsupportedOperation

DEFAULT_TTL_S = 900.0
MIN_TTL_S = 1.0
"""Less would not be worth asking for, and ends are in whole seconds."""

MAX_TTL_S = 7 * 24 * 3600.0
"""The most that a gateway can be made to allow: as long as what is presigned is good for."""

_DOMAIN = "kvgate session token v1"
_TOKEN = re.compile(r"(kvs1\.([1-9][0-9]{0,11})\.([A-Za-z0-9_-]{4,172}))\.([0-9a-f]{64})", re.ASCII)
_MAX_VERIFIED = 1024
_INVALID = "the token is none that this gateway accepts: get a new one, or sign the request"


@dataclass(frozen=True, slots=True)
class Session:
    """A token, the moment of its end in seconds since the epoch, and how long that is from now."""

    token: str = field(repr=False)
    expires: int
    ttl_s: float


class _Verified(NamedTuple):
    """A token whose HMAC was right for `credential`, the tenant and secret that its access key then had."""

    access_key: str
    expires: int
    credential: tuple[Tenant, str]


class Sessions:
    """Issues tokens, and says whom they speak for."""

    def __init__(self, tenants: Tenants, clock: Callable[[], float], max_ttl_s: float, max_skew_s: float) -> None:
        """
        max_ttl_s:  the longest that a token is good for; 0 issues and accepts none
        max_skew_s: how far the clock of the gateway that issued a token may be ahead
        """
        self._tenants = tenants
        self._clock = clock
        self._max_ttl_s = max_ttl_s
        self._max_skew_s = max_skew_s
        self._verified: dict[str, _Verified] = {}

    def issue(self, access_key: str, ttl_s: float) -> Session:
        """A token for a credential, good for `ttl_s` seconds or for the longest that is allowed, if that is less.

        The caller has proved that it has the credential's secret. Raises InvalidArgument for less than MIN_TTL_S,
        UnsupportedOperation where tokens are off.
        """
        if not self._max_ttl_s:
            raise UnsupportedOperation("session tokens are off here (listen.session_ttl); sign each request")
        if not ttl_s >= MIN_TTL_S:
            raise InvalidArgument(f"ttl_s: expected at least {MIN_TTL_S:g} s, got {ttl_s:g}")
        now = self._clock()
        expires = int(now + min(ttl_s, self._max_ttl_s))
        tenant, secret_key = self._tenants.credential(access_key)
        name = urlsafe_b64encode(access_key.encode()).rstrip(b"=").decode()
        signed = f"kvs1.{expires}.{name}"
        return Session(
            f"{signed}.{_proof(tenant.name, access_key, secret_key, signed)}", expires, max(0.0, expires - now)
        )

    def verify(self, token: str) -> Tenant:
        """The tenant that a token speaks for. Raises InvalidToken, ExpiredToken."""
        verified = self._verified.get(token) or self._verify(token)
        if self._clock() >= verified.expires:
            self._verified.pop(token, None)
            raise ExpiredToken("the token's time is over: get a new one, or sign the request")
        if self._credential(verified.access_key) is not verified.credential:
            self._verified.pop(token, None)
            raise InvalidToken(_INVALID)
        return verified.credential[0]

    def _verify(self, token: str) -> _Verified:
        match = _TOKEN.fullmatch(token)
        if match is None or not self._max_ttl_s:
            raise InvalidToken(_INVALID)
        signed, end, name, proof = match.groups()
        access_key, expires = _access_key(name), int(end)
        credential = tenant, secret_key = self._credential(access_key)
        if not hmac.compare_digest(_proof(tenant.name, access_key, secret_key, signed), proof):
            raise InvalidToken(_INVALID)
        now = self._clock()
        if expires > now + self._max_ttl_s + self._max_skew_s:
            raise InvalidToken("the token is good for longer than this gateway allows (listen.session_ttl)")
        verified = _Verified(access_key, expires, credential)
        if now < expires:
            if len(self._verified) >= _MAX_VERIFIED:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = verified
        return verified

    def _credential(self, access_key: str) -> tuple[Tenant, str]:
        try:
            return self._tenants.credential(access_key)
        except UnknownAccessKey:
            raise InvalidToken(_INVALID) from None


def _access_key(name: str) -> str:
    try:
        return urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode("ascii")
    except ValueError:
        raise InvalidToken(_INVALID) from None


def token_key(tenant: str, access_key: str, secret_key: str) -> bytes:
    """The 32 bytes that a credential's tokens are keyed with. A NUL ends each name: neither has one."""
    return hmac.digest(secret_key.encode(), f"{_DOMAIN}\0{tenant}\0{access_key}\0".encode(), "sha256")


def _proof(tenant: str, access_key: str, secret_key: str, signed: str) -> str:
    """The HMAC of a token in hex."""
    return hmac.digest(token_key(tenant, access_key, secret_key), signed.encode(), "sha256").hex()
