"""The front of TLS listeners, and of plain connections with an unusual request (see `kvgate.server.http1`).

aiohttp carries the bytes, and the protocol layers see only `messages.Request` and `Response`.

aiohttp's low-level server is used, without its application: it leaves the request target as it was sent, does not
answer `Expect: 100-continue` by itself, and stores bodies verbatim. A leased body is written in slices, each flushed to
the kernel before the next is asked for, so that no transport holds on to memory whose lease has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.web_protocol import RequestHandler

from kvgate.errors import HeadersTooLarge, IncompleteBody, InvalidRequest, KVGateError
from kvgate.messages import Headers, Request, Response, views
from kvgate.metrics import Metrics
from kvgate.server.config import ListenConfig

logger = logging.getLogger(__name__)

Handle = Callable[[Request, str], Awaitable[Response]]
"""Answers a request, given its id; never raises but for cancellation."""

Refuse = Callable[[KVGateError, str], Response]
"""The answer to a request that could not be read, given what was wrong and its id."""

_READ_NBYTES = 1 << 20
_MAX_HEADERS = 256
_LINGER_S = 5.0
_DRAIN_POLL_S = 0.01
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Front(web.Server):
    """Accepts connections for one listener."""

    def __init__(
        self,
        handle: Handle,
        refuse: Refuse,
        config: ListenConfig,
        metrics: Metrics,
        *,
        bucket: str = "",
        exact_ranges: bool = False,
    ) -> None:
        """bucket, exact_ranges: see Request."""
        self._options: dict[str, Any] = {
            "max_line_size": config.max_header,
            "max_field_size": config.max_header,
            "max_headers": _MAX_HEADERS,
            "keepalive_timeout": config.idle_timeout,
            "lingering_time": _LINGER_S,
            "read_bufsize": _READ_NBYTES,
            "auto_decompress": False,
            "access_log": None,
        }
        self._handle = handle
        self._draining = False
        self.header_timeout_s = config.header_timeout
        self._body_timeout_s = config.body_timeout
        self._metrics = metrics
        self.bucket = bucket
        self.exact_ranges = exact_ranges
        self.refuse = refuse
        super().__init__(self._answer)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._options)

    async def drain(self, timeout_s: float) -> None:
        """Wait until no connection is left. Idle ones end at once, others with their next answer.

        For when new ones cannot come any more. aiohttp's own shutdown would leave the body of a request that is being
        received unread.
        """
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.connections:
                    for connection in self.connections:
                        if isinstance(connection, _Connection) and connection.idle:
                            connection.force_close()
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            logger.warning("%d connections were still busy after %g s, and are cut", len(self.connections), timeout_s)

    async def _answer(self, incoming: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        request_id = secrets.token_hex(8)
        assert isinstance(incoming.protocol, _Connection)
        incoming.protocol.served = True
        body = _Body(incoming, self._body_timeout_s, self._metrics)
        request = self._request(incoming, body)
        response = await self._handle(request, request_id)
        try:
            return await self._send(incoming, body, response, request_id)
        finally:
            if not isinstance(response.body, bytes):
                response.body.close()
            self._metrics.note_request(response.operation, response.status, time.monotonic() - began)

    def _request(self, incoming: web.BaseRequest, body: _Body) -> Request:
        target = incoming.raw_path
        if not target.startswith("/"):  # absolute form
            parts = urlsplit(target)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        raw_path, _, raw_query = target.partition("?")
        headers = Headers(incoming.headers.items())
        return Request(incoming.method, raw_path, raw_query, headers, body, self.bucket, self.exact_ranges)

    async def _send(
        self, incoming: web.BaseRequest, body: _Body, response: Response, request_id: str
    ) -> web.StreamResponse:
        outgoing = _start_response(response, request_id)
        if self._draining:
            outgoing.force_close()
        if body.unread_after_expect:  # whether the peer will send it now is not known
            outgoing.force_close()
            incoming.protocol._lingering_time = 0
        content = response.body
        if isinstance(content, bytes):
            with contextlib.suppress(ConnectionError):  # the peer has gone; aiohttp notices by itself
                await outgoing.prepare(incoming)
                await outgoing.write_eof(content if response.content_length is None else b"")
            return outgoing
        try:
            await outgoing.prepare(incoming)
            async for view in views(content):
                async with asyncio.timeout(self._body_timeout_s):
                    await outgoing.write(view)
                    await incoming._payload_writer.drain()
                self._metrics.sent_bytes.inc(len(view))
            await outgoing.write_eof()
        except (KVGateError, TimeoutError) as error:
            # Part of the body has left already; only a broken connection tells the peer that it is not whole.
            logger.warning("request %s: the body was broken off: %s", request_id, error or "the peer took nothing")
            if incoming.transport is not None:
                incoming.transport.abort()
        except ConnectionError:
            logger.debug("request %s: the peer has gone", request_id)
        return outgoing


class _Connection(RequestHandler):
    """One connection: flushes to the kernel, and refuses unreadable requests in S3's words."""

    def __init__(self, front: Front, **options: Any) -> None:
        super().__init__(front, **options)
        self._front = front
        self.served = False
        """Whether a request has come."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has been understood yet."""
        return not self._request_in_progress and not self._messages and self._waiter is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._loop.call_later(self._front.header_timeout_s, self._expect_request)
        # `drain` returns when all has gone to the kernel, or under TLS into records; there a limit of 0 never lets go.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("ssl_object") else 0, low=0)

    def _expect_request(self) -> None:
        """Close the connection if its first request has not come by now."""
        if self.idle and not self.served:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        request_id = secrets.token_hex(8)
        if status != 400:
            logger.error("request %s failed in the HTTP front", request_id, exc_info=exc)
        refused = HeadersTooLarge if "got more than" in (message or "").lower() else InvalidRequest
        text = " ".join((message or "the request cannot be read").split())
        response = self._front.refuse(refused(f"the request was not understood: {text[:200]}"), request_id)
        outgoing = web.Response(status=response.status, headers=response.headers, body=response.body)
        outgoing.headers["x-amz-request-id"] = request_id
        outgoing.force_close()
        return outgoing


