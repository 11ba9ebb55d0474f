"""Heads of requests: whatever the front's own parser accepts, aiohttp's parser reads as the same message."""

from __future__ import annotations

import asyncio

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from fuzz.properties import Broken, must
from fuzz.targets.base import Target
from kvgate.server.http1.head import Head, may_begin_head, parse_head

_LIMITS = {"max_line_size": 1 << 16, "max_field_size": 1 << 16, "max_headers": 512}
_END = b"\r\n\r\n"
_SEEDS = (
    b"GET /b/k HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PUT /b/k?x=%20&y HTTP/1.1\r\nHost: h:1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
    b"POST /_kv/v1/match HTTP/1.1\r\nhost:h\r\ncontent-length: 0\r\nConnection: close\r\nx-a: \t b \r\n\r\nGET / ",
)
_WORDS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n ", b": ", b" :", b":", b"\x00", b"\xc3\xa9", b" ", b"\t", b"HTTP/1.0", b"HTTP/2.0"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 1\r\n", b"Content-Length: +1\r\n", b"Upgrade: h2c\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: upgrade\r\n",
        b"Host: x\r\n",
        b"Expect: x\r\n",
        b"GET ",
        b"#",
        b"http://h/",
    ),
)


def check(data: bytes) -> None:
    end = data.find(_END)
    if end < 0:
        return
    head = parse_head(data, end)
    if head is None:
        return
    must(may_begin_head(data[:end]), "a head is refused before it has come")
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, 1 << 16, **_LIMITS)
        messages, upgraded, _ = parser.feed_data(data[: head.nbytes])
    except HttpProcessingError as error:
        raise Broken(f"a head is read that is none: {error.message}") from error
    finally:
        loop.close()
    must(len(messages) == 1 and not upgraded, "a head is read as other than one message")
    _compare(head, messages[0][0])


def _compare(head: Head, message: object) -> None:
    raw = [(name.lower().decode(), value.decode()) for name, value in message.raw_headers]  # type: ignore[attr-defined]
    must(message.method == head.method, "another method")  # type: ignore[attr-defined]
    target = head.raw_path + (f"?{head.raw_query}" if head.raw_query else "")
    must(message.path.rstrip("?") == target.rstrip("?"), "another target")  # type: ignore[attr-defined]
    must(sorted(raw) == sorted(head.headers.items()), "other headers")
    must(not message.chunked and not message.upgrade, "a body that ends elsewhere")  # type: ignore[attr-defined]
    must(message.should_close is head.closes, "another end of the connection")  # type: ignore[attr-defined]


TARGETS = (Target("heads", 30_000, check, seeds=_SEEDS, words=_WORDS),)
