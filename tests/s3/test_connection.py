"""One connection and what goes over it, byte by byte: where one answer ends, the next one has to begin."""

from __future__ import annotations

import gzip
import http.client
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from kvgate.auth import sigv4
from kvgate.auth.identity import ChunkSigning
from tests.gateways import ALPHA, RunningGateway
from tests.wire import CREDENTIAL, send

BUCKET = "/alpha-bucket"


class Peer:
    """A connection of our own, on which requests are written as they are."""

    def __init__(self, gateway: RunningGateway, front: str = "own") -> None:
        self.host = f"127.0.0.1:{gateway.port}"
        self.sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        self.reader = self.sock.makefile("rb")
        if front == "aiohttp":  # which has a connection for good once there was something unusual on it
            self.sock.sendall(f"OPTIONS / HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
            self.receive("OPTIONS")

    def send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        query: str = "",
        body: bytes = b"",
        form: str = sigv4.UNSIGNED_PAYLOAD,
    ) -> None:
        sent = {"host": self.host, **(headers or {})}
        signed = sigv4.sign(
            CREDENTIAL, method, path, query, sent, region="us-east-1", now=time.time(), payload_hash=form
        )
        target = path + (f"?{query}" if query else "")
        lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in {**sent, **signed}.items()]]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def receive(self, method: str) -> tuple[int, dict[str, str], bytes]:
        status = int(self.reader.readline().split()[1])
        headers = {name.lower(): value for name, value in http.client.parse_headers(self.reader).items()}
        nbytes = 0 if method == "HEAD" or status in (204, 304) else int(headers["content-length"])
        return status, headers, self.reader.read(nbytes)

    def ask(self, method: str, path: str, *rest: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        self.send(method, path, *rest, **options)
        return self.receive(method)


@pytest.fixture(params=["own", "aiohttp"])
def peer(gateway: RunningGateway, request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A connection to each of the two fronts."""
    found = Peer(gateway, request.param)
    with found.sock, found.reader:
        yield found


def put(peer: Peer, path: str, body: bytes, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return peer.ask("PUT", path, {"content-length": str(len(body)), **named}, body=body)[0]


def test_answers_without_a_body_end_with_their_head(peer: Peer) -> None:
    path = f"{BUCKET}/bodiless"
    assert put(peer, path, b"body") == 200
    for _ in range(2):
        status, headers, body = peer.ask("HEAD", path)
        assert (status, headers["content-length"], body) == (200, "4", b"")
        assert peer.ask("HEAD", f"{BUCKET}/not-there")[::2] == (404, b"")
        assert peer.ask("HEAD", path, {"range": "bytes=9-"})[::2] == (416, b"")
        etag = headers["etag"]
        status, headers, body = peer.ask("GET", path, {"if-none-match": etag})
        assert (status, body, headers["etag"], "content-length" in headers) == (304, b"", etag, False)
        status, headers, body = peer.ask("DELETE", f"{BUCKET}/not-there")
        assert (status, body, "content-length" in headers, "content-type" in headers) == (204, b"", False, False)
        assert peer.ask("GET", path)[::2] == (200, b"body")


def test_a_connection_goes_on_after_an_error_that_left_the_body_unread(peer: Peer) -> None:
    body = b"x" * 100_000
    for path, headers, status in (
        ("/no-such-bucket/k", {}, 404),
        (f"{BUCKET}/k", {"x-amz-storage-class": "GLACIER"}, 501),
        (f"{BUCKET}/kv/nonsense", {}, 400),
        (f"{BUCKET}/never-stored", {"if-match": '"nothing"'}, 404),
    ):
        assert put(peer, path, body, **headers) == status
    assert put(peer, f"{BUCKET}/after-errors", b"fine") == 200
    assert peer.ask("GET", f"{BUCKET}/after-errors")[2] == b"fine"


@pytest.mark.parametrize("path", ["/no-such-bucket/k", f"{BUCKET}/kv/nonsense"])
def test_a_refused_request_has_its_error_before_its_body(peer: Peer, path: str) -> None:
    status, _, body = peer.ask("PUT", path, {"content-length": "1000000", "expect": "100-continue"})
    assert status in (400, 404)  # and not 100: the body was never asked for
    assert b"<Error>" in body
    assert peer.reader.read(1) == b""  # whether it comes is not known, so that the connection has to end


def test_a_body_is_asked_for_when_it_is_wanted(peer: Peer) -> None:
    path = f"{BUCKET}/expected"
    peer.send("PUT", path, {"content-length": "5", "expect": "100-continue"})
    assert peer.reader.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.sock.sendall(b"later")
    assert peer.receive("PUT")[0] == 200
    assert peer.ask("GET", path)[2] == b"later"


def test_pipelined_requests_are_answered_in_turn(peer: Peer) -> None:
    for number in range(5):
        peer.send("PUT", f"{BUCKET}/pipe{number}", {"content-length": "1"}, body=str(number).encode())
    for number in range(5):
        peer.send("GET", f"{BUCKET}/pipe{number}")
    assert [peer.receive("PUT")[0] for _ in range(5)] == [200] * 5
    assert [peer.receive("GET")[2] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_compressed_bodies_are_stored_as_they_come(peer: Peer, framing: str) -> None:
    body = gzip.compress(b"text " * 1000)
    path = f"{BUCKET}/compressed-{framing}"
    if framing == "length":
        assert put(peer, path, body, content_encoding="gzip") == 200
    else:
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        headers = {"transfer-encoding": "chunked", "content-encoding": "gzip"}
        assert peer.ask("PUT", path, headers, body=chunks)[0] == 200
    status, headers, found = peer.ask("GET", path, {"accept-encoding": "gzip"})
    assert (status, headers["content-encoding"], found) == (200, "gzip", body)


def test_signed_chunks_that_no_content_encoding_announces(peer: Peer, encoder: Any) -> None:
    """minio-go signs chunks without Content-Encoding, and writes no space behind the commas of Authorization."""
    path, payload = f"{BUCKET}/chunks-unannounced", b"p" * 70_000
    form = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    headers = {"host": peer.host, "x-amz-decoded-content-length": str(len(payload))}
    length = len(encoder(_signing("0" * 64, "20260101T000000Z")).encode([payload]))
    headers["content-length"] = str(length)
    signed = sigv4.sign(CREDENTIAL, "PUT", path, "", headers, region="us-east-1", now=time.time(), payload_hash=form)
    body = encoder(_signing(signed["authorization"][-64:], signed["x-amz-date"])).encode([payload])
    signed["authorization"] = signed["authorization"].replace(", ", ",")
    lines = [f"PUT {path} HTTP/1.1", *[f"{name}: {value}" for name, value in {**headers, **signed}.items()], "", ""]
    peer.sock.sendall("\r\n".join(lines).encode() + body)
    assert peer.receive("PUT")[0] == 200
    assert peer.ask("GET", path)[2] == payload


def _signing(seed: str, amz_date: str) -> ChunkSigning:
    scope = sigv4.Scope(amz_date[:8], "us-east-1")
    return ChunkSigning(sigv4.signing_key(ALPHA.secret_key, scope), seed, scope, amz_date)


@pytest.mark.parametrize(
    "key",
    [
        "a+b", "a%2Bb", "a b", "a//b", "/a", "a/", "a@b=c", "ü/漢字/🙂", "a%2Fb", "%", "~-._", "!*'();:&$,?#[]",
        "x" * 1024, "é" * 512, "漢" * 341 + "x",
    ],
)  # fmt: skip
def test_keys_arrive_as_they_were_meant(peer: Peer, key: str) -> None:
    body = key.encode()
    path = f"{BUCKET}/{quote(key, safe='/~')}"
    assert put(peer, path, body) == 200
    shouting = f"{BUCKET}/" + "".join(f"%{byte:02x}" for byte in key.encode())  # every byte escaped, in lower case
    for way in (path, shouting):
        assert peer.ask("GET", way)[::2] == (200, body)
    listed = peer.ask("GET", BUCKET, query=f"list-type=2&encoding-type=url&prefix={quote(key, safe='~')}")[2]
    assert f"<Key>{quote(key, safe='/~')}</Key>".encode() in listed
    assert peer.ask("DELETE", path)[0] == 204


def test_query_arguments_in_any_order(peer: Peer) -> None:
    assert put(peer, f"{BUCKET}/order/1", b"1") == 200
    for query in (
        "prefix=order/&list-type=2", "list-type=2&prefix=order%2F", "x-id=ListObjectsV2&prefix=order%2f&list-type=2",
        "&list-type=2&&prefix=order/&",
    ):  # fmt: skip
        status, headers, body = peer.ask("GET", BUCKET, query=query)
        assert (status, headers["content-type"]) == (200, "application/xml")
        assert b"<KeyCount>1</KeyCount>" in body
    status, headers, body = peer.ask("GET", BUCKET, query="list-type=2&prefix=a&prefix=b")
    assert (status, headers["content-type"], b"InvalidArgument" in body) == (400, "application/xml", True)


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ' xmlns="urn:other"'])
def test_documents_with_a_namespace_and_without(peer: Peer, namespace: str) -> None:
    assert put(peer, f"{BUCKET}/named", b"1") == 200
    body = f"<Delete{namespace}><Object><Key>named</Key></Object></Delete>".encode()
    status, _, answer = peer.ask("POST", BUCKET, {"content-length": str(len(body))}, query="delete", body=body)
    assert (status, b"<Key>named</Key>" in answer) == (200, True)
    assert peer.ask("HEAD", f"{BUCKET}/named")[0] == 404


def test_no_range_of_an_object_has_its_size_in_the_error(peer: Peer) -> None:
    assert put(peer, f"{BUCKET}/ranged", b"0123456789") == 200
    status, headers, body = peer.ask("GET", f"{BUCKET}/ranged", {"range": "bytes=10-20"})
    assert (status, headers["content-range"], headers["content-type"]) == (416, "bytes */10", "application/xml")
    assert b"<ActualObjectSize>10</ActualObjectSize>" in body


@pytest.mark.parametrize("skew_s", [-1000, 1000])
def test_a_clock_that_is_far_off(gateway: RunningGateway, skew_s: int) -> None:
    status, _, body = send(gateway, "GET", BUCKET, now=time.time() + skew_s)
    assert (status, b"RequestTimeTooSkewed" in body) == (403, True)
    assert send(gateway, "GET", BUCKET, now=time.time() + skew_s * 0.8)[0] == 200
