from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth import sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import ChunkedPayload, SignedPayload, UnsignedPayload
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import (
    AccessDenied,
    ClockSkew,
    ExpiredRequest,
    InvalidArgument,
    InvalidRequest,
    KVGateError,
    MalformedAuthorization,
    SignatureMismatch,
    UnknownAccessKey,
    UnsupportedOperation,
)
from kvgate.messages import Headers, Request

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "127.0.0.1:9000"
CREDENTIAL = sigv4.Credential(ACCESS_KEY, SECRET_KEY)

KEYS = ["plain", "with space", "a+b", "a%2Bb", "//x//", "a@b=c~d", "ünï/漢字", "(1)*'!", "k" * 1024]


def with_headers(request: Request, **changes: str | None) -> Request:
    """The request with some headers replaced, or removed by None; `_` in a name stands for `-`."""
    replaced = {name.replace("_", "-"): value for name, value in changes.items()}
    kept = [(name, value) for name, value in request.headers.items() if name not in replaced]
    added = [(name, value) for name, value in replaced.items() if value is not None]
    return Request(request.method, request.raw_path, request.raw_query, Headers([*kept, *added]), request.body)


def our_request(
    clock: Any, payload_hash: str = sigv4.UNSIGNED_PAYLOAD, headers: dict[str, str] | None = None
) -> Request:
    headers = {"host": HOST, **(headers or {})}
    added = sigv4.sign(
        CREDENTIAL, "PUT", "/b/k", "", headers, region="us-east-1", now=clock.now, payload_hash=payload_hash
    )
    return Request("PUT", "/b/k", "", Headers([*headers.items(), *added.items()]))


# --- what is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("expires", [None, 60])
def test_accepts_what_botocore_signs(
    authenticator: Authenticator, botocore_signed: Any, key: str, expires: int | None
) -> None:
    target = f"/bucket/{quote(key, safe='/~')}?list-type=2&prefix=a%2Bb%20c"
    identity = authenticator.authenticate(botocore_signed("GET", target, expires=expires))
    assert identity.tenant.name == "acme"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("method", ["get_object", "put_object"])
def test_accepts_what_boto3_presigns(authenticator: Authenticator, key: str, method: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}",
        region_name="eu-west-3",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(signature_version="s3v4"),
    )
    url = urlsplit(client.generate_presigned_url(method, Params={"Bucket": "b", "Key": key}))
    verb = {"get_object": "GET", "put_object": "PUT"}[method]
    identity = authenticator.authenticate(Request(verb, url.path, url.query, Headers([("host", HOST)])))
    assert identity.payload == UnsignedPayload()


