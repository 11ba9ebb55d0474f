"""A TCP server that answers as a test says: the foreign edge of the client."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from awscrt.checksums import crc64nvme


class Peer:
    """One end of an accepted connection, with just enough HTTP to misbehave on purpose."""

    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self.sock = sock
        self.stopped = stopped

    def request(self) -> tuple[bytes, bytes]:
        """The head and body of the next request; (b"", b"") when the client has hung up."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            octet = self.sock.recv(1)
            if not octet:
                return b"", b""
            head += octet
        lengths = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        body = b""
        while lengths and len(body) < int(lengths[0]):
            piece = self.sock.recv(1 << 16)
            if not piece:
                break
            body += piece
        return head, body

    def respond(self, body: bytes = b"", *headers: str, status: str = "200 OK", nbytes: int | None = None) -> None:
        """A response; `nbytes` is what it claims as its length."""
        length = f"content-length: {len(body) if nbytes is None else nbytes}"
        self.sock.sendall("\r\n".join([f"HTTP/1.1 {status}", length, *headers, "", ""]).encode() + body)


class Server:
    """Runs `serve(peer)` for each connection in a thread of its own, until it returns or the test ends."""

    def __init__(self, serve: Callable[[Peer], object], tls: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self.connections = 0
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                if self._stopped.is_set():
                    sock.close()
                    return
                self.connections += 1
                self._socks.append(sock)
                thread = threading.Thread(target=self._run, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _run(self, sock: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            with sock:
                self._serve(Peer(sock, self._stopped))

    def stop(self) -> None:
        self._stopped.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._accepting.join()
        self._listener.close()
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._socks:
            sock.close()


def always(body: bytes, *headers: str, status: str = "200 OK") -> Callable[[Peer], None]:
    """A behaviour: the same response to every request."""

    def run(peer: Peer) -> None:
        while peer.request()[0]:
            peer.respond(body, *headers, status=status)

    return run


def checksum_header(body: bytes) -> str:
    """The header that a gateway sends with a whole object."""
    return f"x-amz-checksum-crc64nvme: {b64encode(crc64nvme(body).to_bytes(8, 'big')).decode()}"


BUSY_MACHINE_S = 2.0
"""How late a test may be for reasons of its machine; without a deadline it would wait for much longer."""


@contextmanager
def ends_within(least_s: float, most_s: float) -> Iterator[None]:
    """Asserts how long the block takes."""
    start_s = time.monotonic()
    yield
    assert least_s <= time.monotonic() - start_s <= most_s + BUSY_MACHINE_S
