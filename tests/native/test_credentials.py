"""Whom a request speaks for, proved in C: what clients send is, and nothing that Python would refuse."""

from __future__ import annotations

import base64
import calendar
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.draw import Draw, spliced
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import UNSIGNED
from kvgate.auth.session import token_key
from kvgate.auth.sigv4 import EMPTY_SHA256, UNSIGNED_PAYLOAD, Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import KVGateError
from kvgate.messages import Headers, Request

native = pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")

from kvgate.auth.native_credentials import native_credentials  # noqa: E402  what it imports must be there

NOW, SKEW_S, TTL_S = 1_770_000_000, 900, 3600
ALPHA = Credential("ALPHAKEY0000", "alpha-secret-0123456789abcdef")
BETA = Credential("b.e+t=a@_-KE", "beta-secret-\u00e9-0123456789abcdef")
CREDENTIALS = {"alpha": ALPHA, "beta": BETA}
NAMES = tuple(CREDENTIALS)
PATH = "/bucket/kv/space/0123abc"


def tenants(credentials: dict[str, Credential] = CREDENTIALS) -> Tenants:
    return Tenants(
        {
            name: TenantConfig((AccessKeyConfig(credential.access_key, Secret(credential.secret_key)),))
            for name, credential in credentials.items()
        }
    )


TENANTS = tenants()
C = native_credentials(TENANTS, max_skew_s=SKEW_S, session_ttl_s=TTL_S)


def authenticator(now: float = NOW) -> Authenticator:
    return Authenticator(TENANTS, lambda: now, SKEW_S, session_ttl_s=TTL_S)


def signed(
    credential: Credential = ALPHA, method: str = "GET", path: str = PATH, payload: str = UNSIGNED_PAYLOAD, **more: str
) -> dict[str, str]:
    """The headers of a request that kvgate's own client signs; `more` are others, with _ for -."""
    headers = {"host": "gateway:9000", **{name.replace("_", "-"): value for name, value in more.items()}}
    return headers | sign(credential, method, path, "", headers, region="us-east-1", now=NOW, payload_hash=payload)


def with_token(credential: Credential = ALPHA, ttl_s: float = 60) -> dict[str, str]:
    session = authenticator().sessions.issue(credential.access_key, ttl_s)
    return {"host": "gateway:9000", "authorization": f"Bearer {session.token}"}


def in_c(headers: dict[str, str], method: str = "GET", path: str = PATH, now_s: int = NOW, c: Any = C) -> str | None:
    """The tenant that C proves, if it does."""
    number = c.authenticate(method, path.encode(), {name: value.encode() for name, value in headers.items()}, now_s)
    return None if number < 0 else NAMES[number]


def in_python(headers: dict[str, str], method: str = "GET", path: str = PATH, now: float = NOW) -> str | None:
    try:
        return authenticator(now).authenticate(Request(method, path, "", Headers(headers.items()))).tenant.name
    except KVGateError:
        return None


# --- what clients send ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("payload", [UNSIGNED_PAYLOAD, EMPTY_SHA256])
def test_what_our_client_signs_is_proved(name: str, method: str, payload: str) -> None:
    headers = signed(
        CREDENTIALS[name], method, payload=payload, range="bytes=0-1048575", accept="*/*", user_agent="x y"
    )
    assert in_c(headers, method) == in_python(headers, method) == name
    other = "GET" if method == "HEAD" else "HEAD"
    assert in_c(headers, other) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "more", [{}, {"content_type": "text/plain; a=b"}, {"x_amz_checksum_crc64nvme": "AAAAAAAAAAA="}]
)
def test_an_upload_that_our_client_signs_is_proved(name: str, more: dict[str, str]) -> None:
    headers = signed(CREDENTIALS[name], "PUT", content_length="1048576", accept="*/*", **more)
    assert in_c(headers, "PUT") == in_python(headers, "PUT") == name
    assert in_c(headers, "GET") is None
    for header in more:
        assert in_c({**headers, header.replace("_", "-"): "other"}, "PUT") is None


