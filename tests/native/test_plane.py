"""The native plane on real sockets, without a gateway: what it answers, what it hands over, whose bytes it reads."""

from __future__ import annotations

import itertools
import os
import random
import re
import select
import socket
import threading
import time
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import UNSIGNED
from kvgate.auth.session import Sessions
from kvgate.auth.sigv4 import Credential
from kvgate.messages import Request
from kvgate.s3.ordinary import PLAIN_PUT_CHECKSUM, PLAIN_PUT_HEADERS
from kvgate.s3.ranges import parse_range
from kvgate.server.http1.head import parse_head
from tests.native.planes import (
    CHECKSUMS,
    HEAD_LINES,
    HOST,
    OTHER,
    PATIENCE_S,
    TENANTS,
    Bench,
    digests,
    read_answer,
    signed,
    until,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


# --- what it answers --------------------------------------------------------------------------------------------------


def test_answers_get_and_head_of_a_published_object(bench: Bench) -> None:
    body = bytearray(random.Random(1).randbytes(3000))
    number = bench.publish("/b/k", body)
    sock = bench.connect()
    sock.sendall(signed("HEAD", "/b/k"))
    status, headers, _ = read_answer(sock, body=False)
    assert bench.plane.used() == []
    sock.sendall(signed("GET", "/b/k", {"x-amz-checksum-mode": "ENABLED"}))
    status, with_checksums, content = read_answer(sock)
    assert (status, content) == (200, bytes(body))
    assert headers["ETag"] == '"e"'
    assert headers["Content-Length"] == "3000"
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-amz-request-id"])
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["Date"])
    assert "x-amz-checksum-type" not in headers
    assert with_checksums["x-amz-checksum-type"] == "FULL_OBJECT"
    assert bench.plane.used() == [number]
    assert bench.plane.used() == []
    until(lambda: bench.plane.counts()["GetObject"]["answers"][200] == 1)
    counts = bench.plane.counts()
    assert counts["HeadObject"]["answers"] == {200: 1, 206: 0}
    assert sum(counts["GetObject"]["latencies"]) == 1
    assert counts["sent_bytes"] == 3000


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_answers_what_sdks_that_name_the_operation_send(bench: Bench, method: str) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    sock = bench.connect()
    name = f"{method.title()}Object"
    sock.sendall(signed(method, "/b/k", query=f"x-id={name}"))
    assert read_answer(sock, body=method == "GET")[0] == 200
    unsigned = signed(method, "/b/k").replace(b" HTTP/", f"?x-id={name} HTTP/".encode())
    sock.sendall(unsigned)
    assert bench.handed()[0][2] == unsigned


def test_answers_with_a_session_token(bench: Bench) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    token = Sessions(TENANTS, time.time, 3600, 900).issue("AK-acme", 600).token
    sock = bench.connect()
    sock.sendall(f"GET /b/k HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert read_answer(sock)[2] == b"body"


def test_answers_a_head_that_comes_byte_by_byte_and_several_that_come_at_once(bench: Bench) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    sock = bench.connect()
    for byte in signed("GET", "/b/k"):
        sock.sendall(bytes([byte]))
    assert read_answer(sock)[2] == b"body"
    sock.sendall(signed("GET", "/b/k") * 3)
    until(lambda: bench.plane.counts()["GetObject"]["answers"][200] == 4)
    received = b""
    while received.count(b"\r\n\r\nbody") < 3:
        received += sock.recv(65536)
    assert received.count(b"HTTP/1.1 200 OK") == 3


def test_a_slow_reader_gets_everything_and_the_bytes_stay_until_then(bench: Bench) -> None:
    body = bytearray(random.Random(2).randbytes(5_000_000))
    number = bench.publish("/b/k", body)
    sock = bench.connect(send_buffer=20_000)
    sock.sendall(signed("GET", "/b/k") + signed("HEAD", "/b/unknown"))
    until(lambda: bench.plane.readers(number) == 1)
    assert bench.plane.withdraw(number) is False
    with pytest.raises(BufferError):
        body.extend(b"!")  # somebody holds it
    assert bench.plane.released() == []
    assert read_answer(sock)[2] == bytes(body)
    released: list[int] = []
    until(lambda: released.extend(bench.plane.released()) or released)
    assert released == [number]
    body.extend(b"!")
    assert bench.handed()[0][2].startswith(b"HEAD /b/unknown")


def test_many_extents_are_one_body(bench: Bench) -> None:
    body = bytearray(random.Random(3).randbytes((3 << 20) + 17))
    cuts = [0, 1, 4096, 4097, 1 << 20, (1 << 20) + 5, 2 << 20, (3 << 20) + 17]
    views = [memoryview(body)[start:stop] for start, stop in itertools.pairwise(cuts)]
    bench.plane.publish(0, b"/b/k", HEAD_LINES, CHECKSUMS, views, digests(body))
    sock = bench.connect()
    for start, stop in ((0, len(body)), (4095, 4098), ((1 << 20) - 1, (2 << 20) + 1), (len(body) - 1, len(body))):
        sock.sendall(signed("GET", "/b/k", {"range": f"bytes={start}-{stop - 1}"}))
        status, headers, content = read_answer(sock)
        assert (status, content) == (206, bytes(body[start:stop]))
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(body)}"


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(
        st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True),
        st.text("bytes=-, 0123456789BYTES", max_size=14).map(str.strip).filter(bool),
    ),
    exact=st.booleans(),
)
def test_a_range_is_what_python_makes_of_it(text: str, exact: bool) -> None:
    bench = _shared_bench()
    sock = bench.connect(exact=exact)
    request = signed("GET", "/b/range", {"range": text})
    sock.sendall(request)
    ready, _, _ = select.select([sock, bench.plane], [], [], PATIENCE_S)
    if sock not in ready:
        assert bench.handed()[0][2] == request
        return
    status, _, content = read_answer(sock)
    byte_range = parse_range(text)
    assert byte_range is not None
    start, stop = byte_range.resolve(1000, exact=exact)
    assert (status, content) == (206, bytes(_RANGE_BODY[start:stop]))


