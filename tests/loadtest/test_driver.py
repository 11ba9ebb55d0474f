"""The load client believes no reply that it has not checked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from driver import Driver, Exchange, pattern


@contextlib.contextmanager
def server(request_nbytes: int, reply: bytes) -> Iterator[int]:
    """Answers every `request_nbytes` received with the same reply, on a port of its own."""

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
            while sock.recv(request_nbytes, socket.MSG_WAITALL):
                sock.sendall(reply)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


BODY = pattern(1000)
GET = Exchange([b"get1", b"get2", b"get3"], payload_nbytes=1000)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_exchanges_bytes_and_latencies_are_counted(driver: Driver) -> None:
    with server(4, http(BODY)) as port:
        outcome = driver.run(port, GET, 2, 0.1)
    assert outcome.exchanges > 2
    assert outcome.untimed == 2
    assert outcome.received_nbytes == outcome.exchanges * len(http(BODY))
    assert 0.09 < outcome.wall_s < 5
    assert 0 < outcome.p50_us <= outcome.p99_us < outcome.wall_s * 1e6
    assert outcome.cpu_s > 0


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_share_the_connections_out(driver: Driver, threads: int) -> None:
    with server(4, http(BODY)) as port:
        outcome = driver.run(port, GET, 8, 0.1, threads)
    assert outcome.untimed == 8
    assert outcome.exchanges >= 8
    assert outcome.received_nbytes == outcome.exchanges * len(http(BODY))


@pytest.mark.parametrize("connections", [1, 2, 8])
def test_once_sends_each_request_once(driver: Driver, connections: int) -> None:
    with server(4, http(BODY)) as port:
        assert driver.once(port, GET, connections).exchanges == 3


def test_the_body_follows_each_head_and_the_tail_the_body(driver: Driver) -> None:
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                seen.append(sock.recv(1006, socket.MSG_WAITALL))
                sock.sendall(b"K")
                sock.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        exchange = Exchange([b"put1"], body_nbytes=1000, tail=b"\r\n", reply=1, expect=b"K")
        driver.once(listener.getsockname()[1], exchange, 1)
        thread.join()
    assert seen == [b"put1" + BODY + b"\r\n"]


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (http(b"<Code>SlowDown</Code>", "503 Slow Down"), "503 Slow Down"),
        (http(bytes(1000)), "other bytes than were stored"),
        (http(BODY[:-1] + b"!"), "other bytes than were stored"),
        (http(BODY[:10]), "other bytes than were stored"),
        (http(BODY) + b"HTTP", "more than the reply"),
        (http(bytes(4 << 20)), "longer than expected"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without Content-Length"),
    ],
)
def test_a_reply_that_is_not_as_expected_ends_the_run(driver: Driver, reply: bytes, complaint: str) -> None:
    with server(4, reply) as port, pytest.raises(RuntimeError, match=complaint):
        driver.run(port, GET, 1, 0.1)


def test_a_server_that_hangs_up_ends_the_run(driver: Driver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4, socket.MSG_WAITALL)
                sock.sendall(http(BODY)[:500])

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RuntimeError, match="hung up after 500 of"):
            driver.once(listener.getsockname()[1], GET, 1)
        thread.join()
