"""Heads of requests: the common form is read as it is meant, and everything else is left to others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.messages import Response
from kvgate.server.http1.head import HeadWriter, may_begin_head, parse_head

GOOD = b"PUT /b/k?x=%20&y HTTP/1.1\r\nHost: h:1\r\nX-Amz-Date:  now \r\ncontent-LENGTH: 12\r\nX-amz-date: then"


def parsed(head: bytes) -> object:
    return parse_head(head + b"\r\n\r\nbody", len(head))


def test_the_common_form_is_read() -> None:
    head = parse_head(GOOD + b"\r\n\r\nbody", len(GOOD))
    assert head is not None
    assert (head.method, head.raw_path, head.raw_query) == ("PUT", "/b/k", "x=%20&y")
    assert (head.nbytes, head.content_length) == (len(GOOD) + 4, 12)
    assert head.headers.getall("x-amz-date") == ["now", "then"]
    assert (head.expects_continue, head.closes) == (False, False)


@pytest.mark.parametrize(
    ("line", "expects", "closes"), [("Expect: 100-Continue", True, False), ("Connection: Close", False, True)]
)
def test_what_is_asked_of_the_connection(line: str, expects: bool, closes: bool) -> None:
    data = f"GET / HTTP/1.1\r\nHost: h\r\n{line}".encode()
    head = parse_head(data + b"\r\n\r\n", len(data))
    assert head is not None
    assert (head.expects_continue, head.closes) == (expects, closes)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nHost: h",
        b"GET / HTTP/1.1",  # no Host
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h",
        b"get / HTTP/1.1\r\nHost: h",
        b"PATCH / HTTP/1.1\r\nHost: h",
        b"OPTIONS * HTTP/1.1\r\nHost: h",
        b"GET http://h/ HTTP/1.1\r\nHost: h",
        b"GET /#f HTTP/1.1\r\nHost: h",
        b"GET  / HTTP/1.1\r\nHost: h",
        b"GET / x HTTP/1.1\r\nHost: h",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded: x",
        b"GET / HTTP/1.1\r\nHost: h\r\nname : x",
        b"GET / HTTP/1.1\r\nHost: h\r\n: x",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon",
        b"GET / HTTP/1.1\r\nHost: h\nX: y",
        b"GET / HTTP/1.1\r\nHost: h\rX: y",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: \x00",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: \xc3\xa9",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: +1",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: ",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"9" * 17,
        b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked",
        b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nConnection: close",
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: more",
        b"GET / HTTP/1.1\r\nHost: h" + b"\r\nX: y" * 256,
    ],
)
def test_anything_else_is_left_to_a_whole_parser(head: bytes) -> None:
    assert parsed(head) is None


@given(st.integers(0, len(GOOD)), st.integers(0, 3), st.binary(max_size=3))
def test_no_change_of_a_head_makes_it_another_message(at: int, gone: int, new: bytes) -> None:
    """Whatever is understood after a change is one message whose lines say what was understood."""
    changed = GOOD[:at] + new + GOOD[at + gone :]
    end = (changed + b"\r\n\r\n").find(b"\r\n\r\n")
    head = parse_head(changed + b"\r\n\r\n", end)
    if head is None:
        return
    lines = changed[:end].split(b"\r\n")
    assert (
        lines[0] == f"{head.method} {head.raw_path}{'?' if b'?' in lines[0] else ''}{head.raw_query} HTTP/1.1".encode()
    )
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines[1:])]
    assert sorted(fields) == sorted((name.encode(), value.encode()) for name, value in head.headers.items())
    lengths = [value for name, value in fields if name == b"content-length"]
    assert head.content_length == (int(lengths[0]) if lengths else 0)
    assert len(lengths) <= 1
    assert not any(name == b"transfer-encoding" for name, _ in fields)


@pytest.mark.parametrize(
    ("data", "may"),
    [(b"G", True), (b"GET /x", True), (b"DELETE /", True), (b"yyyyyyyyy", False), (b"\r\nGET / H", False)],
)
def test_what_cannot_begin_a_head_is_known_early(data: bytes, may: bool) -> None:
    assert may_begin_head(data) is may


def test_a_response_head_holds_what_its_headers_say() -> None:
    head = HeadWriter().write(Response(206, {"ETag": '"é"'}, b"12345"), close=True)
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 206 Partial Content"
    assert {'ETag: "é"', "Content-Length: 5", "Connection: close", "Server: kvgate"} <= set(lines)
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in HeadWriter().write(Response(304), close=False)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb"])
def test_a_line_break_never_leaves_in_a_header(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        HeadWriter().write(Response(200, {"x-amz-meta-a": value}), close=False)
