"""One HTTP/1.1 connection to a server.

1. One exchange at a time. After `exchange` its response is read to the end, or the connection is closed.
2. A connection is `reusable` only when the whole request was sent, the whole response was read, the server keeps the
   connection open, and not one byte followed the response: a stray byte would be taken for the next answer.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from typing import Protocol, cast

from kvgate.errors import GatewayUnavailable
from kvgate.http.deadline import Deadline
from kvgate.http.wire import Wire
from kvgate.messages import Headers

_BUFFER_NBYTES = 16 << 10


class Request(Protocol):
    """What is sent: the request line and header section as HTTP/1.1 has them, and the body's views in order."""

    @property
    def method(self) -> str: ...

    @property
    def head(self) -> bytes: ...

    @property
    def views(self) -> Sequence[memoryview]: ...


class Connection:
    """A wire with HTTP on it. Use it from one thread at a time.

    is_local: whether it is one to a unix socket
    """

    def __init__(self, wire: Wire, *, is_local: bool = False) -> None:
        self.is_local = is_local
        self._wire = wire
        self._stream = _Stream(wire, _BUFFER_NBYTES)
        self._response: HTTPResponse | None = None
        self._sent = self._complete = False
        self._received_before = 0

    def exchange(self, request: Request, deadline: Deadline) -> tuple[int, Headers]:
        """Send `request` and return the status and headers of its response; `readinto` gives the body.

        Raises GatewayUnavailable, DeadlineExceeded; the connection is then of no more use.
        """
        self._complete = False
        self._received_before = self._wire.received_nbytes
        self._wire.deadline = deadline
        self._sent = self._wire.send((memoryview(request.head), *request.views), deadline)
        response = HTTPResponse(cast("socket.socket", self), method=request.method)
        try:
            response.begin()
        except (HTTPException, ConnectionError) as error:
            raise GatewayUnavailable(f"the connection broke before the answer: {error}") from error
        self._response = response
        return response.status, Headers(response.headers.items())

    def readinto(self, view: memoryview) -> int:
        """Fill the beginning of `view` with the next bytes of the body and return how many, 0 at its end.

        Fewer than asked for only at the end. Raises GatewayUnavailable, DeadlineExceeded.
        """
        response = self._response
        assert response is not None, "readinto follows exchange"
        try:
            received = response.readinto(view)
        except HTTPException as error:
            raise GatewayUnavailable(f"the connection broke within the answer: {error}") from error
        if received < len(view) and response.length:
            raise GatewayUnavailable(f"the connection broke {response.length} bytes before the end of the answer")
        self._complete = response.isclosed() and not response.will_close
        return received

    @property
    def went_stale(self) -> bool:
        """Whether nothing came back of the last exchange, after others that succeeded: the server had hung up."""
        return 0 < self._received_before == self._wire.received_nbytes

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow (invariant 2)."""
        self._wire.deadline = None
        return self._sent and self._complete and not self._stream.peek(1) and self._wire.silent()

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._wire.close()

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client reads a response from: the same stream for every response."""
        return self._stream


class _Stream(io.BufferedReader):
    """The buffered wire, which outlives each response that is read from it."""

    def close(self) -> None:
        """Keep the wire open: http.client closes its stream at the end of each response."""

    def flush(self) -> None:
        """Nothing to do, also once the wire is closed: a response that is collected later flushes its stream."""
