"""Single requests, byte by byte, that no SDK would make."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time

from kvgate.auth import sigv4
from tests.gateways import ALPHA, RunningGateway

CREDENTIAL = sigv4.Credential(ALPHA.access_key, ALPHA.secret_key)


def send(
    gateway: RunningGateway,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    payload_hash: str = sigv4.UNSIGNED_PAYLOAD,
    query: str = "",
    *,
    credential: sigv4.Credential = CREDENTIAL,
    now: float | None = None,
    port: int | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One signed request, its body as it is. Status, headers and body of the answer."""
    port = port or gateway.port
    wanted = {"host": f"127.0.0.1:{port}", **(headers or {})}
    signed = sigv4.sign(
        credential, method, path, query, wanted, region="us-east-1", now=now or time.time(), payload_hash=payload_hash
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path + (f"?{query}" if query else ""), skip_host=True, skip_accept_encoding=True)
        for name, value in {**wanted, **signed}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def signed_head(method: str, path: str, headers: dict[str, str]) -> bytes:
    """The bytes before the body of a signed request."""
    signed = sigv4.sign(
        CREDENTIAL, method, path, "", headers, region="us-east-1", now=time.time(), payload_hash=sigv4.UNSIGNED_PAYLOAD
    )
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (headers | signed).items()), "", ""]
    return "\r\n".join(lines).encode()


def send_and_hang_up(gateway: RunningGateway, path: str, promised: int, body: bytes) -> None:
    """A signed PUT that ends before its promised length."""
    headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(promised)}
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall(signed_head("PUT", path, headers) + body)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def raw_exchange(gateway: RunningGateway, request: bytes) -> bytes:
    """What the gateway answers to these bytes, until it ends the connection or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=2) as sock:
        sock.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer
