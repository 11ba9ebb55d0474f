"""PUTs through the native plane on real sockets, without a gateway: what it asks, where bodies go, what peers see."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import queue
import random
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvgate.auth.session import Sessions
from kvgate.auth.sigv4 import EMPTY_SHA256, Credential, sign
from kvgate.memory.digest import BlockDigest
from kvgate.memory.digest import extend_crc64nvme as crc64nvme
from tests.native.planes import HOST, OTHER, PATIENCE_S, TENANTS, Answers, Asked, Bench, put, read_answer, signed, until

MiB = 1 << 20
BODY = random.Random(1).randbytes(3 * MiB + 12_345)
ETAG = b'ETag: "stored"\r\n'
ENDED, LATE = -1, -2
HEAD_NBYTES = len(put("/b/k", b"0123456789")) - 10


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def views_of(room: bytearray, widths: tuple[int, ...]) -> list[memoryview]:
    """Views of all of `room`, of these widths in turn."""
    views, at = [], 0
    for width in itertools.cycle(widths or (len(room),)):
        views.append(memoryview(room)[at : at + width])
        at += width
        if at >= len(room):
            return views
    raise AssertionError


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send all of it meanwhile."""
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    yield
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def take(bench: Bench, asked: Asked, *, at_once: bool = False) -> bytes:
    """Receive the only upload that is under way, and answer it."""
    number, _, _, nbytes, _, _ = asked
    room, digest = bytearray(nbytes), BlockDigest()
    assert bench.receive(number, [room], digest, at_once=at_once) == 0
    assert digest.value == crc64nvme(room)
    bench.plane.answer(number, ETAG)
    return bytes(room)


def is_free(room: bytearray) -> bool:
    """Whether nobody holds the memory."""
    try:
        room.extend(b"!")
    except BufferError:
        return False
    return True


# --- what it asks -----------------------------------------------------------------------------------------------------


