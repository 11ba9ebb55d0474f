"""Requests that no SDK of ours makes, byte by byte over a socket to a running gateway."""

from __future__ import annotations

import http.client
import time
from typing import Any

import pytest

from kvgate.auth import sigv4
from kvgate.auth.identity import ChunkSigning
from kvgate.s3 import checksums
from tests.gateways import ALPHA, RunningGateway
from tests.wire import send

CREDENTIAL = sigv4.Credential(ALPHA.access_key, ALPHA.secret_key)


def signed_chunks(encoder: Any, path: str, headers: dict[str, str], trailer: bool) -> tuple[Any, dict[str, str]]:
    """An encoder whose chain begins at the signature of the request, and the request's signed headers."""
    form = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + "-TRAILER" * trailer
    signed = sigv4.sign(CREDENTIAL, "PUT", path, "", headers, region="us-east-1", now=time.time(), payload_hash=form)
    scope = sigv4.Scope(signed["x-amz-date"][:8], "us-east-1")
    seed = signed["authorization"][-64:]
    signing = ChunkSigning(sigv4.signing_key(ALPHA.secret_key, scope), seed, scope, signed["x-amz-date"])
    return encoder(signing), {**headers, **signed}


@pytest.mark.parametrize("trailer", [False, True])
@pytest.mark.parametrize("tampered", [False, True])
def test_signed_chunks(gateway: RunningGateway, encoder: Any, trailer: bool, tampered: bool) -> None:
    path = f"/alpha-bucket/chunked-{trailer}-{tampered}"
    payloads = [b"a" * 200_000, b"b" * 65536, b"c" * 17]
    whole = b"".join(payloads)
    headers = {
        "host": f"127.0.0.1:{gateway.port}",
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": str(len(whole)),
        "transfer-encoding": "chunked",
    }
    if trailer:
        headers["x-amz-trailer"] = "x-amz-checksum-crc32c"
    made, signed = signed_chunks(encoder, path, headers, trailer)
    body = made.encode(payloads, {"x-amz-checksum-crc32c": crc32c(whole)} if trailer else None)
    if tampered:
        body = body.replace(b"b" * 65536, b"b" * 65535 + b"B")
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
        for name, value in signed.items():
            connection.putheader(name, value)
        connection.endheaders()
        for start in range(0, len(body), 50_000):
            piece = body[start : start + 50_000]
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    status, found, stored = send(gateway, "GET", path, {"x-amz-checksum-mode": "ENABLED"})
    if tampered:
        assert (answer.status, b"SignatureDoesNotMatch" in content, status) == (403, True, 404)
    else:
        assert (answer.status, status, stored) == (200, 200, whole)
        assert "content-encoding" not in found
        if trailer:
            assert found["x-amz-checksum-crc32c"] == crc32c(whole)


def crc32c(data: bytes) -> str:
    checksum = checksums.new("crc32c")
    checksum.update(memoryview(data))
    return checksums.encode(checksum.digest())


