"""A bounded number of kept-alive connections to one server."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable

from kvgate.errors import DeadlineExceeded, GatewayUnavailable
from kvgate.http.connection import Connection
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import Endpoint
from kvgate.http.resolver import Resolver
from kvgate.http.wire import connect, connect_unix

_CUT_POLL_S = 0.05


class Pool:
    """Connections, lent to one exchange at a time; the one used last is lent first. Thread-safe.

    A child process starts with none: after a fork, two processes on one connection would read each other's answers.
    """

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None, max_connections: int) -> None:
        """`tls` is given if, and only if, the endpoint speaks TLS."""
        self._endpoint = endpoint
        self._tls = tls
        self._max_connections = max_connections
        self._closed = False
        self._unix_socket = ""
        self._lost: Callable[[], None]
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._resolver = Resolver(self._endpoint.host, self._endpoint.port)
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._max_connections)
        self._idle: list[Connection] = []

    def take(self, deadline: Deadline, *, fresh: bool = False) -> Connection:
        """A connection that nobody else uses; `fresh` makes it a new one. Give it back with `give` in every case.

        Raises GatewayUnavailable, also when the pool is closed, and DeadlineExceeded, also when all are in use.
        """
        if self._pid != os.getpid():
            self._start()
        while not self._slots.acquire(timeout=min(deadline.remaining_s(), _CUT_POLL_S)):
            pass
        try:
            if self._closed:
                raise GatewayUnavailable("this client is closed")
            return (None if fresh else self._kept()) or self._connect(deadline)
        except BaseException:
            self._slots.release()
            raise

    def give(self, connection: Connection) -> None:
        """Take a connection back: keep it when it can serve again, or close it."""
        try:
            if connection.reusable:
                with self._lock:
                    if not self._closed:
                        self._idle.append(connection)
                        return
            connection.close()
        finally:
            self._slots.release()

    def use_unix_socket(self, path: str, lost: Callable[[], None]) -> None:
        """Make new connections to the server's unix socket, until one fails; an empty path for TCP again.

        lost: called when one fails
        """
        self._lost = lost
        if path != self._unix_socket:
            self._unix_socket = path
            with self._lock:
                idle, self._idle = self._idle, []
            for connection in idle:
                connection.close()

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connect(self, deadline: Deadline) -> Connection:
        if self._unix_socket:
            try:
                return Connection(connect_unix(self._unix_socket, deadline), is_local=True)
            except DeadlineExceeded:
                raise
            except GatewayUnavailable:
                self._unix_socket = ""
                self._lost()
        return Connection(connect(self._endpoint, self._resolver.addresses(deadline), self._tls, deadline))

    def _kept(self) -> Connection | None:
        """An idle connection that the server has not ended meanwhile; those that it has are closed."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