class _Body:
    """The payload of a request as it arrives; `Expect: 100-continue` is answered when it is first asked for."""

    def __init__(self, incoming: web.BaseRequest, timeout_s: float, metrics: Metrics) -> None:
        self._incoming = incoming
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._rest = memoryview(b"")
        self._expected = incoming.headers.get("Expect", "").lower() == "100-continue"

    @property
    def unread_after_expect(self) -> bool:
        """Whether the peer still waits to be told that it may send the body."""
        return self._expected

    async def readinto(self, view: memoryview) -> int:
        """See RequestBody."""
        if not self._rest:
            self._rest = memoryview(await self._next())
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._metrics.received_bytes.inc(count)
        return count

    async def _next(self) -> bytes:
        if self._expected:
            self._expected = False
            if self._incoming.transport is not None:
                self._incoming.transport.write(_CONTINUE)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._incoming.content.readany()
        except TimeoutError:
            raise IncompleteBody(f"no byte of the body came for {self._timeout_s:g} s") from None
        except (ClientPayloadError, web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError) as error:
            raise IncompleteBody(f"the body ended before its announced length: {error}") from error


def _start_response(response: Response, request_id: str) -> web.StreamResponse:
    """An aiohttp response with status and headers; the body is not sent yet."""
    outgoing = web.StreamResponse(status=response.status, headers=response.headers)
    outgoing.headers["Server"] = "kvgate"
    outgoing.headers["x-amz-request-id"] = request_id
    if response.content_length is not None:
        outgoing.content_length = response.content_length
    elif response.status not in (204, 304):
        outgoing.content_length = len(response.body) if isinstance(response.body, bytes) else response.body.nbytes
    return outgoing
