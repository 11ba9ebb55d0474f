"""Session tokens: accepted as issued, for the credential that they were issued to, until their end; and no other."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import pytest

from kvgate.auth import session, sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import ChunkedPayload, SignedPayload, UnsignedPayload
from kvgate.auth.session import Sessions
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import (
    ExpiredToken,
    InvalidArgument,
    InvalidRequest,
    InvalidToken,
    KVGateError,
    MalformedAuthorization,
    UnknownAccessKey,
    UnsupportedOperation,
)
from kvgate.messages import Headers, Request
from tests.auth.conftest import ACCESS_KEY, HOST, SECRET_KEY, Clock

TTL_S = 3600.0
SKEW_S = 900.0


def tenants_of(**keys: dict[str, str]) -> Tenants:
    """Tenants by name, each with its access keys and their secrets."""
    return Tenants(
        {
            name: TenantConfig(tuple(AccessKeyConfig(key, Secret(secret)) for key, secret in pairs.items()))
            for name, pairs in keys.items()
        }
    )


ACME = tenants_of(acme={ACCESS_KEY: SECRET_KEY}, other={"other-key": "other-secret-0123"})


@pytest.fixture
def clock() -> Clock:
    return Clock(1_770_000_000.25)


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(ACME, clock, TTL_S, SKEW_S)


def bearer(token: str, *, query: str = "", scheme: str = "Bearer", **headers: str) -> Request:
    sent = [("host", HOST), ("authorization", f"{scheme} {token}")]
    return Request(
        "GET", "/b/k", query, Headers([*sent, *((name.replace("_", "-"), headers[name]) for name in headers)])
    )


def authenticator_of(clock: Clock, tenants: Tenants = ACME, ttl_s: float = TTL_S) -> Authenticator:
    return Authenticator(tenants, clock, SKEW_S, session_ttl_s=ttl_s)


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_a_token_speaks_for_the_tenant_it_was_issued_to(sessions: Sessions) -> None:
    assert sessions.verify(sessions.issue(ACCESS_KEY, 60).token).name == "acme"
    assert sessions.verify(sessions.issue("other-key", 60).token).name == "other"


def test_a_token_is_good_on_another_gateway_with_the_same_credentials(sessions: Sessions, clock: Clock) -> None:
    elsewhere = Sessions(tenants_of(acme={ACCESS_KEY: SECRET_KEY}), clock, TTL_S, SKEW_S)
    assert elsewhere.verify(sessions.issue(ACCESS_KEY, 60).token).name == "acme"


def test_a_token_is_the_hmac_of_its_text_under_a_key_of_its_own_domain(sessions: Sessions) -> None:
    issued = sessions.issue(ACCESS_KEY, 60)
    signed, _, proof = issued.token.rpartition(".")
    name = base64.urlsafe_b64encode(ACCESS_KEY.encode()).rstrip(b"=").decode()
    assert signed == f"kvs1.{1_770_000_060}.{name}"
    domain = f"kvgate session token v1\0acme\0{ACCESS_KEY}\0".encode()
    key = hmac.new(SECRET_KEY.encode(), domain, hashlib.sha256).digest()
    assert proof == hmac.new(key, signed.encode(), hashlib.sha256).hexdigest()


def test_a_session_is_as_long_as_asked_for_and_at_most_as_allowed(sessions: Sessions) -> None:
    assert sessions.issue(ACCESS_KEY, 60).expires == 1_770_000_060
    assert sessions.issue(ACCESS_KEY, 60).ttl_s == 59.75
    assert sessions.issue(ACCESS_KEY, 1e9).expires == 1_770_003_600
    for ttl_s in (0.5, 0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument):
            sessions.issue(ACCESS_KEY, ttl_s)


def test_a_token_is_issued_for_a_known_credential_only(sessions: Sessions) -> None:
    with pytest.raises(UnknownAccessKey):
        sessions.issue("nobody", 60)


def test_no_token_is_shown(sessions: Sessions) -> None:
    issued = sessions.issue(ACCESS_KEY, 60)
    assert issued.token not in repr(issued)
    with pytest.raises(KVGateError) as refusal:
        Sessions(tenants_of(), lambda: 0.0, TTL_S, SKEW_S).verify(issued.token)
    assert issued.token.rpartition(".")[2] not in str(refusal.value)


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["first", "once verified"])
def test_a_token_with_any_byte_changed_is_refused(sessions: Sessions, known: bool) -> None:
    token = sessions.issue(ACCESS_KEY, 60).token
    if known:
        sessions.verify(token)
    changed = {
        token[:at] + other + token[at + 1 :]
        for at in range(len(token))
        for other in "0Aaz.-_=é\n"
        if other != token[at]
    }
    changed |= {token[:at] + token[at + 1 :] for at in range(len(token))}
    changed |= {token[:at] + "0" + token[at:] for at in range(len(token) + 1)}
    changed |= {token + end for end in (" ", "\n", "=", ".", "\0")} | {
        token.upper(),
        "",
        "kvs1",
        "kvs1...",
        " " + token,
    }
    for text in changed:
        with pytest.raises(InvalidToken):
            sessions.verify(text)
    assert sessions.verify(token).name == "acme"


@pytest.mark.parametrize("known", [False, True], ids=["first", "once verified"])
def test_a_token_ends(sessions: Sessions, clock: Clock, known: bool) -> None:
    token = sessions.issue(ACCESS_KEY, 60).token
    if known:
        sessions.verify(token)
    clock.now = 1_770_000_059.9
    assert sessions.verify(token).name == "acme"
    clock.now = 1_770_000_060.0
    for _ in range(2):
        with pytest.raises(ExpiredToken):
            sessions.verify(token)


def test_a_forged_token_is_not_told_that_it_has_expired(sessions: Sessions, clock: Clock) -> None:
    token = sessions.issue(ACCESS_KEY, 60).token
    clock.now += 120
    with pytest.raises(InvalidToken):
        sessions.verify(token[:-1] + ("0" if token[-1] != "0" else "1"))


@pytest.mark.parametrize(
    "tenants",
    [
        tenants_of(acme={ACCESS_KEY: "another-secret-0123"}),
        tenants_of(acme={"another-key": SECRET_KEY}),
        tenants_of(other={ACCESS_KEY: SECRET_KEY}),
        tenants_of(),
    ],
    ids=["secret rotated", "key renamed", "moved to another tenant", "removed"],
)
def test_a_token_ends_with_its_credential(clock: Clock, tenants: Tenants) -> None:
    token = Sessions(ACME, clock, TTL_S, SKEW_S).issue(ACCESS_KEY, 60).token
    with pytest.raises(InvalidToken):
        Sessions(tenants, clock, TTL_S, SKEW_S).verify(token)


def test_what_is_remembered_of_a_token_ends_with_its_credential(sessions: Sessions, clock: Clock) -> None:
    token = sessions.issue(ACCESS_KEY, 60).token
    assert sessions.verify(token).name == "acme"
    for tenants in (tenants_of(acme={ACCESS_KEY: "another-secret-0123"}), tenants_of()):
        sessions._tenants = tenants  # as if the configuration were read anew
        with pytest.raises(InvalidToken):
            sessions.verify(token)


def test_one_credentials_proof_is_not_anothers(clock: Clock) -> None:
    tenants = tenants_of(acme={"key-a": SECRET_KEY, "key-b": SECRET_KEY})
    sessions = Sessions(tenants, clock, TTL_S, SKEW_S)
    one, two = (sessions.issue(key, 60).token.split(".") for key in ("key-a", "key-b"))
    assert one[3] != two[3]
    with pytest.raises(InvalidToken):
        sessions.verify(".".join([*two[:3], one[3]]))


def test_where_tokens_are_off_none_is_issued_or_accepted(sessions: Sessions, clock: Clock) -> None:
    off = Sessions(ACME, clock, 0, SKEW_S)
    with pytest.raises(UnsupportedOperation):
        off.issue(ACCESS_KEY, 60)
    with pytest.raises(InvalidToken):
        off.verify(sessions.issue(ACCESS_KEY, 60).token)


def test_a_token_for_longer_than_is_allowed_here_is_refused(sessions: Sessions, clock: Clock) -> None:
    long, short = sessions.issue(ACCESS_KEY, 3600).token, sessions.issue(ACCESS_KEY, 960).token
    strict = Sessions(ACME, clock, 60, SKEW_S)
    with pytest.raises(InvalidToken):
        strict.verify(long)
    assert strict.verify(short).name == "acme"  # within what a clock that is ahead may make of a minute


def test_only_so_many_tokens_are_remembered(sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_VERIFIED", 3)
    tokens = [sessions.issue(ACCESS_KEY, 60 + second).token for second in range(8)]
    for token in (*tokens, *tokens):
        assert sessions.verify(token).name == "acme"
        assert len(sessions._verified) <= 3
    with pytest.raises(InvalidToken):
        sessions.verify("kvs1.nothing")
    clock.now += 1000
    for token in tokens:
        with pytest.raises(ExpiredToken):
            sessions.verify(token)
    assert not sessions._verified


# --- in requests ------------------------------------------------------------------------------------------------------


def test_a_request_with_a_token_is_its_tenants_and_signed_by_nobody(clock: Clock) -> None:
    authenticator = authenticator_of(clock)
    token = authenticator.sessions.issue(ACCESS_KEY, 60).token
    for scheme in ("Bearer", "bearer", "BEARER"):
        identity = authenticator.authenticate(bearer(token, scheme=scheme))
        assert (identity.tenant.name, identity.payload, identity.signed_by) == ("acme", UnsignedPayload(), "")


def test_only_a_signed_header_says_who_signed(botocore_signed: Any) -> None:
    authenticator = Authenticator(ACME, time.time, SKEW_S, session_ttl_s=TTL_S)
    assert authenticator.authenticate(botocore_signed("GET")).signed_by == ACCESS_KEY
    assert authenticator.authenticate(botocore_signed("GET", expires=60)).signed_by == ""


def test_a_body_is_protected_as_far_as_it_says(clock: Clock) -> None:
    authenticator = authenticator_of(clock)
    token = authenticator.sessions.issue(ACCESS_KEY, 60).token

    def payload(text: str) -> object:
        return authenticator.authenticate(bearer(token, x_amz_content_sha256=text)).payload

    assert payload(sigv4.UNSIGNED_PAYLOAD) == UnsignedPayload()
    assert payload(sigv4.EMPTY_SHA256) == SignedPayload(sigv4.EMPTY_SHA256)
    assert payload("STREAMING-UNSIGNED-PAYLOAD-TRAILER") == ChunkedPayload(trailer=True, signing=None)
    for text in ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "x"):
        with pytest.raises(InvalidArgument):
            payload(text)


@pytest.mark.parametrize(
    "query",
    [
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}",
        f"X-Amz-Credential={ACCESS_KEY}",
        f"AWSAccessKeyId={ACCESS_KEY}&Signature=x&Expires=1",
    ],
)
def test_a_token_beside_a_presigned_query_is_refused(clock: Clock, query: str) -> None:
    authenticator = authenticator_of(clock)
    with pytest.raises(InvalidRequest):
        authenticator.authenticate(bearer(authenticator.sessions.issue(ACCESS_KEY, 60).token, query=query))


def test_a_token_beside_another_proof_is_refused(clock: Clock) -> None:
    authenticator = authenticator_of(clock)
    token = authenticator.sessions.issue(ACCESS_KEY, 60).token
    headers = {"host": HOST}
    signed = sigv4.sign(
        sigv4.Credential("other-key", "other-secret-0123"), "GET", "/b/k", "", headers, region="r", now=clock.now
    )
    both = [*headers.items(), ("authorization", f"Bearer {token}"), *signed.items()]
    for items in (both, [*both[2:], *both[:2]]):
        with pytest.raises(InvalidRequest):
            authenticator.authenticate(Request("GET", "/b/k", "", Headers(items)))
    with pytest.raises(MalformedAuthorization):
        authenticator.authenticate(bearer(token, x_amz_security_token="t"))


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Bearer  x", "Bearer\tx", "Basic eDp5", "Token x"])
def test_what_is_no_token_is_refused(clock: Clock, authorization: str) -> None:
    request = Request("GET", "/b/k", "", Headers([("host", HOST), ("authorization", authorization)]))
    with pytest.raises((InvalidToken, MalformedAuthorization)):
        authenticator_of(clock).authenticate(request)
