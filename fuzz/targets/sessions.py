"""Session tokens: only what was issued is accepted, whatever is made of it.

An input issues a token for one of a few credentials, changes it here and there, or does not, and turns the clock. What
is accepted must be a token that was issued, for the tenant that it was issued to, before its end.
"""

from __future__ import annotations

import base64

from fuzz.draw import Draw, spliced
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.messages import Headers, Request

_NOW, _TTL_S = 1_770_000_000.0, 3600.0
_OWNERS = {"KEY-A": "alpha", "KEY-B": "alpha", "BETAKEY": "beta"}
_SECRET = "one-secret-for-all-0123"
_WORDS = (
    *("kvs1.", "kvs2.", ".", "0", "1770000060", "9" * 12, "-", "=", "_", "+1", " ", "\n", "\0", "\u0660", "f" * 64),
    *(base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode() for key in _OWNERS),
)
_time = _NOW
_AUTHENTICATOR = Authenticator(
    Tenants(
        {
            name: TenantConfig(
                tuple(AccessKeyConfig(key, Secret(_SECRET)) for key, owner in _OWNERS.items() if owner == name)
            )
            for name in ("alpha", "beta")
        }
    ),
    lambda: _time,
    session_ttl_s=_TTL_S,
)


def check(data: bytes) -> None:
    global _time  # noqa: PLW0603  the gateway's clock
    draw = Draw(data)
    _time = _NOW
    key = draw.pick(tuple(_OWNERS))
    issued = _AUTHENTICATOR.sessions.issue(key, draw.pick((60, 1, 5000)))
    token = issued.token
    if draw.one_in(2):
        _accepted(token)  # it is remembered from now on
    for _ in range(draw.below(3)):
        token = spliced(draw, token, _WORDS)
    if draw.one_in(8):  # the proof of another token
        token = token.rpartition(".")[0] + "." + _AUTHENTICATOR.sessions.issue("BETAKEY", 61).token.rpartition(".")[2]
    _time = _NOW + draw.pick((0, 0, 0.5, 1, 59, 60, 4000))
    tenant = _accepted(token)
    good = token == issued.token and _time < issued.expires
    must(tenant is not None or not good, "a token is refused as it was issued")
    must(tenant is None or (good and tenant == _OWNERS[key]), "a token is accepted that was not issued")


def check_arbitrary(data: bytes) -> None:
    """Text that nobody has issued."""
    must(_accepted(data.decode("utf-8", "surrogateescape")) is None, "a token is accepted that was not issued")


def _accepted(token: str) -> str | None:
    """The tenant that a request with a token is taken for."""
    headers = Headers([("host", "h"), ("authorization", f"Bearer {token}")])
    with refusals():
        return _AUTHENTICATOR.authenticate(Request("GET", "/b/k", "", headers)).tenant.name
    return None


TARGETS = (
    Target("sessions", 40_000, check, words=tuple(word.encode() for word in _WORDS)),
    Target("session-text", 20_000, check_arbitrary, words=tuple(word.encode() for word in _WORDS)),
)
