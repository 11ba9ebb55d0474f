from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth import sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import UnsignedPayload
from kvgate.auth.sigv2 import PresignedV2, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import (
    AccessDenied,
    ExpiredRequest,
    InvalidArgument,
    KVGateError,
    MalformedAuthorization,
    SignatureMismatch,
    UnknownAccessKey,
)
from kvgate.messages import Headers, Request

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "127.0.0.1:9000"

KEYS = ["plain", "with space", "a+b", "a%2Bb", "//x//", "a@b=c~d&e?f#g", "ünï/漢字", "(1)*'!", "k" * 1024]
VERBS = {"get_object": "GET", "head_object": "HEAD", "put_object": "PUT", "delete_object": "DELETE"}


def presigned(
    operation: str = "get_object", *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, **parameters: Any
) -> Request:
    """What boto3 presigns where nobody has told it how: in us-east-1."""
    expires = parameters.pop("ExpiresIn", 3600)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}",
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )
    target = {"Bucket": "bucket", "Key": "key"} | parameters
    url = urlsplit(client.generate_presigned_url(operation, Params=target, ExpiresIn=expires))
    assert "AWSAccessKeyId=" in url.query
    return Request(VERBS.get(operation, "PUT"), url.path, url.query, Headers([("host", HOST)]))


def changed(request: Request, **headers: str) -> Request:
    """The request with headers added; `_` in a name stands for `-`."""
    added = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request(
        request.method, request.raw_path, request.raw_query, Headers([*request.headers.items(), *added]), request.body
    )


# --- what is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("operation", VERBS)
def test_accepts_what_boto3_presigns_by_default(authenticator: Authenticator, key: str, operation: str) -> None:
    identity = authenticator.authenticate(presigned(operation, Key=key))
    assert (identity.tenant.name, identity.payload) == ("acme", UnsignedPayload())


def test_accepts_what_the_signature_covers(authenticator: Authenticator) -> None:
    overrides = {
        "ResponseContentDisposition": 'attachment; filename="a b+c&d.txt"',
        "ResponseContentType": "text/plain; charset=utf-8",
        "ResponseCacheControl": "no-cache",
        "ResponseContentLanguage": "de",
        "ResponseContentEncoding": "gzip",
        "ResponseExpires": "Thu, 01 Dec 1994 16:00:00 GMT",
        "VersionId": "x/+=",
    }
    assert authenticator.authenticate(presigned(**overrides))
    assert authenticator.authenticate(presigned("upload_part", UploadId="u/+=", PartNumber=3))


@pytest.mark.parametrize("signed", ["tagging", "tagging="])
@pytest.mark.parametrize("sent", ["tagging", "tagging="])
def test_a_parameter_without_a_value_is_not_one_with_an_empty_value(
    authenticator: Authenticator, clock: Any, signed: str, sent: str
) -> None:
    expires = int(clock.now) + 60
    proof = quote(sign(SECRET_KEY, f"GET\n\n\n{expires}\n/bucket/key?{signed}".encode()), safe="")
    query = f"{sent}&AWSAccessKeyId={ACCESS_KEY}&Expires={expires}&Signature={proof}"
    request = Request("GET", "/bucket/key", query, Headers([("host", HOST)]))
    if signed == sent:
        assert authenticator.authenticate(request).tenant.name == "acme"
    else:
        with pytest.raises(SignatureMismatch):
            authenticator.authenticate(request)


def test_headers_in_the_query_may_be_sent_besides(authenticator: Authenticator) -> None:
    request = presigned("put_object", ContentType="text/plain; charset=utf-8", Metadata={"a": "x y", "b": "2"})
    assert authenticator.authenticate(request)
    assert authenticator.authenticate(changed(request, content_type="text/plain; charset=utf-8"))
    assert authenticator.authenticate(changed(request, x_amz_meta_a="x y"))


def test_headers_may_be_sent_instead_of_in_the_query(authenticator: Authenticator) -> None:
    request = presigned("put_object", ContentType="text/plain", Metadata={"a": "1"})
    request.raw_query = request.raw_query.replace("&content-type=text%2Fplain", "").replace("&x-amz-meta-a=1", "")
    assert "amz" not in request.raw_query
    assert authenticator.authenticate(changed(request, content_type="text/plain", x_amz_meta_a="1"))


