"""Calls are what the gateway's own authenticator accepts."""

from __future__ import annotations

import hashlib

import msgpack
import pytest

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import SignedPayload, UnsignedPayload
from kvgate.auth.sigv4 import Credential
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.client.call import Call, Calls
from kvgate.config import Secret
from kvgate.errors import ConfigError, InvalidArgument, InvalidBucketName, InvalidKey
from kvgate.http.endpoint import parse_endpoint
from kvgate.messages import Headers, Request

NOW = 1_770_000_000.0
SECRET = "a-secret-of-some-length"
CALLS = Calls(parse_endpoint("http://[::1]:9000"), Credential("the-key", SECRET), lambda: NOW)
AUTHENTICATOR = Authenticator(
    Tenants({"acme": TenantConfig((AccessKeyConfig("the-key", Secret(SECRET)),))}), lambda: NOW
)


def sent(call: Call[object]) -> Request:
    """The call as it reaches the gateway."""
    head = CALLS.proven(call).head.decode("ascii")
    assert head.endswith("\r\n\r\n")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1"
    path, _, query = target.partition("?")
    return Request(method, path, query, Headers(tuple(line.split(": ", 1)) for line in lines))


KEYS = ["key", "a b/c+d%2F", "ü/日本", "~-_.!*'()", "a//b/", "/a", "&=?#;:@$,", "\x01\x7f"]


@pytest.mark.parametrize("key", KEYS)
def test_every_object_call_is_accepted(key) -> None:
    views = (memoryview(b"ab"), memoryview(b"c"))
    for call in [
        CALLS.get("bucket", key, None),
        CALLS.get("bucket", key, (3, None)),
        CALLS.head("bucket", key),
        CALLS.delete("bucket", key),
        CALLS.put("bucket", key, views, 7, "text/plain", {"A-b": "some   text "}, if_none_match=True),
        CALLS.list_page("bucket", key, "/", "tok en+/="),
    ]:
        assert AUTHENTICATOR.authenticate(sent(call)).tenant.name == "acme"


def test_every_other_call_is_accepted() -> None:
    for call in [CALLS.tenant(), CALLS.stats(), CALLS.list_buckets(), CALLS.create_bucket("bucket")]:
        AUTHENTICATOR.authenticate(sent(call))


def test_small_bodies_are_signed_and_chunks_are_not() -> None:
    match = CALLS.match("bucket", "00" * 32, [bytes(32), b"\x01" * 32], 30)
    (body,) = match.views
    assert AUTHENTICATOR.authenticate(sent(match)).payload == SignedPayload(hashlib.sha256(body).hexdigest())
    assert msgpack.unpackb(body)["hashes"] == bytes(32) + b"\x01" * 32
    put = CALLS.put("bucket", "key", (memoryview(b"abc"),), 7, None, None, if_none_match=False)
    assert isinstance(AUTHENTICATOR.authenticate(sent(put)).payload, UnsignedPayload)
    assert put.headers["x-amz-checksum-crc64nvme"] == "AAAAAAAAAAc="
    assert put.headers["content-length"] == "3"
    assert "x-amz-checksum-crc64nvme" in CALLS.proven(put).headers["authorization"]


def test_range_is_that_of_http() -> None:
    assert CALLS.get("bucket", "key", (3, 10)).headers["range"] == "bytes=3-9"
    assert CALLS.get("bucket", "key", (3, None)).headers["range"] == "bytes=3-"
    for span in [(-1, 5), (5, 5), (5, 4)]:
        with pytest.raises(InvalidArgument):
            CALLS.get("bucket", "key", span)


def test_names_that_s3_does_not_know_are_refused() -> None:
    for key in ("", "a/../b", "a\0b", "\ud800", "k" * 1025):
        with pytest.raises(InvalidKey):
            CALLS.head("bucket", key)
    for bucket in ("", "b", "_kv", "UPPER", "a/b", "127.0.0.1"):
        with pytest.raises(InvalidBucketName):
            CALLS.create_bucket(bucket)


@pytest.mark.parametrize("metadata", [{"a": "b\r\nx: y"}, {"a": "ü"}, {"a b": "c"}, {"": "\0"}, {"a:": "b"}])
def test_metadata_that_is_no_header_is_refused(metadata) -> None:
    with pytest.raises(InvalidArgument):
        CALLS.put("bucket", "key", (), 0, None, metadata, if_none_match=False)


@pytest.mark.parametrize("access_key", ["", "a b", "a,b", "a/b", "a\r\nx-evil: 1", "ü"])
def test_access_key_that_would_break_the_header_is_refused(access_key) -> None:
    with pytest.raises(ConfigError):
        Calls(parse_endpoint("http://gateway"), Credential(access_key, SECRET))


def test_secret_is_not_shown() -> None:
    call = CALLS.proven(CALLS.tenant())
    assert SECRET not in repr(call) + repr(vars(CALLS))
    assert "Signature" not in repr(call)