def test_it_asks_with_all_that_python_needs(bench: Bench) -> None:
    more = {"content-type": "text/plain; a=b", "x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}
    socks = [bench.connect() for _ in range(3)]
    socks[0].sendall(put("/bucket/a~key/1.x_-", b"12345", more))
    assert bench.asked()[0][1:] == (0, "/bucket/a~key/1.x_-", 5, "text/plain; a=b", "AAAAAAAAAAA=")
    socks[1].sendall(put("/b/k", bytes(70_000), credential=OTHER)[:-60_000])
    assert bench.asked()[0][1:] == (1, "/b/k", 70_000, None, None)
    token = Sessions(TENANTS, time.time, 3600, 900).issue("AK-acme", 600).token
    head = f"PUT /b?x-id=PutObject HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n"
    socks[2].sendall(f"{head}content-length: 7\r\nContent-Type: \r\n\r\n".encode())
    assert bench.asked()[0][1:] == (0, "/b", 7, "", None)
    assert bench.plane.asked() == []
    assert bench.plane.handed() == []
    assert bench.plane.connections == 3


def test_it_says_that_there_is_news(bench: Bench) -> None:
    def waits() -> bool:
        return not select.select([bench.plane], [], [], 0)[0]

    sock = bench.connect()
    assert waits()
    sock.sendall(put("/b/k", BODY[:100])[:-50])
    assert select.select([bench.plane], [], [], PATIENCE_S)[0]
    bench.plane.handed()
    assert waits()
    [(number, *_)] = bench.plane.asked()
    assert bench.plane.receive(number, [bytearray(100)], BlockDigest(), True) is None
    sock.sendall(BODY[50:100])
    assert select.select([bench.plane], [], [], PATIENCE_S)[0]
    bench.plane.handed()
    assert bench.plane.received() == [(number, 0)]


GOOD = put("/b/k", b"body")
NO_BODY = signed("PUT", "/b/k", {"content-length": "4"})


def _with(line: bytes, request: bytes = NO_BODY) -> bytes:
    return request[:-2] + line + b"\r\n\r\n" + b"body"


def _paid(payload: str, method: str = "PUT") -> bytes:
    headers = {"host": HOST, "content-length": "4"}
    headers |= sign(
        Credential("AK-acme", "secret of acme, long enough"),
        *(method, "/b/k", "", headers),
        region="us-east-1",
        now=time.time(),
        payload_hash=payload,
    )
    lines = [f"{method} /b/k HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", "body"]
    return "\r\n".join(lines).encode()


def _length(value: str) -> bytes:
    return signed("PUT", "/b/k", {"content-length": value}) + b"body"


def _more(name: str, value: str) -> bytes:
    return put("/b/k", b"body", {name: value})


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(signed("PUT", "/b/k", {"transfer-encoding": "chunked"}) + b"4\r\nbody\r\n0\r\n\r\n", id="chunked"),
        pytest.param(_with(b"transfer-encoding: chunked"), id="a coding and a length"),
        pytest.param(_with(b"transfer-encoding: identity"), id="another coding"),
        pytest.param(_more("expect", "200-ok"), id="another expectation"),
        pytest.param(_with(b"expect:"), id="an empty expectation"),
        pytest.param(signed("PUT", "/b/k", {"content-length": "0"}), id="nothing"),
        pytest.param(signed("PUT", "/b/k", {"content-length": "000"}), id="nothing in three digits"),
        pytest.param(signed("PUT", "/b/k") + b"body", id="no length"),
        pytest.param(_with(b"content-length: 4"), id="two lengths"),
        pytest.param(_with(b"content-length: 5"), id="two lengths that differ"),
        pytest.param(_length("4, 4"), id="two lengths in one"),
        pytest.param(_length("00000000000000004"), id="17 digits"),
        pytest.param(_length("+4"), id="a plus sign"),
        pytest.param(_length("-4"), id="a minus sign"),
        pytest.param(_length("0x4"), id="another base"),
        pytest.param(_length("4.0"), id="a fraction"),
        pytest.param(_length("4 4"), id="a blank between digits"),
        pytest.param(_length(""), id="an empty length"),
        pytest.param(_paid(hashlib.sha256(b"body").hexdigest()), id="a payload's sha256"),
        pytest.param(_paid(EMPTY_SHA256), id="the sha256 of nothing"),
        pytest.param(_paid("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), id="a signed stream"),
        pytest.param(_paid("STREAMING-UNSIGNED-PAYLOAD-TRAILER"), id="a stream with a trailer"),
        pytest.param(_more("range", "bytes=0-1"), id="a range"),
        pytest.param(_with(b"range: bytes=0-1"), id="a range, not signed"),
        pytest.param(_more("x-amz-checksum-mode", "ENABLED"), id="checksum mode"),
        pytest.param(_more("x-amz-checksum-crc32", "AAAAAA=="), id="another checksum"),
        pytest.param(_with(b"x-amz-sdk-checksum-algorithm: CRC64NVME"), id="a checksum's algorithm, not signed"),
        pytest.param(_with(b"x-amz-checksum-crc64nvme: AAAAAAAAAAA="), id="a checksum that is not signed"),
        pytest.param(_more("x-amz-meta-a", "b"), id="user metadata"),
        pytest.param(_more("x-amz-acl", "private"), id="an ACL"),
        pytest.param(_more("x-amz-tagging", "a=b"), id="tags"),
        pytest.param(_more("x-amz-copy-source", "/b/other"), id="a copy"),
        pytest.param(_more("if-none-match", "*"), id="a condition"),
        pytest.param(_more("content-encoding", "aws-chunked"), id="an encoding"),
        pytest.param(_more("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="), id="an MD5"),
        pytest.param(_more("origin", "http://x"), id="an origin"),
        pytest.param(_more("connection", "close"), id="the last request"),
        pytest.param(
            signed("PUT", "/b/k", {"content-length": "4"}, query="partNumber=1&uploadId=x") + b"body", id="a part"
        ),
        pytest.param(signed("PUT", "/b/k", {"content-length": "4"}, query="tagging") + b"body", id="a query"),
        pytest.param(
            signed("PUT", "/b/k", {"content-length": "4"}, query="x-id=GetObject") + b"body", id="another operation"
        ),
        pytest.param(
            put("/b/k", b"body", credential=Credential("AK-other", "secret of acme, long enough")),
            id="another tenant's secret",
        ),
        pytest.param(GOOD.replace(b"PUT /b/k", b"PUT /b/j"), id="another path than was signed"),
        pytest.param(put("/b/k", b"body").replace(b"/b/k", b"/b/%6b"), id="an escape"),
        pytest.param(GOOD.replace(b"PUT", b"put"), id="another method"),
        pytest.param(GOOD.replace(b"PUT", b"POST"), id="a POST"),
        pytest.param(GOOD.replace(b" HTTP/1.1", b" HTTP/1.0"), id="another version"),
        pytest.param(b"PUT /b/k HTTP/1.1\r\nhost: gate\r\ncontent-length: 4\r\n\r\nbody", id="no identity"),
        pytest.param(signed("GET", "/b/k", {"content-type": "text/plain"}), id="GET with Content-Type"),
        pytest.param(signed("GET", "/b/k", {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}), id="GET with a checksum"),
        pytest.param(signed("GET", "/b/k", {"x-amz-sdk-checksum-algorithm": "CRC64NVME"}), id="GET with an algorithm"),
        pytest.param(signed("GET", "/b/k", {"expect": "100-continue"}), id="GET with an expectation"),
        pytest.param(signed("GET", "/b/k", {"content-length": "4"}) + b"body", id="GET with a body"),
        pytest.param(signed("HEAD", "/b/k", {"content-type": "text/plain"}), id="HEAD with Content-Type"),
        pytest.param(signed("HEAD", "/b/k", {"content-length": "4"}) + b"body", id="HEAD with a body"),
    ],
)
def test_hands_over_what_it_is_not_sure_of(bench: Bench, request_: bytes) -> None:
    bench.publish("/b/k", bytearray(b"body"))
    sock = bench.connect(listener=3)
    sock.sendall(request_)
    [(_, listener, received)] = bench.handed()
    assert bench.plane.asked() == []
    assert listener == 3
    assert request_.startswith(received)
    assert received
    assert bench.plane.connections == 0


def test_what_is_handed_over_differs_only_there_from_what_it_asks_about(bench: Bench) -> None:
    for request in (
        *(GOOD, _length("0000000000000004"), _with(b"accept: */*"), _with(b"Connection: Keep-Alive")),
        *(_more("x-amz-sdk-checksum-algorithm", "CRC64NVME"), _more("expect", "100-continue")),
        _with(b"Expect: 100-Continue"),
    ):
        sock = bench.connect()
        sock.sendall(request)
        assert take(bench, bench.asked()[0]) == b"body"
        assert read_answer(sock)[0] == 200


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("nbytes", [1, 9_000, MiB - 1, MiB, MiB + 1, len(BODY)])
@pytest.mark.parametrize("widths", [(), (1, 4096, 0, 70_001, 3, 1_000_003), (0, 16_384), (1500,)])
def test_a_body_is_there_as_it_was_sent_with_its_digest(
    bench: Bench, nbytes: int, widths: tuple[int, ...], at_once: bool
) -> None:
    body = BODY[:nbytes]
    expected = BlockDigest()
    expected.update(body)
    sock = bench.connect()
    with sending(sock, put("/b/k", body)):
        [(number, *_)] = bench.asked()
        room, digest = bytearray(nbytes), BlockDigest()
        assert bench.receive(number, views_of(room, widths), digest, at_once=at_once) == 0
    assert room == body
    assert (digest.nbytes, digest.value, digest.blocks) == (nbytes, expected.value, expected.blocks)
    assert bench.plane.counts()["received_bytes"] == nbytes
    assert is_free(room)
    digest.update(b"it is the caller's again")
    bench.plane.answer(number, ETAG)
    assert read_answer(sock)[0] == 200


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("came", [0, 1, 1000, 4000])
def test_what_comes_with_the_head_is_part_of_the_body(bench: Bench, came: int, at_once: bool) -> None:
    body = BODY[:4000]
    request = put("/b/k", body)
    sock = bench.connect()
    sock.sendall(request[: len(request) - 4000 + came])
    [(number, *_)] = bench.asked()
    room, digest = bytearray(4000), BlockDigest()
    stopped = bench.plane.receive(number, views_of(room, (7, 1001)), digest, at_once)
    assert stopped == (0 if came == 4000 else None)
    if stopped is None:
        sock.sendall(request[len(request) - 4000 + came :])
        assert bench.received() == [(number, 0)]
    assert (bytes(room[:4000]), digest.value) == (body, crc64nvme(body))
    bench.plane.answer(number, b"")
    assert read_answer(sock)[0] == 200


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECTING = _more("expect", "100-continue")[: -len(b"body")]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_peer_that_waits_is_told_once_its_body_has_a_place(bench: Bench, at_once: bool) -> None:
    sock = bench.connect()
    for _ in range(2):
        sock.sendall(EXPECTING)
        [(number, *_)] = bench.asked()
        assert not select.select([sock], [], [], 0.05)[0]
        room = bytearray(4)
        assert bench.plane.receive(number, [room], BlockDigest(), at_once) is None
        assert sock.recv(1000) == CONTINUE
        sock.sendall(b"bo")
        sock.sendall(b"dy")
        assert bench.received() == [(number, 0)]
        assert room == b"body"
        bench.plane.answer(number, ETAG)
        assert read_answer(sock)[0] == 200


def test_a_peer_that_did_not_wait_is_not_told(bench: Bench) -> None:
    sock = bench.connect()
    sock.sendall(EXPECTING + b"body")
    assert take(bench, bench.asked()[0]) == b"body"
    assert read_answer(sock)[0] == 200
    sock.sendall(EXPECTING + b"b")
    [(number, *_)] = bench.asked()
    assert bench.plane.receive(number, [bytearray(4)], BlockDigest(), False) is None
    sock.sendall(b"ody")
    assert bench.received() == [(number, 0)]
    bench.plane.answer(number, ETAG)
    assert read_answer(sock)[0] == 200


def test_a_peer_that_waits_is_not_told_where_its_body_is_not_wanted(bench: Bench) -> None:
    sock = bench.connect()
    sock.sendall(EXPECTING)
    [(number, *_)] = bench.asked()
    fd, _, received = bench.plane.decline(number)
    with socket.socket(fileno=fd):
        assert received == EXPECTING
        assert not select.select([sock], [], [], 0)[0]
    sock = bench.connect()
    sock.sendall(EXPECTING)
    [(number, *_)] = bench.asked()
    bench.plane.refuse(number, b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", False)
    assert read_answer(sock)[0] == 503
    assert sock.recv(10) == b""  # what follows could be the body, or not


def test_a_peer_that_waits_and_has_gone_is_told_of(bench: Bench) -> None:
    sock = bench.connect()
    sock.sendall(EXPECTING)
    [(number, *_)] = bench.asked()
    sock.close()
    stopped = bench.plane.receive(number, [bytearray(4)], BlockDigest(), False)
    assert stopped or bench.received()[0][1]
    bench.plane.refuse(number, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", True)
    until(lambda: bench.plane.connections == 0)


def test_room_behind_the_body_stays_as_it_was(bench: Bench) -> None:
    sock = bench.connect()
    room = bytearray(b"." * 50)
    sock.sendall(put("/b/k", b"0123456789") + GOOD)
    [(number, *_)] = bench.asked()
    assert bench.receive(number, [memoryview(room)[:4], memoryview(room)[10:30]], BlockDigest()) == 0
    assert bytes(room) == b"0123......456789" + b"." * 34


@pytest.mark.parametrize("at_once", [False, True])
def test_several_uploads_at_once_do_not_mix(bench: Bench, at_once: bool) -> None:
    bodies = [random.Random(seed).randbytes(700_000 + 99_999 * seed) for seed in range(6)]
    socks = [bench.connect() for _ in bodies]
    with contextlib.ExitStack() as stack:
        for sock, (number, body) in zip(socks, enumerate(bodies), strict=True):
            stack.enter_context(sending(sock, put(f"/b/{number}", body)))
        rooms: dict[int, tuple[bytes, bytearray, BlockDigest]] = {}
        ended: list[tuple[int, int]] = []
        for number, _, path, nbytes, _, _ in bench.asked(len(bodies)):
            rooms[number] = bodies[int(path[3:])], bytearray(nbytes), BlockDigest()
            stopped = bench.plane.receive(number, views_of(rooms[number][1], (65_536,)), rooms[number][2], at_once)
            ended += [] if stopped is None else [(number, stopped)]
        until(lambda: ended.extend(bench.plane.received()) or len(ended) == len(bodies))
    assert sorted(ended) == [(number, 0) for number in sorted(rooms)]
    for number, (body, room, digest) in rooms.items():
        assert room == body
        assert digest.value == crc64nvme(body)
        bench.plane.answer(number, ETAG)
    for sock in socks:
        assert read_answer(sock)[0] == 200


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_answer_says_what_was_given_and_the_connection_goes_on(bench: Bench) -> None:
    bench.publish("/b/hot", bytearray(b"published"))
    sock = bench.connect()
    ids = set()
    for number in range(5):
        sock.sendall(put("/b/k", BODY[: 1000 * (number + 1)]))
        assert take(bench, bench.asked()[0], at_once=number % 2 == 0) == BODY[: 1000 * (number + 1)]
        status, headers, _ = read_answer(sock)
        ids.add(headers.pop("x-amz-request-id"))
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers.pop("Date"))
        assert (status, headers) == (200, {"ETag": '"stored"', "Content-Length": "0", "Server": "kvgate"})
        sock.sendall(signed("GET", "/b/hot"))
        _, headers, content = read_answer(sock)
        ids.add(headers["x-amz-request-id"])
        assert content == b"published"
    assert len(ids) == 10
    assert all(re.fullmatch("[0-9a-f]{16}", id_) for id_ in ids)
    until(lambda: bench.plane.counts()["GetObject"]["answers"][200] == 5)
    counts = bench.plane.counts()["PutObject"]
    assert counts["answers"] == {200: 5, 206: 0}
    assert sum(counts["latencies"]) == 5
    assert counts["seconds"] > 0


def test_an_upload_is_counted_where_its_peer_has_gone(bench: Bench) -> None:
    sock = bench.connect()
    sock.sendall(GOOD)
    [asked] = bench.asked()
    sock.close()
    take(bench, asked)
    until(lambda: bench.plane.connections == 0)
    assert bench.plane.counts()["PutObject"]["answers"][200] == 1


@pytest.mark.parametrize("cut", [0, 1, 100, HEAD_NBYTES - 1])
def test_requests_that_come_together_are_answered_in_order(bench: Bench, cut: int) -> None:
    """A PUT, a GET, two PUTs, a GET, and a PUT of which `cut` bytes come with them."""
    bench.publish("/b/hot", bytearray(b"published"))
    get = signed("GET", "/b/hot")
    last = put("/b/k", b"0123456789")
    sock = bench.connect()
    answers = Answers(sock)
    sock.sendall(put("/b/1", b"one") + get + put("/b/2", BODY[:5000]) + put("/b/3", b"3") + get + last[:cut])
    for path, body in (("/b/1", b"one"), ("/b/2", BODY[:5000]), ("/b/3", b"3")):
        [asked] = bench.asked()
        assert asked[2] == path
        assert take(bench, asked) == body
    for expected in (b"", b"published", b"", b"", b"published"):
        status, headers, content = answers.next()
        assert (status, content, "ETag" in headers) == (200, expected, True)
    sock.sendall(last[cut:])
    assert take(bench, bench.asked()[0]) == b"0123456789"
    assert answers.next()[0] == 200
    assert bench.plane.handed() == []
    assert bench.plane.asked() == []


def test_what_follows_an_upload_and_is_not_for_the_plane_is_handed_over_alone(bench: Bench) -> None:
    sock = bench.connect(listener=5)
    delete = signed("DELETE", "/b/k")
    sock.sendall(GOOD + delete)
    assert take(bench, bench.asked()[0]) == b"body"
    assert read_answer(sock)[0] == 200
    [(_, listener, received)] = bench.handed()
    assert (listener, received) == (5, delete)


def test_requests_that_come_byte_by_byte(bench: Bench) -> None:
    bench.publish("/b/hot", bytearray(b"published"))
    sock = bench.connect()
    answers = Answers(sock)
    requests = put("/b/1", b"0123456789") + signed("GET", "/b/hot") + put("/b/2", b"abc")

    def send() -> None:
        for byte in requests:
            sock.sendall(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    assert take(bench, bench.asked()[0]) == b"0123456789"
    assert take(bench, bench.asked()[0]) == b"abc"
    thread.join(PATIENCE_S)
    assert [answers.next()[2] for _ in range(3)] == [b"", b"published", b""]


@pytest.mark.parametrize("get_nbytes", [1, 1500, 100_000, 3_000_000])
def test_answers_to_a_peer_that_does_not_read_come_in_order(bench: Bench, get_nbytes: int) -> None:
    hot = bytearray(random.Random(2).randbytes(get_nbytes))
    bench.publish("/b/hot", hot)
    sock = bench.connect(send_buffer=1)
    answers = Answers(sock)
    requests = [put(f"/b/{number}", BODY[: 300 * number + 1]) + signed("GET", "/b/hot") * 3 for number in range(8)]

    def store() -> None:
        for number in range(8):
            assert take(bench, bench.asked()[0]) == BODY[: 300 * number + 1]

    with sending(sock, b"".join(requests)):
        thread = threading.Thread(target=store)
        thread.start()
        for _ in range(8):
            assert answers.next()[1]["Content-Length"] == "0"
            assert [answers.next()[2] for _ in range(3)] == [hot] * 3
        thread.join(PATIENCE_S)


def heads_that_fit(bench: Bench, send_buffer: int) -> int:
    """How many answers to HEAD fit into the socket of a peer that reads none of them."""
    sock = bench.connect(send_buffer=send_buffer)
    count = bench.plane.counts()["HeadObject"]["answers"][200]
    for fitting in range(1000):
        sock.sendall(signed("HEAD", "/b/hot"))
        deadline = time.monotonic() + 0.5
        while bench.plane.counts()["HeadObject"]["answers"][200] == count + fitting:
            if time.monotonic() > deadline:
                sock.close()
                return fitting
            time.sleep(0.001)
    raise AssertionError


def test_the_answer_to_a_long_upload_is_not_late_before_it_has_waited() -> None:
    bench = Bench(body_timeout_s=3, min_rate=1)
    try:
        bench.publish("/b/hot", bytearray(b"published"))
        fitting = heads_that_fit(bench, 1)
        sock = bench.connect(send_buffer=1)
        sock.sendall(signed("HEAD", "/b/hot") * fitting)
        sock.sendall(put("/b/k", bytes(40))[:-40])
        [(number, *_)] = bench.asked()
        assert bench.plane.receive(number, [bytearray(40)], BlockDigest(), False) is None
        for _ in range(40):
            time.sleep(0.085)
            sock.sendall(b"\0")
        assert bench.received() == [(number, 0)]
        bench.plane.answer(number, ETAG)
        time.sleep(0.8)  # the plane looks for late connections meanwhile
        assert bench.plane.counts()["late"]["body"] == 0
        answers = Answers(sock)
        for _ in range(fitting):
            answers.next(body=False)
        assert answers.next()[1]["ETag"] == '"stored"'
    finally:
        bench.close()


# --- refusals, and what Python takes ----------------------------------------------------------------------------------

NO = b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\nno"


def test_a_refusal_keeps_the_connection_or_ends_it(bench: Bench) -> None:
    sock = bench.connect()
    for closes in (False, False, True):
        sock.sendall(put("/b/k", BODY[:50_000]))
        [(number, *_)] = bench.asked()
        assert bench.receive(number, [bytearray(50_000)], BlockDigest()) == 0
        bench.plane.refuse(number, NO, closes)
        assert read_answer(sock) == (409, {"Content-Length": "2"}, b"no")
    Answers(sock).end()
    until(lambda: bench.plane.connections == 0)
    counts = bench.plane.counts()["PutObject"]
    assert (counts["answers"], sum(counts["latencies"])) == ({200: 0, 206: 0}, 0)


def test_a_refusal_between_other_requests_is_in_its_place(bench: Bench) -> None:
    sock = bench.connect()
    answers = Answers(sock)
    sock.sendall(put("/b/1", b"1") + put("/b/2", b"2") + put("/b/3", b"3"))
    for refused in (False, True, False):
        [(number, _, _, nbytes, _, _)] = bench.asked()
        assert bench.receive(number, [bytearray(nbytes)], BlockDigest()) == 0
        if refused:
            bench.plane.refuse(number, NO, False)
        else:
            bench.plane.answer(number, b"")
    assert [answers.next()[0] for _ in range(3)] == [200, 409, 200]


@pytest.mark.parametrize("came", [0, 1, 1000, 15_000])
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_declined_comes_back_with_all_that_was_read(bench: Bench, came: int, before: int) -> None:
    sock = bench.connect(listener=9)
    request = put("/b/k", BODY[:1_000_000])
    sent = request[: len(request) - 1_000_000 + came]
    sock.sendall(put("/b/before", b"x") * before + sent)
    for _ in range(before):
        take(bench, bench.asked()[0])
        assert read_answer(sock)[0] == 200
    [(number, *_)] = bench.asked()
    fd, listener, received = bench.plane.decline(number)
    with socket.socket(fileno=fd) as theirs:
        assert (fd, listener) == (number, 9)
        assert sent.startswith(received)
        assert bench.plane.connections == 0
        theirs.settimeout(PATIENCE_S)
        while len(received) < len(sent):
            received += theirs.recv(1 << 20)
        assert received == sent
        sock.sendall(b"more")
        assert theirs.recv(10) == b"more"
        theirs.setblocking(False)
        bench.plane.adopt(theirs.fileno(), 1, False)
        theirs.detach()
    sock.sendall(GOOD)
    assert take(bench, bench.asked()[0]) == b"body"
    assert read_answer(sock)[0] == 200


# --- peers that do not finish -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("came", [0, 10, 500_000])
def test_a_peer_that_ends_its_stream_can_read_why_it_was_refused(bench: Bench, came: int, at_once: bool) -> None:
    sock = bench.connect()
    request = put("/b/k", BODY)
    with sending(sock, request[: len(request) - len(BODY) + came]):
        [(number, *_)] = bench.asked()
        room = bytearray(len(BODY))
        if came > 10:
            assert bench.plane.receive(number, [room], BlockDigest(), at_once) is None
    sock.shutdown(socket.SHUT_WR)
    if came > 10:
        assert bench.received() == [(number, ENDED)]
    else:
        assert bench.receive(number, [room], BlockDigest(), at_once=at_once) == ENDED
    assert is_free(room)
    assert room[:came] == BODY[:came]
    with pytest.raises(ValueError, match="not whole"):
        bench.plane.answer(number, ETAG)
    bench.plane.refuse(number, NO, False)  # ends it all the same: nobody knows where a next request would begin
    answers = Answers(sock)
    assert answers.next()[0] == 409
    answers.end()
    until(lambda: bench.plane.connections == 0)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_reset_is_told_as_one(bench: Bench, at_once: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.setblocking(False)
    bench.plane.adopt(theirs.fileno(), 0, False)
    theirs.detach()
    ours.sendall(put("/b/k", BODY[:1000])[:-500])
    [(number, *_)] = bench.asked()
    if not at_once:
        assert bench.plane.receive(number, [bytearray(1000)], BlockDigest(), False) is None
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    if at_once:
        assert bench.receive(number, [bytearray(1000)], BlockDigest(), at_once=True) == errno.ECONNRESET
    else:
        assert bench.received() == [(number, errno.ECONNRESET)]
    bench.plane.refuse(number, NO, True)
    until(lambda: bench.plane.connections == 0)


@pytest.mark.parametrize("limits", [{"body_timeout_s": 0.3}, {"body_timeout_s": 0.3, "min_rate": 1e12}])
def test_a_body_that_comes_too_slowly_is_told_as_late(limits: dict[str, float]) -> None:
    bench = Bench(**limits)
    try:
        sock = bench.connect()
        sock.sendall(put("/b/k", BODY[:100_000])[:-90_000])
        [(number, *_)] = bench.asked()
        time.sleep(0.7)  # what the event loop has, nobody cuts
        room = bytearray(100_000)
        assert bench.plane.receive(number, [room], BlockDigest(), True) is None
        rows: list[tuple[int, int]] = []

        def send_some() -> bool:
            if "min_rate" in limits:
                sock.sendall(b"x")
            rows.extend(bench.plane.received())
            return bool(rows)

        until(send_some)
        assert rows == [(number, LATE)]
        assert bench.plane.counts()["late"] == {"request": 0, "head": 0, "body": 1}
        assert is_free(room)
        bench.plane.refuse(number, NO, True)
        assert read_answer(sock)[0] == 409
        until(lambda: bench.plane.connections == 0)
    finally:
        bench.close()


def test_a_refused_peer_that_has_sent_more_reads_the_answer(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours:
        theirs.setblocking(False)
        bench.plane.adopt(theirs.fileno(), 0, False)
        theirs.detach()
        ours.settimeout(PATIENCE_S)
        ours.sendall(GOOD)
        [(number, *_)] = bench.asked()
        ours.sendall(bytes(200_000))
        assert bench.receive(number, [bytearray(4)], BlockDigest()) == 0
        bench.plane.refuse(number, NO, True)
        assert read_answer(ours)[0] == 409
        with contextlib.suppress(ConnectionError):
            while True:
                ours.sendall(bytes(10_000))
        until(lambda: bench.plane.connections == 0)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_drain_ends_connections_with_the_answers_to_their_uploads(bench: Bench) -> None:
    idle, asking, receiving = bench.connect(), bench.connect(), bench.connect()
    receiving.sendall(put("/b/k", b"0123456789")[:-5])
    [(number, *_)] = bench.asked()
    assert bench.plane.receive(number, [bytearray(10)], BlockDigest(), True) is None
    asking.sendall(GOOD)
    [asked] = bench.asked()
    bench.plane.drain()
    Answers(idle).end()
    until(lambda: bench.plane.connections == 2)
    take(bench, asked)
    receiving.sendall(b"56789")
    assert bench.received() == [(number, 0)]
    bench.plane.answer(number, ETAG)
    for sock in (asking, receiving):
        answers = Answers(sock)
        status, headers, _ = answers.next()
        assert (status, headers["Connection"]) == (200, "close")
        answers.end()
    until(lambda: bench.plane.connections == 0)


def _asked_and_not_told(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    sock.sendall(GOOD)
    assert select.select([bench.plane], [], [], PATIENCE_S)[0]


def _asked(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    sock.sendall(GOOD)
    bench.asked()


def _receiving(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    sock.sendall(put("/b/k", BODY[: len(room)])[:-1])
    [(number, *_)] = bench.asked()
    assert bench.plane.receive(number, views_of(room, (7, 500)), digest, True) is None
    with pytest.raises(RuntimeError, match="one thread"):
        digest.update(b"!")
    assert not is_free(room)


def _received_and_not_told(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    _receiving(bench, sock, room, digest)
    bench.plane.handed()
    sock.sendall(BODY[len(room) - 1 : len(room)])
    assert select.select([bench.plane], [], [], PATIENCE_S)[0]


def _received(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    _received_and_not_told(bench, sock, room, digest)
    assert bench.received()[0][1] == 0


def _late_and_not_told(bench: Bench, sock: socket.socket, room: bytearray, digest: BlockDigest) -> None:
    _receiving(bench, sock, room, digest)
    bench.plane.handed()
    sock.shutdown(socket.SHUT_WR)
    assert select.select([bench.plane], [], [], PATIENCE_S)[0]


@pytest.mark.parametrize(
    "at", [_asked_and_not_told, _asked, _receiving, _received_and_not_told, _received, _late_and_not_told]
)
@pytest.mark.parametrize("forgotten", [False, True])
def test_close_lets_go_of_everything(
    at: Callable[[Bench, socket.socket, bytearray, BlockDigest], None], forgotten: bool
) -> None:
    room, digest = bytearray(100_000), BlockDigest()
    references, descriptors = sys.getrefcount(digest), len(os.listdir("/proc/self/fd"))
    bench = Bench()
    sock = bench.connect()
    at(bench, sock, room, digest)
    if forgotten:
        del bench.plane
    else:
        bench.plane.close()
        assert bench.plane.connections == 0
    with pytest.raises(ConnectionError):
        Answers(sock).next()
    bench.forget()
    sock.close()
    assert is_free(room)
    digest.update(b"mine")
    assert sys.getrefcount(digest) == references
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_closed_plane_says_so(bench: Bench) -> None:
    bench.plane.close()
    calls: list[Callable[[], object]] = [
        bench.plane.asked,
        bench.plane.received,
        lambda: bench.plane.receive(1, [bytearray(1)], BlockDigest(), True),
        lambda: bench.plane.answer(1, b""),
        lambda: bench.plane.refuse(1, b"", True),
        lambda: bench.plane.decline(1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


# --- wrong uses -------------------------------------------------------------------------------------------------------


def test_numbers_that_do_not_wait_are_refused(bench: Bench) -> None:
    plane = bench.plane

    def refuses(number: int) -> None:
        for call in (
            lambda: plane.receive(number, [bytearray(10)], BlockDigest(), False),
            lambda: plane.answer(number, b""),
            lambda: plane.refuse(number, b"", False),
            lambda: plane.decline(number),
        ):
            with pytest.raises(KeyError, match=str(number)):
                call()

    sock = bench.connect()
    for number in (-1, 0, 10_000, (1 << 31) - 1, -(1 << 31)):
        refuses(number)
    sock.sendall(put("/b/k", b"0123456789")[:-1])
    [(number, *_)] = bench.asked()
    assert plane.receive(number, [bytearray(10)], BlockDigest(), False) is None
    refuses(number)
    sock.sendall(b"9")
    assert bench.received() == [(number, 0)]
    for call in (
        lambda: plane.receive(number, [bytearray(10)], BlockDigest(), False),
        lambda: plane.decline(number),
    ):
        with pytest.raises(ValueError, match="place already"):
            call()
    plane.answer(number, b"")
    refuses(number)
    assert read_answer(sock)[0] == 200


def test_a_receive_that_cannot_be_is_refused_and_another_one_goes_on(bench: Bench) -> None:
    plane = bench.plane
    sock = bench.connect()
    sock.sendall(put("/b/k", b"0123456789")[:-3])
    [(number, *_)] = bench.asked()
    used = BlockDigest()
    used.update(b"used")
    mine, room = BlockDigest(), bytearray(10)
    for views, digest, error, reason in (
        ([bytearray(4), bytearray(5)], mine, ValueError, "room for 9 of 10 bytes"),
        ([], mine, ValueError, "room for 0"),
        ([room, b"read-only!"], mine, BufferError, "."),
        ([memoryview(b"0123456789")], mine, BufferError, "."),
        ([room, 7], mine, TypeError, "."),
        (7, mine, TypeError, "sequence"),
        ([room], used, ValueError, "already"),
        ([room], object(), TypeError, "."),
        ([room], None, TypeError, "."),
    ):
        with pytest.raises(error, match=reason):
            plane.receive(number, views, digest, True)
        assert is_free(room)
        del room[10:]
    with pytest.raises(ValueError, match="not whole"):
        plane.answer(number, b"")
    mine.update(b"")
    assert plane.receive(number, [room], mine, True) is None
    other = bench.connect()
    other.sendall(GOOD)
    [(second, *_)] = bench.asked()
    with pytest.raises(RuntimeError, match="one thread"):
        plane.receive(second, [bytearray(4)], mine, True)  # it is of the first, which is not whole
    plane.decline(second)
    os.close(second)
    sock.sendall(b"789")
    assert bench.received() == [(number, 0)]
    assert (bytes(room), mine.value) == (b"0123456789", crc64nvme(b"0123456789"))
    plane.answer(number, ETAG)
    assert read_answer(sock)[0] == 200


def test_a_refusal_before_the_body_has_come_ends_the_connection(bench: Bench) -> None:
    """Else the body would be taken for requests."""
    sock = bench.connect()
    sock.sendall(put("/b/k", signed("GET", "/b/hidden")))
    [(number, *_)] = bench.asked()
    bench.plane.refuse(number, NO, False)
    answers = Answers(sock)
    assert answers.next()[0] == 409
    answers.end()
    assert bench.plane.handed() == []


# --- everything at once -----------------------------------------------------------------------------------------------


class Loop:
    """An event loop that stores what is uploaded, and now and then declines or refuses it."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.stored: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self.stop = threading.Event()
        self._coming: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._under_way: dict[int, tuple[str, bytearray, BlockDigest]] = {}
        self._chosen = random.Random(seed)

    def connect(self) -> socket.socket:
        """A connection to the plane. For any thread; all else is for the one that runs this."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(PATIENCE_S)
        self._coming.put(theirs)
        return ours

    def run(self) -> None:
        while not self.stop.is_set() or self.bench.plane.connections or not self._coming.empty():
            select.select([self.bench.plane], [], [], 0.005)
            while not self._coming.empty():
                theirs = self._coming.get()
                self.bench.plane.adopt(theirs.fileno(), 0, False)
                theirs.detach()
            for fd, _, _ in self.bench.plane.handed():
                os.close(fd)
            for number, _, path, nbytes, _, _ in self.bench.plane.asked():
                self._open(number, path, nbytes)
            for number, stopped in self.bench.plane.received():
                self._end(number, stopped, *self._under_way.pop(number))

    def _open(self, number: int, path: str, nbytes: int) -> None:
        if self._chosen.random() < 0.05:
            os.close(self.bench.plane.decline(number)[0])
            return
        room, digest = bytearray(nbytes), BlockDigest()
        widths = self._chosen.choice([(), (4096, 1), (300_000, 17)])
        stopped = self.bench.plane.receive(number, views_of(room, widths), digest, self._chosen.random() < 0.5)
        if stopped is None:
            self._under_way[number] = path, room, digest
        else:
            self._end(number, stopped, path, room, digest)

    def _end(self, number: int, stopped: int, path: str, room: bytearray, digest: BlockDigest) -> None:
        assert is_free(room)
        del room[-1:]
        if stopped:
            self.bench.plane.refuse(number, NO, True)
        elif self._chosen.random() < 0.1:
            self.refused.add(path)
            self.bench.plane.refuse(number, NO, self._chosen.random() < 0.3)
        else:
            assert digest.value == crc64nvme(room)
            self.stored[path] = bytes(room)
            self.bench.plane.answer(number, ETAG)


def test_what_is_acknowledged_is_what_was_sent_whatever_happens(bench: Bench) -> None:
    hot = bytearray(random.Random(3).randbytes(150_000))
    number = bench.publish("/b/hot", hot)
    loop = Loop(bench, seed=4)
    numbers = itertools.count()
    acknowledged: dict[str, bytes] = {}
    failures: list[BaseException] = []

    def burst(chosen: random.Random, sock: socket.socket) -> None:
        """Several requests in pieces, and their answers meanwhile; or some of them, and an end."""
        requests: list[tuple[str, bytes]] = []
        data = b""
        for _ in range(chosen.randrange(1, 5)):
            if chosen.random() < 0.3:
                requests.append(("", b""))
                data += signed("GET", "/b/hot")
            else:
                size = chosen.choice([1, 100, 5000, 60_000, 1_100_000])
                at = chosen.randrange(1000)
                requests.append((f"/b/{next(numbers)}", BODY[at : at + chosen.randrange(size) + 1]))
                data += put(*requests[-1])
        cut = chosen.random() < 0.2
        data = data[: chosen.randrange(len(data))] if cut else data
        piece = chosen.choice([100_000_000, 50_000, 3000])

        def send() -> None:
            with contextlib.suppress(OSError):
                for start in range(0, len(data), piece):
                    sock.sendall(data[start : start + piece])
                if cut:
                    sock.shutdown(socket.SHUT_WR if piece > 3000 else socket.SHUT_RDWR)

        thread = threading.Thread(target=send)
        thread.start()
        answers = Answers(sock)
        try:
            for path, body in requests:
                status, _, content = answers.next()
                if not path:
                    assert (status, content) == (200, hot)
                elif status == 200:
                    acknowledged[path] = body
                else:
                    assert (status, content) == (409, b"no")
        finally:
            thread.join(PATIENCE_S)

    def client(seed: int) -> None:
        chosen = random.Random(seed)
        socks = [loop.connect() for _ in range(3)]
        try:
            for _ in range(150):
                at = chosen.randrange(len(socks))
                try:
                    burst(chosen, socks[at])
                except OSError:
                    socks[at].close()
                    socks[at] = loop.connect()
        except BaseException as error:
            failures.append(error)
        finally:
            for sock in socks:
                sock.close()

    def serve() -> None:
        try:
            loop.run()
        except BaseException as error:
            failures.append(error)

    serving = threading.Thread(target=serve)
    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in (serving, *clients):
        thread.start()
    for thread in clients:
        thread.join(2 * PATIENCE_S)
    loop.stop.set()
    serving.join(PATIENCE_S)
    assert not serving.is_alive()
    assert not failures
    assert bench.plane.connections == 0
    assert not loop._under_way
    assert len(acknowledged) > 300
    assert {path: loop.stored[path] for path in acknowledged} == acknowledged
    assert not loop.refused & acknowledged.keys()
    assert bench.plane.counts()["PutObject"]["answers"][200] == len(loop.stored)
    assert bench.plane.withdraw(number) is True