def test_usual_ranges_are_answered(bench: Bench) -> None:
    body = bytearray(random.Random(4).randbytes(1000))
    bench.publish("/b/k", body)
    sock = bench.connect()
    for text, part in (
        ("bytes=0-0", body[:1]),
        ("bytes=10-", body[10:]),
        ("bytes=-7", body[-7:]),
        ("bytes=5-9999", body[5:]),
    ):
        sock.sendall(signed("GET", "/b/k", {"range": text}))
        status, headers, content = read_answer(sock)
        assert (status, content) == (206, bytes(part))
        sock.sendall(signed("HEAD", "/b/k", {"range": text}))
        assert read_answer(sock, body=False)[1]["Content-Range"] == headers["Content-Range"]


# --- what it hands over -----------------------------------------------------------------------------------------------

GOOD = signed("GET", "/b/k")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(signed("PUT", "/b/k") + b"body", id="another method"),
        pytest.param(signed("GET", "/b/other"), id="another object"),
        pytest.param(signed("GET", "/b/k", credential=OTHER), id="another tenant"),
        pytest.param(
            signed("GET", "/b/k", credential=Credential("AK-acme", "another secret, long too")), id="a wrong secret"
        ),
        pytest.param(signed("GET", "/b/k", query="versionId=null"), id="a query"),
        pytest.param(signed("GET", "/b/k", query="x-id=PutObject"), id="another operation in the query"),
        pytest.param(signed("GET", "/b/k", query="x-id=GetObject&x-id=GetObject"), id="the operation twice"),
        pytest.param(GOOD.replace(b"/b/k ", b"/b/k? "), id="an empty query"),
        pytest.param(GOOD.replace(b"GET /b/k", b"HEAD /b/k"), id="another method than was signed"),
        pytest.param(GOOD.replace(b"GET /b/k", b"GET /b/%6b"), id="an escape"),
        pytest.param(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), id="another version"),
        pytest.param(GOOD.replace(b"GET /b/k", b"GET  /b/k"), id="two blanks"),
        pytest.param(GOOD[:-2] + b"if-none-match: *\r\n\r\n", id="a condition"),
        pytest.param(GOOD[:-2] + b"origin: http://x\r\n\r\n", id="an origin"),
        pytest.param(GOOD[:-2] + b"host: gate:9000\r\n\r\n", id="two hosts"),
        pytest.param(GOOD[:-2] + b"connection: close\r\n\r\n", id="the last request"),
        pytest.param(GOOD[:-2] + b"content-length: 3\r\n\r\nabc", id="a body"),
        pytest.param(GOOD[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="a coding"),
        pytest.param(GOOD[:-2] + b"accept: a\x00b\r\n\r\n", id="a NUL"),
        pytest.param(GOOD[:-2] + b"accept: a\r\n b\r\n\r\n", id="a folded header"),
        pytest.param(GOOD[:-2] + b"accept: a\nx: b\r\n\r\n", id="a bare line feed"),
        pytest.param(GOOD[:-2] + b"accept : a\r\n\r\n", id="a blank before the colon"),
        pytest.param(GOOD[:-2] + b"accept: \xc3\xa9\r\n\r\n", id="bytes beyond ASCII"),
        pytest.param(signed("GET", "/b/k", host="b.s3.example.com:9000"), id="a host that names a bucket"),
        pytest.param(b"GET /b/k HTTP/1.1\r\nhost: gate\r\n\r\n", id="no identity"),
        pytest.param(b"\r\n" + GOOD, id="a blank line first"),
        pytest.param(b"BREW", id="no method"),
        pytest.param(b"GET /" + b"x" * 20_000, id="a head that is too long"),
    ],
)
def test_hands_over_what_it_is_not_sure_of(bench: Bench, request_: bytes) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    sock = bench.connect(listener=3)
    sock.sendall(request_)
    _, listener, received = bench.handed()[0]
    assert listener == 3
    assert request_.startswith(received)
    assert received
    assert bench.plane.connections == 0


