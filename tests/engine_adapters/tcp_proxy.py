"""Real TCP peers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_PIECE_NBYTES = 64 << 10


class TCPServer:
    """Listens on a port of 127.0.0.1 and handles each connection in a thread, until `close`."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets: list[socket.socket] = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def handle(self, peer: socket.socket) -> None:
        raise NotImplementedError

    def keep(self, sock: socket.socket) -> None:
        self._sockets.append(sock)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self.connections += 1
                self.keep(peer)
                threading.Thread(target=self.handle, args=(peer,), daemon=True).start()


class Silent(TCPServer):
    """Accepts, and never answers."""

    def handle(self, peer: socket.socket) -> None:
        with suppress(OSError):
            while peer.recv(_PIECE_NBYTES):
                pass


class Proxy(TCPServer):
    """Passes bytes to a server and back. `ask` and `answer` may change, delay or hold them, piece by piece."""

    def __init__(
        self, port: int, answer: Callable[[bytes], bytes] = bytes, ask: Callable[[bytes], bytes] = bytes
    ) -> None:
        self._server_port = port
        self.answer = answer
        self.ask = ask
        super().__init__()

    def handle(self, peer: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server_port))
        self.keep(server)
        threading.Thread(target=self._pass_on, args=(peer, server, self.ask), daemon=True).start()
        self._pass_on(server, peer, self._changed)

    def _changed(self, piece: bytes) -> bytes:
        return self.answer(piece)

    def _pass_on(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE_NBYTES):
                target.sendall(change(piece))
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def flip_late(piece: bytes) -> bytes:
    """Corrupts bodies: a bit in every 4 KiB of a piece that is longer than an ordinary header section, and its last."""
    changed = bytearray(piece)
    if len(piece) >= 4096:
        for at in {*range(4095, len(piece) - 1, 4096), len(piece) - 1}:
            changed[at] ^= 1
    return bytes(changed)


def slowly(piece: bytes) -> bytes:
    """Holds every piece back for a while."""
    time.sleep(0.4)
    return piece
