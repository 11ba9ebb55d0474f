"""The heads of messages: a request's, as far as it is of the common form, and a response's.

`parse_head` accepts a strict subset of RFC 9112: the origin form of the target, ASCII, one Content-Length or no body,
nothing folded, no transfer coding. Whatever else there may be is not judged here: the caller gives the connection to a
parser for all of HTTP.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from kvgate.messages import Headers, Response

METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})

_LONGEST_METHOD = max(map(len, METHODS))
_BEGINNING = re.compile(rf"({'|'.join(sorted(METHODS))}) ".encode())
_TEXT = bytes([9, 10, 13, *range(32, 127)])
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNUSUAL = frozenset({"transfer-encoding", "upgrade"})
_FRAMING = frozenset({"content-length", "expect", "connection"}) | _UNUSUAL
_MAX_LENGTH_DIGITS = 16
_MAX_HEADERS = 256
_MAX_KNOWN_NAMES = 1024

_known_names: dict[str, str] = {}
"""Header names as clients spell them, to lower case. Bounded; other spellings are looked at each time."""


class Head(NamedTuple):
    """A request's head. `nbytes` is its own length, `content_length` that of the body behind it."""

    method: str
    raw_path: str
    raw_query: str
    headers: Headers
    nbytes: int
    content_length: int
    expects_continue: bool
    closes: bool


def may_begin_head(data: bytes) -> bool:
    """Whether `data`, which has no blank line yet, can become a head of the common form."""
    return len(data) <= _LONGEST_METHOD or _BEGINNING.match(data) is not None


def parse_head(data: bytes, end: int) -> Head | None:
    """The head in front of `data`, whose blank line begins at `end`; None unless it is of the common form."""
    text = data[:end]
    if text.translate(None, _TEXT):
        return None
    lines = text.decode("ascii").split("\r\n")
    breaks = len(lines) - 1
    if breaks > _MAX_HEADERS or text.count(b"\r") != breaks or text.count(b"\n") != breaks:
        return None
    request_line = lines[0].split(" ")
    if len(request_line) != 3:
        return None
    method, target, version = request_line
    if version != "HTTP/1.1" or method not in METHODS or target[:1] != "/" or "#" in target or "\t" in target:
        return None
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        lower = _known_names.get(name) or _lower(name)
        if not (colon and lower):
            return None
        fields.append((lower, value.strip(" \t")))
    headers = Headers.lowered(fields)
    if "host" not in headers or headers.is_repeated("host"):
        return None
    raw_path, _, raw_query = target.partition("?")
    framing = _framing(headers) if headers.has_any(_FRAMING) else (0, False, False)
    return framing and Head(method, raw_path, raw_query, headers, end + 4, *framing)


def _framing(headers: Headers) -> tuple[int, bool, bool] | None:
    """What the fields say of the message, see Head, if they say it in the common way."""
    if headers.has_any(_UNUSUAL) or headers.repeats_any(_FRAMING):
        return None
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > _MAX_LENGTH_DIGITS:
        return None
    expected = headers.get("expect").lower()
    option = headers.get("connection", "keep-alive").lower()
    if expected not in ("", "100-continue") or option not in ("keep-alive", "close"):
        return None
    return int(length), bool(expected), option == "close"


def _lower(name: str) -> str:
    """A header name in lower case; empty unless it is one."""
    if not _TOKEN.fullmatch(name):
        return ""
    lower = name.lower()
    if len(_known_names) < _MAX_KNOWN_NAMES:
        _known_names[name] = lower
    return lower


def in_chunks(response: Response) -> bool:
    """Whether a response's body is sent in HTTP chunks, because its length is not known before its end."""
    return not isinstance(response.body, bytes) and response.body.nbytes is None


def field_lines(headers: Mapping[str, str]) -> str:
    """The lines of header fields. Raises ValueError for one with a line break in it."""
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if fields.count("\n") != len(headers) or fields.count("\r") != len(headers):
        raise ValueError("a response header has a line break in it")
    return fields


def encode(lines: str) -> bytes:
    """What is sent for the lines of a head."""
    return lines.encode("utf-8", "surrogateescape")


class HeadWriter:
    """Writes the heads of responses. The date is spelled once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._common = ""
        self._status_lines = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}

    def write(self, response: Response, *, close: bool) -> bytes:
        """The head of `response`; with `close`, it says that the connection ends.

        Raises ValueError for a header with a line break in it.
        """
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._common = time.strftime("Server: kvgate\r\nDate: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(second))
        nbytes = response.content_length
        if nbytes is None and response.status not in (204, 304):
            nbytes = len(response.body) if isinstance(response.body, bytes) else response.body.nbytes
        length = "" if nbytes is None else f"Content-Length: {nbytes}\r\n"
        if in_chunks(response):
            length = "Transfer-Encoding: chunked\r\n"
        status_line = self._status_lines.get(response.status) or f"HTTP/1.1 {response.status} \r\n"
        ending = "Connection: close\r\n\r\n" if close else "\r\n"
        return encode(f"{status_line}{field_lines(response.headers)}{length}{self._common}{ending}")