def test_what_follows_an_answered_request_is_handed_over_alone(bench: Bench) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    sock = bench.connect()
    put = signed("PUT", "/b/k") + b"more"
    sock.sendall(GOOD + put)
    assert read_answer(sock)[2] == b"body"
    assert bench.handed()[0][2] == put


_RANGE_BODY = bytearray(random.Random(5).randbytes(1000))
_shared: list[Bench] = []


def _shared_bench() -> Bench:
    """One for all examples of a property; its objects stay, and its connections go."""
    if not _shared:
        made = Bench()
        made.publish("/b/range", _RANGE_BODY)
        made.publish("/b/k", bytearray(b"body"))
        _shared.append(made)
    _shared[0].forget()
    _shared[0].plane.handed()
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _close_shared() -> Iterator[None]:
    yield
    while _shared:
        _shared.pop().close()


PIECES = [
    *(
        b"GET ",
        b"HEAD ",
        b"PUT ",
        b"/b/k",
        b"?a",
        b"%6b",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b": ",
        b":",
        b" ",
        b"\t",
    ),
    *(
        b"host: gate:9000\r\n",
        b"Connection: keep-alive\r\n",
        b"connection: close\r\n",
        b"content-length: 0\r\n",
        b"\x00",
    ),
    *(b"accept: */*\r\n", b"x-amz-meta-a: b\r\n", b"range: bytes=0-1\r\n", b"range: bytes=9-\r\n", b"\xff"),
    *(
        b"content-length: 5\r\n",
        b"content-type: a/b\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"PUT",
        b"GET",
        b"0",
        b"+",
    ),
    *(
        b"expect: 100-continue\r\n",
        b"x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\n",
        b"x-amz-checksum-crc32: AAAAAA==\r\n",
    ),
]


PLAIN = [GOOD, signed("HEAD", "/b/k"), signed("GET", "/b/k", {"range": "bytes=1-2"})]
PLAIN_PUTS = [
    signed("PUT", "/b/k", more, query=query)
    for more, query in (
        ({"content-length": "4"}, ""),
        ({"content-length": "12345", "content-type": "text/plain; charset=utf-8"}, "x-id=PutObject"),
        ({"content-length": "00070", "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=", "content-type": ""}, ""),
    )
]


@settings(max_examples=800, deadline=None)
@given(data=st.data())
def test_answers_only_what_python_reads_and_believes_too(data: st.DataObject) -> None:
    request = data.draw(st.sampled_from([*PLAIN, *PLAIN_PUTS]))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(request) - 4))
        stop = data.draw(st.integers(start, min(start + 12, len(request) - 4)))
        request = request[:start] + data.draw(st.sampled_from([b"", *PIECES])) + request[stop:]
    end = request.find(b"\r\n\r\n")
    request = request[: end + 4]
    bench = _shared_bench()
    sock = bench.connect()
    sock.sendall(request)
    ready, _, _ = select.select([sock, bench.plane], [], [], PATIENCE_S)
    asked = None
    if sock not in ready:
        handed = bench.plane.handed()
        if handed:
            os.close(handed[0][0])
            assert handed[0][2] == request
            return
        [asked] = bench.plane.asked()
        fd, _, received = bench.plane.decline(asked[0])
        os.close(fd)
        assert received == request
    head = parse_head(request, end)
    assert head is not None
    assert (head.raw_path, head.closes, head.expects_continue) == ("/b/k", False, False)
    assert head.raw_query in ("", f"x-id={head.method.title()}Object")
    identity = Authenticator(TENANTS, time.time, 900, session_ttl_s=3600).authenticate(
        Request(head.method, head.raw_path, head.raw_query, head.headers)
    )
    assert identity.tenant.name == "acme"
    if asked is None:
        assert head.content_length == 0
        assert read_answer(sock, body=head.method == "GET")[0] in (200, 206)
        return
    assert (head.method, identity.payload) == ("PUT", UNSIGNED)
    assert head.headers.all_among(PLAIN_PUT_HEADERS)
    said = [head.headers.get(name) if name in head.headers else None for name in ("content-type", PLAIN_PUT_CHECKSUM)]
    assert asked[1:] == (0, "/b/k", head.content_length, *said)
    assert head.content_length > 0


