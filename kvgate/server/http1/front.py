"""Plain listeners and their connections, served on the event loop and by movers.

All sockets are in one epoll, which the event loop watches as if it were one of its own: a burst of requests costs it
one callback. A connection whose request is not of the common form goes to aiohttp (`kvgate.server.front`) for good.

With the native plane (`kvgate.native.Plane`) connections wait for their requests there, and it answers those that it
can. What it hands over is answered here, as if there were no plane, and where the plane could answer that another time,
the connection goes back to it. Connections to listeners that are bound to a bucket never go there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import secrets
import select
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvgate.metrics import Metrics
from kvgate.server.config import ListenConfig
from kvgate.server.front import Front, Handle
from kvgate.server.http1.connection import Connection
from kvgate.server.http1.head import HeadWriter
from kvgate.server.http1.mover import Movers
from kvgate.server.http1.transfer import LOOP_NBYTES, SMALL_NBYTES, Pace

if TYPE_CHECKING:
    from kvgate.native import Plane
    from kvgate.server.plane_puts import PlanePuts

logger = logging.getLogger(__name__)

_EVENTS = 32
_ROUNDS = 16
"""How often the epoll is asked again before others on the event loop have their turn."""

_ACCEPTS = 64
_ACCEPT_PAUSE_S = 0.5
_SCRATCH_NBYTES = 256 << 10
_DRAIN_POLL_S = 0.01
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nServer: kvgate\r\n"
    b"Connection: close\r\n\r\n"
)
_LOOPBACK_CONGESTION = b"reno"
"""Between processes of one host nothing is lost, and pacing (as of BBR) only costs: a third of the speed."""

_LOOPBACK_RECEIVE_NBYTES = 2 << 20
"""Nor is there a way to fill: what waits to be received there has left the caches by then."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; `fallback` serves what is not of the common form. For the others see Request."""

    sock: socket.socket
    fallback: Front
    bucket: str = ""
    exact_ranges: bool = False

    @property
    def family(self) -> int:
        """Of its connections."""
        return self.sock.family