@pytest.mark.parametrize("right", [True, False])
def test_an_unsigned_trailing_checksum(gateway: RunningGateway, encoder: Any, right: bool) -> None:
    payload = b"payload" * 50_000
    checksum = crc32c(payload if right else b"other")
    body = encoder(None).encode([payload], {"x-amz-checksum-crc32c": checksum})
    headers = {
        "content-encoding": "gzip,aws-chunked",
        "content-length": str(len(body)),
        "x-amz-decoded-content-length": str(len(payload)),
        "x-amz-trailer": "x-amz-checksum-crc32c",
    }
    path = f"/alpha-bucket/trailing-{right}"
    status, found, content = send(gateway, "PUT", path, headers, body, "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
    if right:
        assert (status, found["x-amz-checksum-crc32c"]) == (200, checksum)
        status, found, content = send(gateway, "GET", path)
        assert (status, content, found["content-encoding"]) == (200, payload, "gzip")
    else:
        assert (status, b"BadDigest" in content) == (400, True)
        assert send(gateway, "HEAD", path)[0] == 404


def test_the_connection_goes_on_after_a_request_in_chunks(gateway: RunningGateway, encoder: Any) -> None:
    body = encoder(None).encode([b"x" * 1000])
    headers = {
        "host": f"127.0.0.1:{gateway.port}",
        "content-length": str(len(body)),
        "x-amz-decoded-content-length": "1000",
    }
    form = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        for _ in range(3):
            path = "/alpha-bucket/again"
            signed = sigv4.sign(
                CREDENTIAL, "PUT", path, "", headers, region="us-east-1", now=time.time(), payload_hash=form
            )
            connection.request("PUT", path, body, {**headers, **signed})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
    finally:
        connection.close()


def test_a_body_of_unknown_length_is_stored(gateway: RunningGateway) -> None:
    body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert send(gateway, "PUT", "/alpha-bucket/unknown", {"transfer-encoding": "chunked"}, body)[0] == 200
    assert send(gateway, "GET", "/alpha-bucket/unknown")[2] == b"hello world"


def test_an_upload_without_a_length_is_refused(gateway: RunningGateway) -> None:
    status, _, content = send(gateway, "PUT", "/alpha-bucket/lengthless")
    assert (status, b"MissingContentLength" in content) == (411, True)


def test_errors_are_documents_with_a_request_id(gateway: RunningGateway) -> None:
    status, headers, content = send(gateway, "GET", "/alpha-bucket/never%20there")
    assert (status, headers["content-type"]) == (404, "application/xml")
    assert f"<RequestId>{headers['x-amz-request-id']}</RequestId>".encode() in content
    assert b"<Code>NoSuchKey</Code>" in content
    status, headers, content = send(gateway, "HEAD", "/alpha-bucket/never%20there")
    assert (status, content) == (404, b"")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/alpha-bucket/%ff", b"InvalidArgument"),
        ("/alpha-bucket/" + "k" * 1025, b"KeyTooLongError"),
        ("/alpha-bucket/%00", b"InvalidArgument"),
        ("/alpha-bucket/a/%2e%2e/b", b"InvalidArgument"),
    ],
)
def test_bad_keys_are_refused(gateway: RunningGateway, path: str, code: bytes) -> None:
    status, _, content = send(gateway, "PUT", path, {"content-length": "1"}, b"x")
    assert (status, b"<Code>" + code + b"</Code>" in content) == (400, True)


def test_a_listing_without_url_encoding_never_shows_another_key(gateway: RunningGateway) -> None:
    send(gateway, "PUT", "/alpha-bucket/ctl/%01", {"content-length": "1"}, b"x")
    assert b"<Key>ctl/&#x1;</Key>" in send(gateway, "GET", "/alpha-bucket", query="prefix=ctl%2F")[2]
    assert b"<Key>ctl/%01</Key>" in send(gateway, "GET", "/alpha-bucket", query="encoding-type=url&prefix=ctl%2F")[2]


def test_not_modified_has_the_etag_and_no_body(gateway: RunningGateway) -> None:
    etag = send(gateway, "PUT", "/alpha-bucket/304", {"content-length": "1"}, b"x")[1]["etag"]
    status, headers, content = send(gateway, "GET", "/alpha-bucket/304", {"if-none-match": etag})
    assert (status, headers["etag"], content) == (304, etag, b"")


@pytest.mark.parametrize("body", [b"", b"<Delete>", b"<Other/>", b'<!DOCTYPE d [<!ENTITY e "x">]><Delete>&e;</Delete>'])
def test_malformed_documents_are_refused(gateway: RunningGateway, body: bytes) -> None:
    headers = {"content-length": str(len(body))}
    status, _, content = send(gateway, "POST", "/alpha-bucket", headers, body, query="delete=")
    assert (status, b"MalformedXML" in content) == (400, True)


def test_anonymous_requests_are_refused(gateway: RunningGateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request("GET", "/alpha-bucket/k")
        answer = connection.getresponse()
        assert (answer.status, b"AccessDenied" in answer.read()) == (403, True)
    finally:
        connection.close()


def test_metrics_name_the_operation(gateway: RunningGateway) -> None:
    send(gateway, "GET", "/alpha-bucket/never-there")
    assert any('operation="GetObject"' in name and 'status="404"' in name for name in gateway.metrics())


@pytest.mark.parametrize("header", ["x-rdma-info", "x-amz-rdma-token"])
def test_bodies_by_rdma_are_declined_and_nothing_is_stored(gateway: RunningGateway, header: str) -> None:
    path = "/alpha-bucket/by-rdma"
    status, headers, _ = send(gateway, "PUT", path, {header: "token", "content-length": "0"})
    assert (status, headers["x-amz-rdma-reply"]) == (501, "501")
    assert send(gateway, "GET", path)[0] == 404