# --- bytes that are not what they were --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["bytes=0-9", "bytes=3200000-4000000"])
def test_hands_over_when_one_of_the_first_blocks_is_bad(bench: Bench, text: str) -> None:
    body = bytearray(random.Random(6).randbytes(4 << 20))
    number = bench.publish("/b/k", body)
    body[70_000] ^= 1
    body[-7] ^= 1
    sock = bench.connect()
    request = signed("GET", "/b/k", {"range": text})
    sock.sendall(request)
    assert bench.handed()[0][2] == request
    assert bench.plane.corrupt() == [number]
    other = bench.connect()
    other.sendall(GOOD)
    assert bench.handed()[0][2] == GOOD
    assert bench.plane.withdraw(number) is True


def test_breaks_off_before_a_bad_block_leaves(bench: Bench) -> None:
    body = bytearray(random.Random(7).randbytes(8 << 20))
    number = bench.publish("/b/k", body)
    body[(6 << 20) + 5] ^= 1
    sock = bench.connect()
    sock.sendall(GOOD)
    with pytest.raises(ConnectionError):
        read_answer(sock)
    until(lambda: bench.plane.corrupt() == [number])
    until(lambda: bench.plane.readers(number) == 0)
    assert bench.plane.withdraw(number) is True
    assert bench.plane.counts()["sent_bytes"] <= 6 << 20


# --- publishing -------------------------------------------------------------------------------------------------------


def test_what_is_withdrawn_is_found_no_more_and_its_path_is_free(bench: Bench) -> None:
    first = bench.publish("/b/k", bytearray(b"first"))
    with pytest.raises(ValueError, match="path"):
        bench.publish("/b/k", bytearray(b"again"))
    bench.publish("/b/k", bytearray(b"the other tenant's"), tenant=1)
    assert bench.plane.withdraw(first) is True
    with pytest.raises(KeyError):
        bench.plane.withdraw(first)
    assert bench.publish("/b/k", bytearray(b"second")) > first
    sock = bench.connect()
    sock.sendall(signed("GET", "/b/k", credential=OTHER))
    assert read_answer(sock)[2] == b"the other tenant's"
    sock.sendall(GOOD)
    assert read_answer(sock)[2] == b"second"


def test_refuses_what_is_no_object(bench: Bench) -> None:
    body = bytearray(b"body")
    for count, blocks in ((0, array("Q")), (1, array("Q")), (1, array("Q", [1, 2]))):
        with pytest.raises(ValueError, match="digest"):
            bench.plane.publish(0, b"/b/k", b"", b"", [memoryview(body)] * count, blocks)
    with pytest.raises(ValueError, match="1 MiB"):
        bench.plane.publish(0, b"/" * (1 << 20), b"", b"", [memoryview(body)], digests(body))
    body.extend(b"nobody holds it")


