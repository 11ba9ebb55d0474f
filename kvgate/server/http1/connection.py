"""One plain connection: a request is read, answered and forgotten, then the next.

Invariants
1. At most one request is under way, and while it is, its coroutine alone reads from the socket and writes to it.
2. The socket is in the epoll for exactly what is waited for on the event loop: a head, or a transfer of its own.
3. Nothing of an answer has been sent when a connection is handed over to aiohttp.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgate.errors import KVGateError
from kvgate.messages import OFF_LOOP_NBYTES, Consume, Request, Response, http_chunks
from kvgate.metrics import Metrics
from kvgate.server.http1.body import Body
from kvgate.server.http1.eager import run_eagerly
from kvgate.server.http1.head import Head, in_chunks, may_begin_head, parse_head
from kvgate.server.http1.transfer import Discard, Pace, Readable, Receive, Send, Transfer

if TYPE_CHECKING:
    from kvgate.server.http1.front import Listener, PlainFront

logger = logging.getLogger(__name__)

_HEAD_NBYTES = 16 << 10
"""What is read at once while a head is waited for; what of a body comes with it is copied."""

_DISCARD_NBYTES = 1 << 20
"""An unread body of at most so many bytes is read and dropped, so that the connection can serve on."""

_LINGER_S = 5.0
_RESET = struct.pack("ii", 1, 0)


class Connection:
    """See the module. Made and used on the event loop."""

    __slots__ = (
        *("_front", "_interest", "_on_loop", "_hot", "_received"),
        *("active_at", "busy", "closed", "listener", "sock", "transfer"),
    )

    def __init__(self, front: PlainFront, listener: Listener, sock: socket.socket, received: bytes = b"") -> None:
        """received: what has been read already; then `serve` is to be called"""
        self.sock = sock
        self.listener = listener
        self.active_at = time.monotonic()
        """When the last request began to come, or ended."""
        self.busy = False
        self.closed = False
        self._front = front
        self._hot = False  # whether the plane may answer another such request as the last one
        self._received = received  # what has come and belongs to the head, the body or the request to come
        self.transfer: Transfer | None = None
        """The one that is waited for, wherever it is moved."""
        self._on_loop = False  # whether that is on the event loop
        self._interest = 0
        self._watch(select.EPOLLIN)

    @property
    def metrics(self) -> Metrics:
        return self._front.metrics

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has come yet."""
        return not self.busy and not self._received

    # --- requests -----------------------------------------------------------------------------------------------------

    def on_event(self) -> bool:
        """Go on: the socket can be read or written, or has failed. Whether `serve` is to be called."""
        if self.busy:
            if self._on_loop and self.transfer is not None:
                self._step(self.transfer)
            return False
        try:
            data = self.sock.recv(_HEAD_NBYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        if self._received:
            self._received += data
        else:
            self._received = data
            self.active_at = time.monotonic()
        return True

    def serve(self) -> None:
        """Answer the requests whose heads have come; the last one may still be under way then."""
        while self._received and not (self.busy or self.closed):
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if len(self._received) > self._front.max_header or not may_begin_head(self._received):
                    self._hand_over()
                return
            head = parse_head(self._received, end) if end <= self._front.max_header else None
            if head is None:
                self._hand_over()
                return
            self._received = self._received[head.nbytes :]
            self.busy = True
            if not run_eagerly(self._exchange(head), self._front.spawn):
                if not self._on_loop:
                    self._watch(0)
                return

    async def _exchange(self, head: Head) -> None:
        """Answer one request."""
        front, listener = self._front, self.listener
        began = time.monotonic()
        body = Body(self, head.content_length, expected=head.expects_continue)
        request = Request(
            head.method, head.raw_path, head.raw_query, head.headers, body, listener.bucket, listener.exact_ranges
        )
        keep = False
        try:
            response = await front.handle(request, front.request_id())
            self._hot = response.published
            try:
                keep = await self._answer(head, body, response)
            finally:
                if not isinstance(response.body, bytes):
                    response.body.close()
                front.metrics.note_request(response.operation, response.status, time.monotonic() - began)
            if keep and body.left:
                keep = await self._discard(body.left)
        finally:
            if not keep:
                self.close()
            self._go_on()

    def _go_on(self) -> None:
        """Wait for the next request."""
        self.busy = False
        self.active_at = time.monotonic()
        if not self.closed and self._interest != select.EPOLLIN:  # others went on meanwhile, and nobody serves this
            self._watch(select.EPOLLIN)
            self._front.call_soon(self.serve_on)

    def serve_on(self) -> None:
        """`serve` outside of a round."""
        self.serve()
        self.rest()

    def rest(self) -> None:
        """Let the plane wait for the next request, where that may be one that it answers."""
        if self._hot and self.idle and not self.closed:
            self._front.give_back(self)

    async def _answer(self, head: Head, body: Body, response: Response) -> bool:
        """Send a response; whether another request may follow."""
        unread = body.left > _DISCARD_NBYTES or body.unread_after_expect
        keep = not (head.closes or unread or self._front.draining)
        try:
            await self._send_response(head.method, response, close=not keep)
        except (KVGateError, TimeoutError) as error:
            # Part of the body has left already; only a broken connection tells the peer that it is not whole.
            logger.warning("a body was broken off: %s", error or "the peer took nothing")
            self._reset_at_close()
            return False
        except ConnectionError:
            return False
        except BaseException:
            self._reset_at_close()
            raise
        if unread and not body.unread_after_expect:
            await self._linger()
        return keep

    async def _send_response(self, method: str, response: Response, *, close: bool) -> None:
        content = response.body
        head = self._front.head_writer.write(response, close=close)
        if isinstance(content, bytes):
            whole = head if method == "HEAD" or response.content_length is not None else head + content
            if not close and not self._received and self._front.send_later(self, whole):
                return
            if (sent := self._send_now(whole)) < len(whole):
                await self.send([memoryview(whole)[sent:]])
            return
        first: list[memoryview | bytes] = [head]
        async for batch in http_chunks(content) if in_chunks(response) else content.batches():
            await self.send([*first, *batch])
            first = []
            self.metrics.sent_bytes.inc(sum(map(len, batch)))
        if first:
            await self.send(first)

    def send_answer(self, whole: bytes) -> None:
        """Send what `send_later` took; the request that it answers is over already."""
        try:
            sent = self._send_now(whole)
        except OSError:
            self.close()
            return
        if sent < len(whole):
            self.busy = True
            self._watch(0)
            self._front.spawn(self._send_rest(memoryview(whole)[sent:]))

    async def _send_rest(self, rest: memoryview) -> None:
        try:
            await self.send([rest])
        except (ConnectionError, TimeoutError):
            self.close()
        finally:
            self._go_on()

    def _send_now(self, data: bytes) -> int:
        """Send what can be sent without waiting; how much that was."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    # --- moving bytes -------------------------------------------------------------------------------------------------

    def take_received(self, view: memoryview) -> int:
        """Copy what came behind a head to the beginning of `view`; how many bytes that was."""
        count = min(len(view), len(self._received))
        if count:
            view[:count] = self._received[:count]
            self._received = self._received[count:]
        return count

    def receive(self, views: Sequence[memoryview], nbytes: int, consume: Consume) -> Receive:
        """A transfer into `views`, to be moved."""
        return Receive(self.sock, self._front.pace, views, nbytes, consume)

    async def send(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Send everything. Raises ConnectionError, TimeoutError when the peer takes nothing."""
        await self.move(Send(self.sock, self._front.pace, buffers))

    async def readable(self) -> None:
        """Wait for a byte, or the end of the stream. Raises TimeoutError."""
        await self.move(Readable(self.sock, Pace(self._front.pace.pause_s)))

    async def move(self, transfer: Transfer, *, slow: bool = False) -> None:
        """Step a transfer to its end. Raises what it raises, and TimeoutError when nothing moves for too long.

        slow: whether its steps take much longer than the kernel needs to copy
        When cancelled, returns only when nobody touches the memory any more.
        """
        nbytes = transfer.left
        self._on_loop = nbytes <= OFF_LOOP_NBYTES if slow else self._front.keeps_on_loop(nbytes)
        if self._on_loop and transfer.step():
            return
        self.transfer = transfer
        if self._on_loop:
            self._front.loop_nbytes += nbytes
            self._watch(transfer.events)
        else:
            self._watch(0)
            self._front.movers.submit(transfer)
        try:
            await transfer.ended
        except (ConnectionError, TimeoutError):
            if not transfer.late:
                raise
        finally:
            self.transfer = None
            if self._on_loop:
                self._front.loop_nbytes -= nbytes
            self._on_loop = False
        if transfer.late:
            raise TimeoutError(f"too little moved within {transfer.pace.pause_s:g} s")

    def _step(self, transfer: Transfer) -> None:
        """Go on with a transfer on the event loop."""
        try:
            if not transfer.step():
                return
        except Exception as error:  # it belongs to whoever waits for the transfer
            failure: Exception | None = error
        else:
            failure = None
        self._watch(0)
        transfer.settle(failure)

    def watch(self) -> None:
        """Wait for the next request."""
        self._watch(select.EPOLLIN)

    def unwatch(self) -> None:
        """Wait for nothing."""
        self._watch(0)

    def _watch(self, interest: int) -> None:
        """Have `on_event` called for these events; for none with 0."""
        epoll, before = self._front.epoll, self._interest
        if interest == before:
            return
        self._interest = interest
        if not interest:
            epoll.unregister(self.sock)
        elif before:
            epoll.modify(self.sock, interest)
        else:
            epoll.register(self.sock, interest)

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def _discard(self, nbytes: int) -> bool:
        """Read the rest of a body that nobody wanted; whether it came."""
        came = min(nbytes, len(self._received))
        self._received = self._received[came:]
        try:
            if nbytes > came:
                await self.move(Discard(self.sock, Pace(_LINGER_S), nbytes - came, self._front.scratch))
        except (ConnectionError, TimeoutError):
            return False
        return True

    async def _linger(self) -> None:
        """Let the peer read the answer before it is told that nobody listens: read on for a while."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            await self._discard(1 << 62)

    def _hand_over(self) -> None:
        """Let aiohttp serve this connection from here on."""
        self._watch(0)
        self.closed = True
        self._front.forget(self)
        self._front.hand_over(self.listener, self.sock, self._received)

    def _reset_at_close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def close(self) -> None:
        """End the connection; not while a transfer is under way. May be called twice."""
        if not self.closed:
            self.closed = True
            self._watch(0)
            self._front.forget(self)
            self.sock.close()