@pytest.mark.parametrize(
    "payload", [EMPTY_SHA256, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"]
)
def test_an_upload_whose_body_is_signed_is_left_to_python(payload: str) -> None:
    """It is proved when the body has come, and not before."""
    assert in_c(signed(method="PUT", payload=payload, content_length="4"), "PUT") is None
    token = {**with_token(), "content-length": "4"}
    assert in_c(token, "PUT") == in_c({**token, "x-amz-content-sha256": UNSIGNED_PAYLOAD}, "PUT") == "alpha"
    assert in_c({**token, "x-amz-content-sha256": payload}, "PUT") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_proved(name: str) -> None:
    headers = with_token(CREDENTIALS[name])
    assert in_c(headers) == in_python(headers) == name
    assert in_c(headers, "HEAD", "/other/path") == name
    assert in_c({**headers, "x-amz-content-sha256": EMPTY_SHA256}) == name
    assert in_c({**headers, "authorization": headers["authorization"].replace("Bearer", "bEARER")}) == name


def boto3_sends(call: Callable[[Any], object]) -> tuple[str, str, dict[str, str]]:
    """The method, path and headers that boto3 would send, without sending them."""
    sent: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(
            request.url, 200, {"content-length": "0"}, type("Raw", (), {"stream": lambda *_: iter(())})()
        )

    client = boto3.client(
        "s3",
        endpoint_url="http://gateway:9000",
        region_name="us-east-1",
        aws_access_key_id=ALPHA.access_key,
        aws_secret_access_key=ALPHA.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.meta.events.register("before-send.s3", answer)
    call(client)
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in sent[0].headers.items()
    }
    # http.client adds these two when it sends, after the signature.
    headers |= {"host": "gateway:9000", "accept-encoding": "identity"}
    return sent[0].method, PATH, headers


GET_OBJECT = boto3_sends(lambda s3: s3.get_object(Bucket="bucket", Key=PATH[8:], Range="bytes=0-9"))
HEAD_OBJECT = boto3_sends(lambda s3: s3.head_object(Bucket="bucket", Key=PATH[8:]))


@pytest.mark.parametrize("request_", [GET_OBJECT, HEAD_OBJECT], ids=["get", "head"])
def test_what_boto3_sends_is_proved(request_: tuple[str, str, dict[str, str]]) -> None:
    method, path, headers = request_
    assert in_c(headers, method, path, int(time.time())) == "alpha"


# --- what is left to Python -------------------------------------------------------------------------------------------


def _named(headers: dict[str, str], names: str) -> dict[str, str]:
    """The same headers, with another list of what is signed."""
    first, _, rest = headers["authorization"].partition("SignedHeaders=")
    return {**headers, "authorization": f"{first}SignedHeaders={names},{rest.partition(',')[2]}"}


def _authorized(headers: dict[str, str], old: str, new: str) -> dict[str, str]:
    assert old in headers["authorization"]
    return {**headers, "authorization": headers["authorization"].replace(old, new)}


SIGNED, TOKEN = signed(range="bytes=0-1"), with_token()
NAMED = "host;range;x-amz-content-sha256;x-amz-date"
LEFT = {
    "no claim": {"host": "gateway:9000"},
    "a header changed": {**SIGNED, "range": "bytes=0-2"},
    "a signed header not sent": {name: value for name, value in SIGNED.items() if name != "range"},
    "an x-amz header not signed": {**SIGNED, "x-amz-checksum-mode": "ENABLED"},
    "a checksum not signed": {**SIGNED, "x-amz-checksum-crc64nvme": "AAAAAAAAAAA="},
    "no time": {name: value for name, value in SIGNED.items() if name != "x-amz-date"},
    "no payload": {name: value for name, value in SIGNED.items() if name != "x-amz-content-sha256"},
    "a header that is not of a plain read": {**SIGNED, "if-match": '"a"'},
    "host not signed": _named(SIGNED, "range;x-amz-content-sha256;x-amz-date"),
    "names not sorted": _named(SIGNED, "range;host;x-amz-content-sha256;x-amz-date"),
    "a name twice": _named(SIGNED, "host;host;range;x-amz-content-sha256;x-amz-date"),
    "an empty name": _named(SIGNED, f"{NAMED};"),
    "a name in capitals": _named(SIGNED, NAMED.replace("host", "Host")),
    "itself signed": _named(SIGNED, f"authorization;{NAMED}"),
    "another algorithm": _authorized(SIGNED, "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"),
    "another service": _authorized(SIGNED, "/s3/", "/sqs/"),
    "another region": _authorized(SIGNED, "us-east-1", "us-east-2"),
    "another day": _authorized(SIGNED, "/20260202/", "/20260203/"),
    "another's access key": _authorized(SIGNED, ALPHA.access_key, BETA.access_key),
    "nobody's access key": _authorized(SIGNED, ALPHA.access_key, "NOBODY"),
    "something behind": _authorized(SIGNED, "Signature=", "Signature=0"),
    "a digit changed": {**SIGNED, "authorization": SIGNED["authorization"][:-1] + "g"},
    "digits in capitals": {
        **SIGNED,
        "authorization": SIGNED["authorization"][:-64] + SIGNED["authorization"][-64:].upper(),
    },
    "a token's digit changed": {**TOKEN, "authorization": TOKEN["authorization"][:-1] + "g"},
    "a token with something behind": {**TOKEN, "authorization": TOKEN["authorization"] + "0"},
    "a token for longer": _authorized(TOKEN, str(NOW + 60), str(NOW + 61)),
    "a token for another": _authorized(
        TOKEN, *(base64.urlsafe_b64encode(c.access_key.encode()).decode().rstrip("=") for c in (ALPHA, BETA))
    ),
    "a token and a streaming body": {**TOKEN, "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
    "a token and a session token": {**TOKEN, "x-amz-security-token": "t"},
}


@pytest.mark.parametrize("headers", LEFT.values(), ids=LEFT.keys())
def test_what_is_not_proved_is_left_to_python(headers: dict[str, str]) -> None:
    assert in_c(SIGNED) == in_c(TOKEN) == "alpha"
    assert in_c(headers) is None


def test_a_signed_header_that_is_not_sent_is_left_to_python() -> None:
    """Python takes it for an empty one."""
    headers = signed(range="")
    assert in_c(headers) == "alpha"
    del headers["range"]
    assert in_python(headers) == "alpha"
    assert in_c(headers) is None


@pytest.mark.parametrize("path", ["", "/b/k%20", "/b/k?x", "/b/\u00e9", "/b/a b", "/b/k\0", "/b/*"])
def test_a_path_that_signatures_encode_is_left_to_python(path: str) -> None:
    assert in_c(signed(path=path), path=path) is None
    assert in_c(TOKEN, path=path) is None


@pytest.mark.parametrize("value", ["bytes=0-1, 2-3", "bytes=0-1,  2-3", "bytes=0-1,\t2-3"])
def test_only_single_blanks_are_signed_as_they_are(value: str) -> None:
    headers = signed(range=value)
    assert in_python(headers) == "alpha"
    assert in_c(headers) == ("alpha" if value == "bytes=0-1, 2-3" else None)


def test_a_token_is_proved_in_the_one_spelling_that_is_issued() -> None:
    """Bits behind the last byte of a name are read by nobody, so another spelling can mean the same."""
    credential = Credential("ABCD", ALPHA.secret_key)
    all_tenants = tenants({"alpha": credential})
    for name, proved in (("QUJDRA", True), ("QUJDRB", False)):
        text = f"kvs1.{NOW + 60}.{name}"
        proof = native.hmac_sha256(token_key("alpha", "ABCD", credential.secret_key), text.encode()).hex()
        headers = {"authorization": f"Bearer {text}.{proof}"}
        c = native_credentials(all_tenants, max_skew_s=SKEW_S, session_ttl_s=TTL_S)
        python = Authenticator(all_tenants, lambda: NOW, SKEW_S, session_ttl_s=TTL_S)
        assert python.authenticate(Request("GET", PATH, "", Headers(headers.items()))).tenant.name == "alpha"
        assert (in_c(headers, c=c) == "alpha") is proved


def test_tokens_are_not_proved_where_they_are_off() -> None:
    c = native_credentials(TENANTS, max_skew_s=SKEW_S, session_ttl_s=0)
    assert in_c(SIGNED, c=c) == "alpha"
    assert in_c(TOKEN, c=c) is None


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_signature_is_proved_only_while_python_accepts_it() -> None:
    for now_s in range(NOW - SKEW_S - 2, NOW + SKEW_S + 3):
        proved = in_c(SIGNED, now_s=now_s) == "alpha"
        assert proved == (NOW - SKEW_S <= now_s < NOW + SKEW_S), now_s
        if proved and abs(abs(now_s - NOW) - SKEW_S) < 3:
            assert in_python(SIGNED, now=now_s) == in_python(SIGNED, now=now_s + 0.999) == "alpha"


def test_a_token_is_proved_only_until_its_end() -> None:
    assert in_c(TOKEN, now_s=NOW + 59) == "alpha"
    assert in_c(TOKEN, now_s=NOW + 60) is None


def test_a_token_is_proved_only_for_as_long_as_one_may_be() -> None:
    headers = with_token(ttl_s=TTL_S)
    assert in_c(headers, now_s=NOW - SKEW_S) == "alpha"
    assert in_c(headers, now_s=NOW - SKEW_S - 1) is None


@pytest.mark.parametrize("year", [1972, 2000, 2024, 2026, 2100])
def test_days_are_counted_as_the_calendar_does(year: int) -> None:
    """A request that is signed at any day's end is proved in that second, and at no other day."""
    first = calendar.timegm((year, 1, 1, 0, 0, 0)) - 86400
    c = native_credentials(TENANTS, max_skew_s=1, session_ttl_s=0)
    for day in range(368):
        now = first + day * 86400 - 1
        headers = {"host": "h"}
        headers |= sign(ALPHA, "GET", PATH, "", headers, region="r", now=now)
        assert in_c(headers, now_s=now, c=c) == "alpha", headers["x-amz-date"]
        assert in_c(headers, now_s=now + 86400, c=c) is None


@pytest.mark.parametrize(
    "date", ["20260230T000000Z", "20261301T000000Z", "20260202T240000Z", "20260202T026000Z", "20260202T024060Z", "x"]
)
def test_a_time_that_is_none_is_left_to_python(date: str) -> None:
    assert in_c({**SIGNED, "x-amz-date": date}) is None


# --- keys -------------------------------------------------------------------------------------------------------------


def test_more_signing_keys_than_are_remembered() -> None:
    requests = []
    for number in range(600):
        headers = {"host": "h"}
        headers |= sign(ALPHA, "GET", PATH, "", headers, region=f"region-{number}", now=NOW)
        requests.append(headers)
    for _ in range(2):
        assert all(in_c(headers) == "alpha" for headers in requests)


def test_each_of_many_credentials_is_found_and_no_other() -> None:
    secret = "s" * 16
    rows = [(f"KEY{number}", f"{secret}{number}", number, bytes(32)) for number in range(2000)]
    c = native.Credentials(rows, max_skew_s=SKEW_S, session_ttl_s=0)
    for number in (*range(0, 2000, 7), 1999, 2000, 12345):
        headers = {"host": "h"}
        credential = Credential(f"KEY{number}", f"{secret}{number}")
        headers |= sign(credential, "GET", PATH, "", headers, region="r", now=NOW)
        sent = {name: value.encode() for name, value in headers.items()}
        assert c.authenticate("GET", PATH.encode(), sent, NOW) == (number if number < 2000 else -1)


def test_without_credentials_nothing_is_proved() -> None:
    c = native.Credentials([], max_skew_s=SKEW_S, session_ttl_s=TTL_S)
    assert in_c(SIGNED, c=c) is None
    assert in_c(TOKEN, c=c) is None


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([("KEY", "a-secret-key", 0, bytes(32)), ("KEY", "another-secret", 1, bytes(32))], ValueError),
        ([("K" * 129, "a-secret-key", 0, bytes(32))], ValueError),
        ([("", "a-secret-key", 0, bytes(32))], ValueError),
        ([("KEY", "a-secret-key", -1, bytes(32))], ValueError),
        ([("KEY", "a-secret-key", 0, bytes(31))], ValueError),
        ([("KEY", "a-secret-key", 0)], TypeError),
        ([["KEY", "a-secret-key", 0, bytes(32)]], TypeError),
        (["a-secret-key"], TypeError),
        (7, TypeError),
    ],
)
def test_bad_credentials_are_refused_without_their_secret(rows: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        native.Credentials(rows, max_skew_s=SKEW_S, session_ttl_s=TTL_S)
    assert "secret" not in str(raised.value).replace("secret key", "")


@pytest.mark.parametrize("limits", [(-1, 0), (0, -1), (float("nan"), 0)])
def test_limits_below_nothing_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="at least 0 s"):
        native.Credentials([], max_skew_s=limits[0], session_ttl_s=limits[1])


