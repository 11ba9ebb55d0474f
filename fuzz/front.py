"""Bytes that are no good HTTP, on sockets, against a whole gateway in a process of its own.

The gateway must stay up, answer nothing but clear statuses, log no error, and afterwards have no descriptor more than
before. An input is good requests, signed at the time of sending, and some damage to their bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fuzz.draw import Draw, random_inputs
from fuzz.properties import Broken, is_clear, must
from fuzz.saved import keep
from kvgate.auth.sigv4 import UNSIGNED_PAYLOAD, Credential, sign
from tests.gateways import ALPHA, RunningGateway, default_config

NAME = "front"
SHARE = 20_000

_CREDENTIAL = Credential(ALPHA.access_key, ALPHA.secret_key)
_AT_ONCE = 32
_BATCH = 500
_QUIET_S = 0.1
"""A gateway that says nothing for so long waits for more."""
_PATIENCE_S = 20.0
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")  # aiohttp answers in whatever version it was asked
_LOGGED = re.compile(r"Traceback|\bERROR\b|\bCRITICAL\b")

_TARGETS = (
    *("/alpha-bucket/k", "/alpha-bucket?list-type=2", "/", "/_kv/v1/stats", "/alpha-bucket/k?partNumber=1", "/%ff"),
)
_HEADERS = (
    *("", "Expect: 100-continue", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked"),
    *("Connection: close", "Content-Encoding: gzip", "Connection: upgrade\r\nUpgrade: websocket", "Range: bytes=0-0"),
    *("X-A: " + "a" * 17_000, "X-A: \u00e9", "Cookie: a=b; c", "Content-Length: 5", "Sec-WebSocket-Key: x"),
    *("TE: trailers", "X-A:", "X: " * 300),
)
_WORDS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b"\xff", b"\r\n folded", b"HTTP/1.0"),
    *(b"HTTP/9.9", b"HTTP/0.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n"),
    *(b"OPTIONS * HTTP/1.1\r\n", b"GET ", b"http://[bad/", b"http://a/b", b"//", b"#f", b"?", b"%", b"0\r\n\r\n"),
    *(b"5\r\nhello\r\n", b"ffffffffffffffffff\r\n", b"Content-Length: -1\r\n"),
    *(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\nHost: b\r\n"),
    *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"a" * 20_000, b"X: y\r\n" * 300, b"-1"),
)


def built(data: bytes, port: int) -> list[bytes]:
    """The pieces that an input sends."""
    draw = Draw(data)
    wire = b"".join([_request(draw, port) for _ in range(1 + draw.one_in(4))])
    for _ in range(draw.below(4)):
        at = draw.below(min(len(wire), 400) + 1)
        wire = (
            wire[:at]
            + (draw.pick(_WORDS) if draw.below(4) else draw.some(8))
            + wire[at + draw.pick((0, 0, 1, 3, 50)) :]
        )
    cuts = sorted(draw.below(len(wire) + 1) for _ in range(draw.pick((0, 0, 1, 2))))
    return [wire[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


def _request(draw: Draw, port: int) -> bytes:
    method, target = draw.pick(("GET", "PUT", "HEAD", "DELETE", "POST")), draw.pick(_TARGETS)
    body = draw.some(20) if method in ("PUT", "POST") else b""
    headers = {"host": f"127.0.0.1:{port}"}
    if body:
        headers["content-length"] = str(len(body))
    path, _, query = target.partition("?")
    signed = sign(
        _CREDENTIAL, method, path, query, headers, region="us-east-1", now=time.time(), payload_hash=UNSIGNED_PAYLOAD
    )
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in (headers | signed).items())]
    lines += [line for line in (draw.pick(_HEADERS) if draw.one_in(3) else "",) if line]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fuzz(count: int, seed: int) -> tuple[int, list[Path]]:
    """Send `count` inputs to a gateway, until some break a property: how many were sent, and where those are saved."""
    inputs = list(random_inputs(count, seed))
    with tempfile.TemporaryDirectory() as folder:
        gateway = RunningGateway(Path(folder), default_config(Path(folder)))
        gateway.start()
        try:
            for first in range(0, count, _BATCH):
                batch = inputs[first : first + _BATCH]
                try:
                    check(gateway, batch)
                except Broken as finding:
                    print(f"--- {NAME}\n{finding}")
                    return first + len(batch), [keep(NAME, data) for data in _blamed(gateway, batch)]
        finally:
            gateway.kill()
    return count, []


def check(gateway: RunningGateway, batch: Iterable[bytes]) -> None:
    """Send inputs, many at the same time. Raises Broken."""
    descriptors, logged = gateway.descriptors(), len(gateway.log)
    asyncio.run(_send_all(gateway.port, list(batch)))
    must(gateway.process is not None and gateway.process.poll() is None, "the gateway has ended")
    deadline = time.monotonic() + _PATIENCE_S  # the machine may be busy
    while not (ready := gateway.is_ready()) and time.monotonic() < deadline:
        time.sleep(0.01)
    must(ready, "the gateway is not ready any more")
    while gateway.descriptors() > descriptors and time.monotonic() < deadline:
        time.sleep(0.01)
    must(gateway.descriptors() <= descriptors, "descriptors are left open")
    errors = _LOGGED.search(gateway.log[logged:])
    must(
        errors is None, f"the gateway logs an error: {gateway.log[logged:][errors.start() :][:2000] if errors else ''}"
    )


def _blamed(gateway: RunningGateway, batch: list[bytes]) -> list[bytes]:
    """The first input of a batch that breaks a property alone; the whole batch when none does."""
    for data in batch:
        if gateway.process is None or gateway.process.poll() is not None:
            gateway.start()
        try:
            check(gateway, [data])
        except Broken:
            return [data]
    return batch


async def _send_all(port: int, batch: list[bytes]) -> None:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def send(data: bytes) -> None:
        async with turns:
            await _send(port, built(data, port))

    await asyncio.gather(*(send(data) for data in batch))


async def _send(port: int, pieces: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            while received := await asyncio.wait_for(reader.read(1 << 16), _QUIET_S):
                answer += received
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    must(not answer or _STATUS.match(answer), f"the answer is no HTTP: {answer[:100]!r}")
    for status in _STATUS.findall(answer):
        must(is_clear(int(status)) or status == b"100", f"{b''.join(pieces)[:300]!r} is answered {answer[:300]!r}")