def test_white_space_of_http_is_trimmed_and_no_other(authenticator: Authenticator) -> None:
    request = presigned("put_object", Metadata={"a": "1"})
    request.raw_query = request.raw_query.replace("&x-amz-meta-a=1", "")
    assert authenticator.authenticate(changed(request, x_amz_meta_a=" 1\t"))
    for value in ("1\u3000", "\u00a01", "1\x0b"):
        with pytest.raises(SignatureMismatch):
            authenticator.authenticate(changed(request, x_amz_meta_a=value))


def test_accepts_a_bucket_in_the_host_name(authenticator: Authenticator) -> None:
    client = boto3.client(
        "s3",
        endpoint_url="http://gateway.example",
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "virtual"}),
    )
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a b"}))
    assert url.hostname == "bucket.gateway.example"
    request = Request("GET", url.path, url.query, Headers([("host", url.netloc)]), bucket="bucket")
    assert authenticator.authenticate(request)
    request.bucket = "other"
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_a_plus_in_an_unencoded_signature_is_a_plus(authenticator: Authenticator) -> None:
    for number in range(1000):
        request = presigned(Key=f"key{number}")
        if "%2B" in request.raw_query:
            break
    request.raw_query = request.raw_query.replace("%2B", "+").replace("%2F", "/")
    assert authenticator.authenticate(request)


# --- what is kept out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"method": "DELETE"},
        {"raw_path": "/bucket/other"},
        {"raw_path": "/bucket//key"},
        {"raw_path": "/other/key"},
        {"query": "&acl"},
        {"query": "&versionId=1"},
        {"query": "&response-content-type=text/html"},
        {"query": "&x-amz-meta-a=1"},
        {"query": "&x-amz-copy-source=/bucket/secret"},
        {"query": "&content-type=text/html"},
        {"headers": {"x_amz_meta_a": "1"}},
        {"headers": {"x_amz_copy_source": "/bucket/secret"}},
        {"headers": {"content_type": "text/html"}},
        {"headers": {"content_md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}},
    ],
)
def test_a_changed_request_is_refused(authenticator: Authenticator, change: dict[str, Any]) -> None:
    request = changed(presigned(), **change.get("headers", {}))
    request.method = change.get("method", request.method)
    request.raw_path = change.get("raw_path", request.raw_path)
    request.raw_query += change.get("query", "")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("response-content-type=text%2Fplain", "response-content-type=text%2Fhtml"),
        ("response-content-type=text%2Fplain", "response-content-type=text+plain"),
        ("response-content-type=text%2Fplain&", ""),
        ("versionId=v", "versionId"),
    ],
)
def test_a_changed_query_is_refused(authenticator: Authenticator, old: str, new: str) -> None:
    request = presigned(ResponseContentType="text/plain", VersionId="v")
    assert old in request.raw_query
    request.raw_query = request.raw_query.replace(old, new)
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_extending_the_lifetime_breaks_the_signature(authenticator: Authenticator) -> None:
    request = presigned(ExpiresIn=60)
    expires = PresignedV2(request).expires
    request.raw_query = request.raw_query.replace(f"Expires={expires}", f"Expires={expires + 600}")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_a_space_and_a_plus_are_not_the_same(authenticator: Authenticator) -> None:
    request = presigned(ResponseContentType="a b")
    assert authenticator.authenticate(request)
    request.raw_query = request.raw_query.replace("a%20b", "a+b")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


def test_a_changed_or_missing_header_is_refused(authenticator: Authenticator) -> None:
    request = presigned("put_object", ContentType="text/plain", Metadata={"a": "1"})
    for other in ({"content_type": "text/html"}, {"x_amz_meta_a": "2"}):
        with pytest.raises(InvalidArgument, match="twice"):
            authenticator.authenticate(changed(request, **other))
    request.raw_query = request.raw_query.replace("&x-amz-meta-a=1", "")
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(request)


@pytest.mark.parametrize("parameter", ["prefix=a", "list-type=2", "max-keys=1", "marker", "Policy=x", "x-id=GetObject"])
def test_what_the_signature_does_not_cover_is_refused_with_the_way_out(
    authenticator: Authenticator, parameter: str
) -> None:
    request = presigned()
    request.raw_query += f"&{parameter}"
    with pytest.raises(AccessDenied, match="signature_version='s3v4'"):
        authenticator.authenticate(request)


def test_a_url_expires(authenticator: Authenticator, clock: Any) -> None:
    request = presigned(ExpiresIn=60)
    clock.now += 58
    assert authenticator.authenticate(request)
    clock.now += 3
    with pytest.raises(ExpiredRequest):
        authenticator.authenticate(request)


def test_the_lifetime_is_bounded(authenticator: Authenticator) -> None:
    assert authenticator.authenticate(presigned(ExpiresIn=sigv4.MAX_EXPIRES_S))
    with pytest.raises(AccessDenied, match="604800"):
        authenticator.authenticate(presigned(ExpiresIn=sigv4.MAX_EXPIRES_S + 60))


def test_wrong_secret_and_unknown_key_are_refused(authenticator: Authenticator) -> None:
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(presigned(secret_key="x" * 40))
    with pytest.raises(SignatureMismatch):
        authenticator.authenticate(presigned(access_key="second-key"))
    with pytest.raises(UnknownAccessKey):
        authenticator.authenticate(presigned(access_key="nobody"))


def test_session_tokens_are_refused(authenticator: Authenticator) -> None:
    for request in (presigned(), changed(presigned(), x_amz_security_token="token")):
        if "x-amz-security-token" not in request.headers:
            request.raw_query += "&x-amz-security-token=token"
        with pytest.raises(MalformedAuthorization, match="session token"):
            authenticator.authenticate(request)


def test_parameters_are_all_needed_once(authenticator: Authenticator) -> None:
    request = presigned(VersionId="x")
    parameters = request.raw_query.split("&")
    for position, parameter in enumerate(parameters):
        left = parameters[:position] + parameters[position + 1 :]
        for query in ("&".join(left), "&".join([*parameters, parameter])):
            with pytest.raises(AccessDenied):
                authenticator.authenticate(Request("GET", request.raw_path, query, request.headers))


@pytest.mark.parametrize("expires", ["", "x", "-1", "1e9", "\uff11", "9" * 13])
def test_a_malformed_time_is_refused(authenticator: Authenticator, expires: str) -> None:
    request = presigned()
    kept = [each for each in request.raw_query.split("&") if not each.startswith("Expires=")]
    request.raw_query = "&".join([*kept, f"Expires={expires}"])
    with pytest.raises(MalformedAuthorization, match="Expires"):
        authenticator.authenticate(request)


def test_errors_show_neither_secret_nor_signature(authenticator: Authenticator) -> None:
    request = presigned(secret_key="y" * 40)
    with pytest.raises(SignatureMismatch) as caught:
        authenticator.authenticate(request)
    assert PresignedV2(request)._signature not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


PIECES = st.sampled_from(
    [
        *("AWSAccessKeyId=", ACCESS_KEY, "&", "Expires=", "1769509000", "Signature=", "c2ln", "=", "%", "%0A", "+"),
        *("acl", "versionId=", "response-content-type=", "x-amz-meta-a=", "content-type=", "é", "\udcff"),
    ]
)
TEXT = st.lists(PIECES | st.text(max_size=5), max_size=14).map("".join)


@given(query=TEXT, path=TEXT, value=TEXT)
def test_whatever_is_sent_is_refused_in_the_words_of_the_domain(query: str, path: str, value: str) -> None:
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)),)
    authenticator = Authenticator(Tenants({"acme": TenantConfig(keys)}), lambda: 1_769_508_000.0)
    signing = f"AWSAccessKeyId={ACCESS_KEY}&Expires=1769509000&Signature=c2ln&{query}"
    headers = Headers([("host", HOST), ("x-amz-meta-a", value), ("content-type", value)])
    for each in (query, signing):
        with pytest.raises(KVGateError):
            authenticator.authenticate(Request("GET", "/" + path, each, headers))