# --- whatever is changed ----------------------------------------------------------------------------------------------

_WORDS = (
    "host",
    ";",
    ",",
    ", ",
    " ",
    "/",
    ".",
    "=",
    "0",
    "Signature=",
    BETA.access_key,
    "UNSIGNED-PAYLOAD",
    "20260202",
)


CHECKSUM = "x-amz-checksum-crc64nvme"
CHANGED = [
    ("GET", SIGNED),
    ("GET", TOKEN),
    ("HEAD", signed(BETA, "HEAD", payload=EMPTY_SHA256)),
    ("PUT", signed(method="PUT", content_length="70", content_type="text/plain")),
    ("PUT", signed(BETA, "PUT", content_length="70", x_amz_checksum_crc64nvme="AAAAAAAAAAA=")),
    ("PUT", {**TOKEN, "content-length": "70", CHECKSUM: "AAAAAAAAAAA="}),
]


@settings(max_examples=2500, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60), which=st.sampled_from(CHANGED))
def test_a_changed_request_is_proved_only_where_python_agrees(data: bytes, which: tuple[str, dict[str, str]]) -> None:
    draw, method, headers = Draw(data), which[0], dict(which[1])
    for _ in range(1 + draw.below(3)):
        name = draw.pick(("authorization", *headers))
        headers[name] = spliced(draw, headers[name], _WORDS)
        if draw.one_in(8):
            headers[draw.pick(("range", "accept", "x-amz-checksum-mode", "content-type", CHECKSUM))] = "a b"
    number = C.authenticate(
        method, PATH.encode(), {name: value.encode("utf-8", "surrogateescape") for name, value in headers.items()}, NOW
    )
    if number >= 0:
        request = Request(method, PATH, "", Headers(headers.items()))
        identity = authenticator().authenticate(request)
        assert identity.tenant.name == NAMES[number]
        assert method != "PUT" or identity.payload is UNSIGNED
