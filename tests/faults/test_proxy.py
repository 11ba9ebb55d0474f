"""The proxy does to a connection what its fault says, and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import (
    NONE,
    Bandwidth,
    Blackhole,
    Corrupt,
    Cut,
    Delay,
    FaultProxy,
    Refuse,
    Reply,
    Status,
    Truncate,
)

BODY = os.urandom(300_000)


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while piece := self.request.recv(65536):
            self.request.sendall(piece)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A peer that resets is what these tests are about."""


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    with _Server(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[FaultProxy]:
    with FaultProxy(echo_port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        yield client


def echoed(client: socket.socket, body: bytes, nbytes: int | None = None) -> bytes:
    """What comes back of `body`, up to `nbytes` or the end of the connection."""
    sender = threading.Thread(target=_send, args=(client, body))
    sender.start()
    received = receive(client, len(body) if nbytes is None else nbytes)
    sender.join()
    return received


def _send(client: socket.socket, body: bytes) -> None:
    with contextlib.suppress(OSError):  # the connection was to end
        client.sendall(body)


def receive(client: socket.socket, nbytes: int) -> bytes:
    received = b""
    while len(received) < nbytes and (piece := client.recv(65536)):
        received += piece
    return received


def test_without_a_fault_everything_passes(proxy: FaultProxy, client: socket.socket) -> None:
    assert echoed(client, BODY) == BODY
    assert (proxy.connections, proxy.open) == (1, 1)


def test_delay_holds_each_answer_once(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Delay(0.2)
    for _ in range(2):
        began = time.monotonic()
        assert echoed(client, b"x" * 1000) == b"x" * 1000
        assert time.monotonic() - began >= 0.2


def test_bandwidth_spreads_bytes_over_time(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Bandwidth(100_000)
    began = time.monotonic()
    assert echoed(client, BODY[:50_000]) == BODY[:50_000]
    assert time.monotonic() - began >= 0.4


def test_what_is_held_goes_on_when_the_fault_ends(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Bandwidth(1)
    client.sendall(BODY[:50_000])
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)
    proxy.fault = NONE
    assert receive(client, 50_000) == BODY[:50_000]


@pytest.mark.parametrize("after", [0, 1, 100_000])
def test_cut_ends_the_connection_after_so_many_bytes(proxy: FaultProxy, client: socket.socket, after: int) -> None:
    proxy.fault = Cut(after)
    received = b""
    try:
        received = echoed(client, BODY)
    except ConnectionResetError:  # what was under way to the proxy when it closed
        assert after == 0 or len(received) <= after
    assert len(received) <= after
    assert BODY.startswith(received)


def test_cut_counts_from_when_it_began(proxy: FaultProxy, client: socket.socket) -> None:
    assert echoed(client, b"x" * 1000) == b"x" * 1000
    proxy.fault = Cut(10)
    assert echoed(client, b"y" * 1000) == b"y" * 10
    assert client.recv(1) == b""


def test_reset_is_a_reset(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Cut(0, how="reset")
    client.sendall(b"x")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_truncate_leaves_bytes_out(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Truncate(70_000, 3)
    assert echoed(client, BODY, len(BODY) - 3) == BODY[:70_000] + BODY[70_003:]


@pytest.mark.parametrize("direction", ["request", "answer"])
def test_corrupt_flips_one_bit(proxy: FaultProxy, client: socket.socket, direction: str) -> None:
    proxy.fault = Corrupt(at=70_000, direction=direction)  # type: ignore[arg-type]
    received = echoed(client, BODY)
    wrong = [at for at, (one, other) in enumerate(zip(received, BODY, strict=True)) if one != other]
    assert wrong == [70_000]
    assert (received[70_000] ^ BODY[70_000]).bit_count() == 1


def test_corrupt_by_chance_flips_about_so_many(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Corrupt(every=10_000)
    received = echoed(client, BODY)
    wrong = sum(one != other for one, other in zip(received, BODY, strict=True))
    assert 10 <= wrong <= 90


def test_blackhole_says_nothing_until_it_ends(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Blackhole()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as late:
        for each in (client, late):
            each.sendall(b"hello")
            each.settimeout(0.1)
            with pytest.raises(TimeoutError):
                each.recv(5)
            each.settimeout(20)
        proxy.fault = NONE
        assert receive(client, 5) == receive(late, 5) == b"hello"


def test_refuse_ends_connections_and_refuses_new_ones_until_it_ends(proxy: FaultProxy, client: socket.socket) -> None:
    assert echoed(client, b"x") == b"x"
    port = proxy.port
    proxy.fault = Refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=20)
    proxy.fault = NONE
    assert proxy.port == port
    with socket.create_connection(("127.0.0.1", port), timeout=20) as again:
        assert echoed(again, BODY) == BODY


def test_status_answers_a_whole_request_by_itself(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Status(503)
    client.sendall(b"PUT /x HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)
    client.sendall(bytes(50_000))
    answer = receive(client, 1 << 20)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\n")


def test_reply_answers_anything(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Reply(b"-LOADING\r\n")
    client.sendall(b"*1\r\n$4\r\nPING\r\n")
    assert receive(client, 1 << 20) == b"-LOADING\r\n"


def test_a_server_that_ends_ends_its_connections() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy(listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client,
    ):
        server, _ = listener.accept()
        server.sendall(b"bye")
        server.close()
        assert receive(client, 100) == b"bye"
