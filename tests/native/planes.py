"""A native plane for tests of it alone, its connections, and requests as bytes."""

from __future__ import annotations

import contextlib
import socket
import time
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from typing_extensions import Buffer

from kvgate.auth.sigv4 import Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.memory.digest import BlockDigest
from kvgate.metrics import LATENCY_BUCKETS_S

native = pytest.importorskip("kvgate.native", reason="the native extension was not built")
from kvgate.auth.native_credentials import native_credentials  # noqa: E402

TENANTS = Tenants(
    {
        name: TenantConfig((AccessKeyConfig(f"AK-{name}", Secret(f"secret of {name}, long enough")),))
        for name in ("acme", "other")
    }
)
ACME = Credential("AK-acme", "secret of acme, long enough")
OTHER = Credential("AK-other", "secret of other, long enough")
HOST = "gate:9000"
HEAD_LINES = b'ETag: "e"\r\nContent-Type: binary/octet-stream\r\n'
CHECKSUMS = b"x-amz-checksum-type: FULL_OBJECT\r\n"
PATIENCE_S = 30.0


Asked = tuple[int, int, str, int, str | None, str | None]
"""Number, tenant, path, length, Content-Type and checksum, see Plane.asked."""


class Bench:
    """A plane, and the connections and objects that a test makes."""

    def __init__(self, **changes: Any) -> None:
        options: dict[str, Any] = {
            "threads": 2,
            "domains": ("s3.example.com",),
            "max_header": 16384,
            "idle_timeout_s": 60,
            "header_timeout_s": 60,
            "body_timeout_s": 60,
            "min_rate": 0,
            "latency_buckets_s": LATENCY_BUCKETS_S,
        }
        self.plane = native.Plane(
            native_credentials(TENANTS, max_skew_s=900, session_ttl_s=3600), **(options | changes)
        )
        self._sockets: list[socket.socket] = []

    def connect(self, *, listener: int = 7, exact: bool = False, send_buffer: int = 0) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        if send_buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ours.settimeout(PATIENCE_S)
        self.plane.adopt(theirs.fileno(), listener, exact)
        theirs.detach()
        self._sockets.append(ours)
        return ours

    def publish(self, path: str, body: bytearray, tenant: int = 0) -> int:
        return self.plane.publish(tenant, path.encode(), HEAD_LINES, CHECKSUMS, [memoryview(body)], digests(body))

    def handed(self) -> list[tuple[int, int, bytes]]:
        """What is handed over next; their sockets are closed at the end."""
        rows: list[tuple[int, int, bytes]] = []
        until(lambda: rows.extend(self.plane.handed()) or rows)
        self._sockets += [socket.socket(fileno=fd) for fd, _, _ in rows]
        return rows

    def asked(self, count: int = 1) -> list[Asked]:
        """The next `count` PUTs that it asks about."""
        rows: list[Asked] = []
        until(lambda: rows.extend(self.plane.asked()) or len(rows) >= count)
        assert len(rows) == count
        return rows

    def received(self) -> list[tuple[int, int]]:
        """The PUTs of which no more comes, when there is one."""
        rows: list[tuple[int, int]] = []
        until(lambda: rows.extend(self.plane.received()) or rows)
        return rows

    def receive(self, number: int, views: Sequence[Buffer], digest: BlockDigest, *, at_once: bool = False) -> int:
        """Receive a body, the only one that is under way, up to its end, whose reason this is."""
        stopped: int | None = self.plane.receive(number, views, digest, at_once)
        if stopped is None:
            [(ended, stopped)] = self.received()
            assert ended == number
        return stopped

    def forget(self) -> None:
        """Close every socket."""
        while self._sockets:
            self._sockets.pop().close()

    def close(self) -> None:
        self.plane.close()
        self.forget()


def digests(body: bytearray) -> array[int]:
    digest = BlockDigest()
    digest.update(memoryview(body))
    return digest.blocks


def signed(
    method: str,
    path: str,
    more: dict[str, str] | None = None,
    *,
    query: str = "",
    credential: Credential = ACME,
    host: str = HOST,
) -> bytes:
    unsigned = {"host": host, **(more or {})}
    headers = unsigned | sign(credential, method, path, query, unsigned, region="us-east-1", now=time.time())
    target = f"{path}?{query}" if query else path
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
    ).encode()


def put(path: str, body: bytes, more: dict[str, str] | None = None, *, credential: Credential = ACME) -> bytes:
    """A PUT as the plane takes it."""
    return signed("PUT", path, {"content-length": str(len(body)), **(more or {})}, credential=credential) + body


class Answers:
    """The answers that come on a connection, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()

    def next(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. Raises ConnectionError when it is broken off."""
        while (blank := self._data.find(b"\r\n\r\n")) < 0:
            self._more(65536)
        status_line, *lines = self._data[:blank].decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        start = blank + 4
        stop = start + (int(headers["Content-Length"]) if body else 0)
        while len(self._data) < stop:
            self._more(1 << 20)
        content = bytes(self._data[start:stop])
        del self._data[:stop]
        return int(status_line.split()[1]), headers, content

    def end(self) -> None:
        """Wait for the end of the connection. Raises AssertionError where anything comes before it."""
        with contextlib.suppress(ConnectionResetError):
            self._data += self._sock.recv(1)
        assert not self._data

    def _more(self, most: int) -> None:
        data = self._sock.recv(most)
        if not data:
            raise ConnectionError("the connection ended")
        self._data += data


def read_answer(sock: socket.socket, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
    """The next answer of a connection of which no more than that is awaited."""
    return Answers(sock).next(body=body)


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
