"""A non-blocking socket to a server, every wait of it under the deadline of the call under way."""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from kvgate.errors import GatewayUnavailable
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import Endpoint
from kvgate.http.resolver import Address

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CUT_POLL_S = 0.05
"""How often a wait looks whether its deadline was cut."""

_TLS_PIECE_NBYTES = 1 << 20
_IOV_VIEWS = 64


class Wire(io.RawIOBase):
    """The bytes of one connection. Raises GatewayUnavailable when the peer is gone, DeadlineExceeded when it is late.

    deadline:        of the exchange under way; None between exchanges, when a read finds nothing
    received_nbytes: since the connection was opened
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.deadline: Deadline | None = None
        self.received_nbytes = 0
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Receive at least one byte into `buffer`, straight from the socket; 0 when the peer has ended the stream."""
        deadline = self.deadline
        if deadline is None:
            return None
        deadline.remaining_s()  # a peer that always has some bytes ready must not outlive the deadline either
        while True:
            try:
                received = self._sock.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise GatewayUnavailable(f"the connection broke while receiving: {error}") from error
            else:
                self.received_nbytes += received
                return received

    def send(self, views: Iterable[memoryview], deadline: Deadline) -> bool:
        """Send `views` of bytes in order, without joining them; False when the peer answers before it has them all."""
        pending = deque(view for view in views if view)
        while pending:
            deadline.remaining_s()
            try:
                sent = self._send_some(pending)
            except BlockingIOError:
                if self._wait(select.POLLOUT | select.POLLIN, deadline) & select.POLLIN:
                    return False
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except ConnectionError:  # what it answered before it hung up may still be there to read
                return False
            except OSError as error:
                raise GatewayUnavailable(f"the connection broke while sending: {error}") from error
            else:
                while pending and sent >= len(pending[0]):
                    sent -= len(pending.popleft())
                if sent:
                    pending[0] = pending[0][sent:]
        return True

    def establish(self, address: Any, deadline: Deadline) -> None:
        """Connect to `address`."""
        try:
            if self._sock.family != socket.AF_UNIX:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failure = self._sock.connect_ex(address)
            if failure == errno.EINPROGRESS:
                self._wait(select.POLLOUT, deadline)
                failure = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            raise GatewayUnavailable(f"no connection to {address}: {error}") from error
        if failure:
            raise GatewayUnavailable(f"no connection to {address}: {os.strerror(failure)}")

    def handshake(self, context: ssl.SSLContext, host: str, deadline: Deadline) -> None:
        """Speak TLS from here on, with a peer that proves to be `host`."""
        try:
            self._sock = tls = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
            while True:
                try:
                    return tls.do_handshake()
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, deadline)
        except (OSError, ValueError) as error:  # ValueError: the peer hung up before wrap_socket, or `host` is no name
            raise GatewayUnavailable(f"no TLS with {host}: {error}") from error

    def silent(self) -> bool:
        """Whether the peer has neither ended the connection nor sent anything unasked."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return False
        self._poll.modify(self._sock, select.POLLIN)
        return not self._poll.poll(0)

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._sock.close()
        super().close()

    def _send_some(self, pending: deque[memoryview]) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.send(pending[0][:_TLS_PIECE_NBYTES])
        return self._sock.sendmsg(list(islice(pending, _IOV_VIEWS)))

    def _wait(self, events: int, deadline: Deadline) -> int:
        """Wait for one of `events` and return what came."""
        self._poll.modify(self._sock, events)
        while not (ready := self._poll.poll(min(deadline.remaining_s(), _CUT_POLL_S) * 1000)):
            pass
        return ready[0][1]


def connect(endpoint: Endpoint, addresses: list[Address], tls: ssl.SSLContext | None, deadline: Deadline) -> Wire:
    """A wire to the first of `addresses` that accepts. Raises GatewayUnavailable, DeadlineExceeded.

    Each address gets an equal share of the time that is left: one that swallows packets leaves some for the next.
    """
    failure: GatewayUnavailable | None = None
    for position, (family, address) in enumerate(addresses):
        share = deadline.share(len(addresses) - position)
        try:
            return _connect(family, address, endpoint.host, tls, share)
        except GatewayUnavailable as error:
            failure = error
    deadline.remaining_s()
    raise failure or GatewayUnavailable(f"no address for {endpoint}")


def connect_unix(path: str, deadline: Deadline) -> Wire:
    """A wire to the unix socket at `path`. Raises GatewayUnavailable, DeadlineExceeded."""
    return _connect(socket.AF_UNIX, path, "", None, deadline)


def _connect(
    family: socket.AddressFamily, address: Any, host: str, tls: ssl.SSLContext | None, deadline: Deadline
) -> Wire:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise GatewayUnavailable(f"no socket: {error}") from error
    wire = Wire(sock)
    try:
        wire.establish(address, deadline)
        if tls is not None:
            wire.handshake(tls, host, deadline)
    except BaseException:
        wire.close()
        raise
    return wire