def test_readers_get_whole_versions_while_they_are_replaced(bench: Bench) -> None:
    """Bytes are overwritten as soon as the plane has let go of them; no reader ever gets such bytes."""
    paths = [f"/b/{number}" for number in range(5)]
    stop = threading.Event()
    failures: list[BaseException] = []
    answered = [0]

    def read(seed: int, sock: socket.socket) -> None:
        chosen = random.Random(seed)
        try:
            while not stop.is_set():
                sock.sendall(signed("GET", chosen.choice(paths)))
                status, _, content = read_answer(sock)
                if status == 404:
                    continue
                assert len(set(content)) == 1, "bytes of two versions"
                assert content[0] != 0, "bytes that had been let go of"
                answered[0] += 1
        except ConnectionError:
            assert stop.is_set()
        except BaseException as error:
            failures.append(error)

    versions: dict[str, tuple[int, bytearray]] = {}
    leaving: dict[int, bytearray] = {}
    chosen = random.Random(8)

    def publish(path: str) -> None:
        body = bytearray(bytes([chosen.randrange(1, 256)]) * chosen.choice([100, 70_000, 2_500_000]))
        versions[path] = bench.publish(path, body), body

    def wipe(body: bytearray) -> None:
        body[:] = bytes(len(body))

    for path in paths:
        publish(path)
    threads = []
    for seed in range(6):
        threads.append(threading.Thread(target=read, args=(seed, bench.connect(send_buffer=30_000))))
        threads[-1].start()
    deadline = time.monotonic() + PATIENCE_S
    while answered[0] < 300 and time.monotonic() < deadline and not failures:
        path = chosen.choice(paths)
        number, body = versions[path]
        if bench.plane.withdraw(number):
            wipe(body)
        else:
            leaving[number] = body
        for number in bench.plane.released():
            wipe(leaving.pop(number))
        publish(path)
        for fd, listener, _ in bench.plane.handed():  # it was asked for between two versions
            with socket.socket(fileno=fd) as sock:
                sock.setblocking(True)
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                sock.setblocking(False)
                bench.plane.adopt(sock.fileno(), listener, False)
                sock.detach()
        time.sleep(0.001)
    stop.set()
    bench.plane.drain()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failures
    assert answered[0] >= 300


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "sent", "what"),
    [("idle_timeout_s", b"", "request"), ("header_timeout_s", b"GET /b", "head"), ("body_timeout_s", GOOD, "body")],
)
def test_cuts_what_takes_too_long(limit: str, sent: bytes, what: str) -> None:
    bench = Bench(**{limit: 0.3})
    try:
        bench.publish("/b/k", bytearray(5_000_000))
        sock = bench.connect(send_buffer=20_000)
        sock.sendall(sent)
        until(lambda: bench.plane.counts()["late"][what] == 1)
        until(lambda: bench.plane.connections == 0)
    finally:
        bench.close()


def test_what_has_just_been_adopted_is_never_late() -> None:
    """While a thread looks for late connections all the time, others come that are younger than its own now."""
    bench = Bench(threads=1)
    try:
        bench.plane.drain()  # from now on idle connections end when the thread looks, and not because they are late
        for _ in range(400):
            for _ in range(10):
                bench.plane.drain()  # has it look
                bench.connect()
            bench.forget()
        until(lambda: bench.plane.connections == 0)
        assert bench.plane.counts()["late"] == {"request": 0, "head": 0, "body": 0}
    finally:
        bench.close()


def test_cuts_an_answer_that_goes_too_slowly() -> None:
    bench = Bench(body_timeout_s=0.3, min_rate=1e12)
    try:
        bench.publish("/b/k", bytearray(20_000_000))
        sock = bench.connect(send_buffer=20_000)
        sock.sendall(GOOD)
        with pytest.raises(ConnectionError):
            while sock.recv(1000):
                time.sleep(0.001)
            raise ConnectionError
        until(lambda: bench.plane.counts()["late"]["body"] == 1)
    finally:
        bench.close()


def test_a_drain_ends_idle_connections_now_and_others_with_their_answer(bench: Bench) -> None:
    body = bytearray(random.Random(9).randbytes(5_000_000))
    bench.publish("/b/k", body)
    idle, busy, late = bench.connect(), bench.connect(send_buffer=20_000), bench.connect()
    busy.sendall(GOOD)
    until(bench.plane.used)
    late.sendall(GOOD[:20])
    time.sleep(0.1)
    bench.plane.drain()
    assert idle.recv(10) == b""
    late.sendall(GOOD[20:])
    assert read_answer(late)[1]["Connection"] == "close"
    assert late.recv(10) == b""
    assert read_answer(busy)[2] == bytes(body)


def test_close_cuts_what_is_left_and_lets_go_of_everything(bench: Bench) -> None:
    body = bytearray(5_000_000)
    number = bench.publish("/b/k", body)
    sock = bench.connect(send_buffer=20_000)
    sock.sendall(GOOD)
    until(lambda: bench.plane.readers(number) == 1)
    bench.plane.close()
    body.extend(b"nobody holds it")
    with pytest.raises(ConnectionError):
        read_answer(sock)
    assert bench.plane.connections == 0
    with pytest.raises(ValueError, match="closed"):
        bench.plane.handed()


def test_peers_that_go_away_leave_nothing(bench: Bench) -> None:
    number = bench.publish("/b/k", bytearray(5_000_000))
    for request in (b"", b"GET /", GOOD, GOOD * 2):
        sock = bench.connect(send_buffer=20_000)
        sock.sendall(request)
        sock.close()
    until(lambda: bench.plane.connections == 0)
    until(lambda: bench.plane.readers(number) == 0)
    assert bench.plane.withdraw(number) is True