class PlainFront:
    """Accepts connections and serves them. Made and used on the event loop."""

    def __init__(
        self,
        handle: Handle,
        config: ListenConfig,
        metrics: Metrics,
        plane: Plane | None = None,
        settle: Callable[[], None] = lambda: None,
        puts: PlanePuts | None = None,
    ) -> None:
        """
        plane:  to wait for requests, and answer what it can; the caller's to close, after `close`
        settle: called when it has news besides its connections
        puts:   of the plane
        """
        self.handle = handle
        self.metrics = metrics
        self.max_header = config.max_header
        self.pace = Pace(config.body_timeout, config.min_rate)
        self.draining = False
        self.epoll = select.epoll()
        self.movers = Movers(config.movers)
        self.head_writer = HeadWriter()
        self.loop_nbytes = 0
        """Of transfers that wait for their peers on the event loop."""
        self.scratch = memoryview(bytearray(_SCRATCH_NBYTES))
        """Where bytes go that nobody wants."""
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Listener] = []
        self._every_listener: list[Listener] = []  # those that accept no more too, by the numbers that the plane knows
        self._connections: dict[int, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_round = False
        self._answers: list[tuple[Connection, bytes]] = []
        self._ids = itertools.count(secrets.randbits(63))
        self._plane = plane
        self._settle = settle
        self._puts = puts
        if puts is not None:
            puts.begin(self.spawn, self._serve_handed, self.request_id)
        self.epoll.register(self.movers.fd, select.EPOLLIN)
        if plane is not None:
            self.epoll.register(plane.fileno(), select.EPOLLIN)
        self._loop.add_reader(self.epoll.fileno(), self._on_events)
        self._sweeper = self._loop.create_task(self._sweep_forever())

    # --- listening ----------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Begin to accept."""
        self._listeners.append(listener)
        self._every_listener.append(listener)
        listener.sock.setblocking(False)
        self._loop.add_reader(listener.sock.fileno(), self._accept, listener)

    def stop_listening(self) -> None:
        """Accept nothing more: the listening sockets are closed. May be called twice."""
        while self._listeners:
            listener = self._listeners.pop()
            self._loop.remove_reader(listener.sock.fileno())
            listener.sock.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait until no connection is left. Idle ones end at once, others with their next answer; late ones are cut."""
        self.draining = True
        if self._plane is not None:
            self._plane.drain()
        deadline = time.monotonic() + timeout_s
        while (left := self._connection_count()) and time.monotonic() < deadline:
            for connection in list(self._connections.values()):
                if connection.idle:
                    connection.close()
            await asyncio.sleep(_DRAIN_POLL_S)
        if left:
            logger.warning("%d connections were still busy after %g s, and are cut", left, timeout_s)
        if self._plane is not None:
            self.epoll.unregister(self._plane.fileno())  # nothing more begins
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in list(self._connections.values()):
            connection.close()

    def close(self) -> None:
        """End the threads. After `drain`."""
        self.stop_listening()
        self._sweeper.cancel()
        self._loop.remove_reader(self.epoll.fileno())
        self.movers.close()
        self.epoll.close()

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listener.sock.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                logger.warning("no connection can be accepted: %s; raise the limit of open files", error.strerror)
                self._pause(listener)
                return
            sock.setblocking(False)
            if self._connection_count() >= self._config.max_connections:
                self.metrics.refused_connections.inc()
                with contextlib.suppress(OSError):
                    sock.send(_TOO_MANY)
                sock.close()
                continue
            _tune(sock, address)
            if not self._give(listener, sock):
                self._connections[sock.fileno()] = Connection(self, listener, sock)

    def _pause(self, listener: Listener) -> None:
        self._loop.remove_reader(listener.sock.fileno())

        def go_on() -> None:
            if listener in self._listeners:
                self._loop.add_reader(listener.sock.fileno(), self._accept, listener)

        self._loop.call_later(_ACCEPT_PAUSE_S, go_on)

    def collect(self) -> None:
        """Renew what the metrics say of connections."""
        self.metrics.connections.set(self._connection_count())

    def _connection_count(self) -> int:
        return len(self._connections) + (self._plane.connections if self._plane is not None else 0)

    # --- the plane ----------------------------------------------------------------------------------------------------

    def _give(self, listener: Listener, sock: socket.socket) -> bool:
        """Let the plane wait for the next request on a socket, and forget it; False where it cannot."""
        if self._plane is None or listener.bucket or self.draining:
            return False
        try:
            self._plane.adopt(sock.fileno(), self._every_listener.index(listener), listener.exact_ranges)
        except OSError:  # no memory for one more
            return False
        sock.detach()
        return True

    def give_back(self, connection: Connection) -> None:
        """Let the plane wait for the next request of a connection that is idle."""
        fd = connection.sock.fileno()
        connection.unwatch()
        if self._give(connection.listener, connection.sock):
            connection.closed = True
            del self._connections[fd]
        else:
            connection.watch()

    def _take_handed(self) -> list[Connection]:
        """The connections that the plane has handed over, each with a request to be answered here."""
        assert self._plane is not None
        connections = [self._take_back(*handed) for handed in self._plane.handed()]
        self._settle()
        if self._puts is not None:
            self._puts.take()
        return connections

    def _take_back(self, fd: int, listener_number: int, received: bytes) -> Connection:
        """Own a connection again of which `received` has been read."""
        listener = self._every_listener[listener_number]
        sock = socket.socket(listener.family, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        connection = self._connections[fd] = Connection(self, listener, sock, received)
        return connection

    def _serve_handed(self, fd: int, listener_number: int, received: bytes) -> None:
        """Serve a connection that the plane has given back."""
        self.call_soon(self._take_back(fd, listener_number, received).serve_on)

    # --- what connections ask for -------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def keeps_on_loop(self, nbytes: int) -> bool:
        """Whether a transfer of `nbytes` stays on the event loop, rather than going to a mover."""
        return nbytes <= SMALL_NBYTES or self.loop_nbytes + nbytes <= LOOP_NBYTES

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def request_id(self) -> str:
        """16 hex digits that no other request of this gateway has had."""
        return f"{next(self._ids) & 0xFFFFFFFFFFFFFFFF:016x}"

    def forget(self, connection: Connection) -> None:
        """A connection is about to end, or to be somebody else's."""
        del self._connections[connection.sock.fileno()]

    def hand_over(self, listener: Listener, sock: socket.socket, received: bytes) -> None:
        """Let aiohttp serve a connection, of which `received` has been read."""

        async def connect() -> None:
            try:
                _, protocol = await self._loop.connect_accepted_socket(listener.fallback, sock)
            except OSError:
                sock.close()
                return
            protocol.data_received(received)

        self.spawn(connect())

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a request failed in the HTTP front", exc_info=error)

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_events(self) -> None:
        for _ in range(_ROUNDS):
            events = self.epoll.poll(0, _EVENTS)
            if not events:
                return
            self._answer_round(events)
            if self._tasks:
                return

    def _answer_round(self, events: list[tuple[int, int]]) -> None:
        """Read from all who have something to say, then answer them, then send the answers.

        Each of these three finds its code and data in the caches: a fifth less time a request than one after the other.
        """
        connections, ready = self._connections, []
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is not None:
                if connection.on_event():
                    ready.append(connection)
            elif fd == self.movers.fd:
                self.movers.collect()
            elif self._plane is not None and fd == self._plane.fileno():
                ready += self._take_handed()
        self._in_round = True
        try:
            for connection in ready:
                try:
                    connection.serve()
                except Exception:
                    logger.exception("a request failed in the HTTP front")
        finally:
            self._in_round = False
            while self._answers:
                connection, whole = self._answers.pop()
                connection.send_answer(whole)
            for connection in ready:
                connection.rest()

    def send_later(self, connection: Connection, whole: bytes) -> bool:
        """Take an answer that the end of this round sends; False outside of a round."""
        if self._in_round:
            self._answers.append((connection, whole))
        return self._in_round

    async def _sweep_forever(self) -> None:
        period_s = max(0.05, min(1.0, self._config.body_timeout / 4, self._config.idle_timeout / 4))
        while True:
            await asyncio.sleep(period_s)
            now = time.monotonic()
            for connection in list(self._connections.values()):
                self._look_after(connection, now)

    def _look_after(self, connection: Connection, now: float) -> None:
        """Cut what takes too long."""
        if connection.transfer is not None:
            if connection.transfer.cut_if_late(now):
                self.metrics.late_connections.labels("body").inc()
        elif not connection.busy:
            limit_s = self._config.idle_timeout if connection.idle else self._config.header_timeout
            if now - connection.active_at > limit_s:
                self.metrics.late_connections.labels("request" if connection.idle else "head").inc()
                connection.close()


def _tune(sock: socket.socket, address: Any) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address[0].startswith("127.") or address[0] == "::1":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LOOPBACK_CONGESTION)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOOPBACK_RECEIVE_NBYTES)