def test_tells_how_the_body_is_protected(authenticator: Authenticator, botocore_signed: Any, clock: Any) -> None:
    def payload(request: Request) -> object:
        return authenticator.authenticate(request).payload

    assert payload(botocore_signed("PUT", unsigned=True)) == UnsignedPayload()
    assert payload(botocore_signed("PUT")) == SignedPayload(sigv4.EMPTY_SHA256)
    assert payload(our_request(clock, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")) == ChunkedPayload(True, None)
    for trailer in (False, True):
        request = our_request(clock, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + "-TRAILER" * trailer)
        found = payload(request)
        assert isinstance(found, ChunkedPayload)
        assert found.trailer is trailer
        assert found.signing is not None
        assert request.headers.get("authorization").endswith(found.signing.seed_signature)
        assert found.signing.amz_date == request.headers.get("x-amz-date")
        assert found.signing.seed_signature not in repr(found)
        assert repr(found.signing.key) not in repr(found)


def test_what_is_remembered_of_a_header_makes_no_signature_good(
    authenticator: Authenticator, botocore_signed: Any
) -> None:
    request = botocore_signed("GET", "/bucket/key")
    assert authenticator.authenticate(request).tenant.name == "acme"
    authorization = request.headers.get("authorization")
    other = botocore_signed("GET", "/bucket/another").headers.get("authorization")
    assert other.rpartition("Signature=")[0] == authorization.rpartition("Signature=")[0]
    for refused in (
        with_headers(request, authorization=other),
        with_headers(request, authorization=authorization.replace(ACCESS_KEY, "second-key")),
        Request("PUT", "/bucket/key", "", request.headers),
        Request("GET", "/bucket/another", "", request.headers),
    ):
        with pytest.raises(SignatureMismatch):
            authenticator.authenticate(refused)
    assert authenticator.authenticate(request).tenant.name == "acme"


def test_two_authorization_headers_are_refused(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed("GET")
    items = list(request.headers.items())
    for again in (request.headers.get("authorization"), "Basic eDp5"):
        for twice in ([*items, ("authorization", again)], [("authorization", again), *items]):
            with pytest.raises(InvalidRequest):
                authenticator.authenticate(Request("GET", request.raw_path, "", Headers(twice)))


def test_any_region_is_accepted(authenticator: Authenticator, botocore_signed: Any) -> None:
    assert authenticator.authenticate(botocore_signed(region="mars-north-7")).tenant.name == "acme"


def test_spaces_after_the_commas_are_optional(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed()
    squeezed = request.headers.get("authorization").replace(", ", ",")
    assert authenticator.authenticate(with_headers(request, authorization=squeezed)).tenant.name == "acme"


@pytest.mark.parametrize("form", ["http", "basic"])
def test_date_header_serves_without_x_amz_date(authenticator: Authenticator, clock: Any, form: str) -> None:
    whole = int(clock.now)
    amz_date = sigv4._moment(whole, "r")[0]
    date = formatdate(whole, usegmt=True) if form == "http" else amz_date
    signed = [("date", [date]), ("host", [HOST]), ("x-amz-content-sha256", [sigv4.EMPTY_SHA256])]
    scope = sigv4.Scope(amz_date[:8], "us-east-1")
    headers = [(name, values[0]) for name, values in signed]
    canonical = sigv4.canonical_request(
        "GET", "/", "", [name for name, _ in headers], Headers(headers), sigv4.EMPTY_SHA256
    )
    proof = sigv4.signature(sigv4.signing_key(SECRET_KEY, scope), amz_date, scope, canonical)
    names = ";".join(name for name, _ in signed)
    authorization = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={proof}"
    request = Request("GET", "/", "", Headers([*headers, ("authorization", authorization)]))
    assert authenticator.authenticate(request).tenant.name == "acme"


@pytest.mark.parametrize("query", ["=", "a=1&=nameless", "&&b=2&a"])
def test_odd_queries_are_verified_as_they_are_presigned(authenticator: Authenticator, clock: Any, query: str) -> None:
    headers = {"host": HOST}
    presigned = sigv4.presign(
        CREDENTIAL, "GET", "/bucket", query, headers, region="us-east-1", now=clock(), expires_s=60
    )
    request = Request("GET", "/bucket", presigned, Headers(headers.items()))
    assert authenticator.authenticate(request).tenant.name == "acme"


def test_unsigned_headers_that_change_nothing_may_be_added_on_the_way(
    authenticator: Authenticator, botocore_signed: Any
) -> None:
    request = with_headers(botocore_signed(), x_forwarded_for="10.0.0.1", x_amzn_trace_id="Root=1", accept="*/*")
    assert authenticator.authenticate(request).tenant.name == "acme"


# --- what is kept out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [None, 60])
@pytest.mark.parametrize(
    "change",
    [
        {"method": "DELETE"},
        {"raw_path": "/bucket/other"},
        {"raw_path": "/bucket//key"},
        {"raw_path": "/other/key"},
        {"query": "&prefix=x"},
        {"query": "&=nameless"},
        {"header": ("host", "elsewhere:9000")},
    ],
)
def test_a_changed_request_is_refused(
    authenticator: Authenticator, botocore_signed: Any, expires: int | None, change: dict[str, Any]
) -> None:
    request = botocore_signed(expires=expires)
    if "header" in change:
        request = with_headers(request, **dict([change["header"]]))
    request.method = change.get("method", request.method)
    request.raw_path = change.get("raw_path", request.raw_path)
    request.raw_query += change.get("query", "")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_a_changed_signed_header_is_refused(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed("PUT", headers={"x-amz-meta-a": "1", "content-type": "text/plain"})
    assert authenticator.authenticate(request)
    for change in (
        {"x_amz_meta_a": "2"},
        {"x_amz_meta_a": "1\u3000"},  # white space to Unicode, but not to HTTP
        {"content_type": "text/html"},
        {"x_amz_content_sha256": "0" * 64},
    ):
        with pytest.raises(SignatureMismatch):
            authenticator.authenticate(with_headers(request, **change))


@pytest.mark.parametrize("expires", [None, 60])
def test_every_x_amz_header_must_be_signed(
    authenticator: Authenticator, botocore_signed: Any, expires: int | None
) -> None:
    request = with_headers(botocore_signed(expires=expires), x_amz_acl="public-read")
    with pytest.raises(AccessDenied, match="x-amz-acl"):
        authenticator.authenticate(request)


def test_host_must_be_signed(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed()
    unsigned = request.headers.get("authorization").replace("SignedHeaders=host;", "SignedHeaders=")
    with pytest.raises(AccessDenied, match="host"):
        authenticator.authenticate(with_headers(request, authorization=unsigned))


def test_wrong_secret_and_unknown_key_are_refused(authenticator: Authenticator, botocore_signed: Any) -> None:
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(botocore_signed(secret_key="x" * 40))
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(botocore_signed(access_key="second-key"))
    with pytest.raises(UnknownAccessKey):
        authenticator.authenticate(botocore_signed(access_key="nobody"))


@pytest.mark.parametrize("offset_s", [-901, 901])
def test_clock_skew_is_bounded(authenticator: Authenticator, botocore_signed: Any, clock: Any, offset_s: int) -> None:
    request = botocore_signed()
    clock.now += offset_s
    with pytest.raises(ClockSkew):
        authenticator.authenticate(request)
    clock.now -= offset_s / 100
    assert authenticator.authenticate(request)


def test_presigned_request_expires(authenticator: Authenticator, botocore_signed: Any, clock: Any) -> None:
    request = botocore_signed(expires=3600)
    clock.now += 3500
    assert authenticator.authenticate(request)
    clock.now += 102
    with pytest.raises(ExpiredRequest):
        authenticator.authenticate(request)
    clock.now -= 3602 + 1000
    with pytest.raises(ClockSkew):
        authenticator.authenticate(request)


@pytest.mark.parametrize("expires", [0, 604801, -1])
def test_presigned_lifetime_is_bounded(authenticator: Authenticator, botocore_signed: Any, expires: int) -> None:
    with pytest.raises(MalformedAuthorization, match="604800"):
        authenticator.authenticate(botocore_signed(expires=expires))


def test_extending_the_lifetime_breaks_the_signature(
    authenticator: Authenticator, botocore_signed: Any, clock: Any
) -> None:
    request = botocore_signed(expires=60)
    request.raw_query = request.raw_query.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_anonymous_requests_are_refused(authenticator: Authenticator) -> None:
    with pytest.raises(AccessDenied, match="not signed"):
        authenticator.authenticate(Request("GET", "/b/k", "", Headers([("host", HOST)])))


def test_signature_v2_is_refused_with_the_way_out() -> None:
    authenticator = Authenticator(Tenants({}), time.time, sigv2=False)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}",
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(signature_version="s3"),
    )
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"}))
    with pytest.raises(MalformedAuthorization, match="signature_version='s3v4'"):
        authenticator.authenticate(Request("GET", url.path, url.query, Headers([("host", HOST)])))
    header = Headers([("host", HOST), ("authorization", f"AWS {ACCESS_KEY}:c2lnbmF0dXJl")])
    with pytest.raises(MalformedAuthorization, match="signature_version='s3v4'"):
        authenticator.authenticate(Request("GET", "/b/k", "", header))


def test_header_and_query_together_are_refused(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed(expires=60)
    request.headers = botocore_signed().headers
    with pytest.raises(InvalidRequest):
        authenticator.authenticate(request)


def test_payload_forms_outside_s3_are_refused(authenticator: Authenticator, clock: Any) -> None:
    with pytest.raises(UnsupportedOperation, match="ECDSA"):
        authenticator.authenticate(our_request(clock, "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"))
    for form in ("0" * 63, "A" * 64, "STREAMING-NOTHING", "unsigned-payload"):
        with pytest.raises(InvalidArgument):
            authenticator.authenticate(our_request(clock, form))


def test_session_tokens_are_refused(authenticator: Authenticator, clock: Any) -> None:
    with pytest.raises(MalformedAuthorization, match="session token"):
        authenticator.authenticate(our_request(clock, headers={"x-amz-security-token": "token"}))


def test_content_sha256_is_required(authenticator: Authenticator, botocore_signed: Any) -> None:
    with pytest.raises(InvalidRequest, match="x-amz-content-sha256"):
        authenticator.authenticate(with_headers(botocore_signed(), x_amz_content_sha256=None))


@pytest.mark.parametrize(
    "authorization",
    [
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a/b/c/s3/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/r/s3/aws4_request, SignedHeaders=Host, Signature="
        + "0" * 64,
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/r/s3/aws4_request, SignedHeaders=host, Signature="
        + "0" * 63,
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/r/sqs/aws4_request, SignedHeaders=host, Signature="
        + "0" * 64,
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/r/s3/aws4_request, SignedHeaders=host;host, Signature="
        + "0" * 64,
        "AWS4-ECDSA-P256-SHA256 Credential=a, SignedHeaders=host, Signature=00",
        "Basic dXNlcjpwYXNz",
        "x" * 100_000,
        "AWS4-HMAC-SHA256 " + "Credential=" * 10_000,
    ],
)
def test_malformed_authorization_is_refused(
    authenticator: Authenticator, botocore_signed: Any, authorization: str
) -> None:
    with pytest.raises(MalformedAuthorization):
        authenticator.authenticate(with_headers(botocore_signed(), authorization=authorization))


@pytest.mark.parametrize("date", ["", "now", "20261301T000000Z", "20260101T000000", "99999999T999999Z", "2026-01-01"])
def test_malformed_dates_are_refused(authenticator: Authenticator, botocore_signed: Any, date: str) -> None:
    for name in ("x_amz_date", "date"):
        request = with_headers(botocore_signed(), **{"x_amz_date": None, name: date})
        with pytest.raises(AccessDenied):
            authenticator.authenticate(request)


def test_credential_day_must_be_the_requests(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed()
    day = request.headers.get("x-amz-date")[:8]
    moved = request.headers.get("authorization").replace(f"/{day}/", "/20200101/")
    with pytest.raises(MalformedAuthorization):
        authenticator.authenticate(with_headers(request, authorization=moved))


def test_presigned_parameters_are_all_needed_once(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed(expires=60)
    parameters = request.raw_query.split("&")
    for position, parameter in enumerate(parameters):
        left = parameters[:position] + parameters[position + 1 :]
        for query in ("&".join(left), "&".join([*parameters, parameter])):
            with pytest.raises(KVGateError):
                authenticator.authenticate(Request("GET", request.raw_path, query, request.headers))


def test_errors_show_neither_secret_nor_signature(authenticator: Authenticator, botocore_signed: Any) -> None:
    request = botocore_signed(secret_key="y" * 40)
    with pytest.raises(SignatureMismatch) as caught:
        authenticator.authenticate(request)
    assert request.headers.get("authorization")[-64:] not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


PIECES = st.sampled_from(
    [
        *("AWS4-HMAC-SHA256", " ", "Credential=", ACCESS_KEY, "/", "20260127", "us-east-1", "s3", "aws4_request", ", "),
        *(";", "SignedHeaders=", "host", "Signature=", "0" * 64, "&", "%", "é", "\udcff"),
        *("X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Credential=", "X-Amz-Date=20260127T100000Z"),
        *("X-Amz-Expires=60", "X-Amz-SignedHeaders=host", "X-Amz-Signature="),
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=5), max_size=14).map("".join)


@given(authorization=TEXT, query=TEXT, path=TEXT, amz_date=TEXT, date=TEXT)
def test_whatever_is_sent_is_refused_in_the_words_of_the_domain(
    authorization: str, query: str, path: str, amz_date: str, date: str
) -> None:
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)),)
    authenticator = Authenticator(Tenants({"acme": TenantConfig(keys)}), lambda: 1_769_508_000.0)
    headers = [("host", HOST), ("authorization", authorization), ("x-amz-date", amz_date), ("date", date)]
    headers.append(("x-amz-content-sha256", sigv4.UNSIGNED_PAYLOAD))
    with pytest.raises(KVGateError):
        authenticator.authenticate(Request("GET", "/" + path, query, Headers(headers)))
