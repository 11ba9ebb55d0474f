"""Host names to addresses, under a deadline that the operating system's resolver does not know."""

from __future__ import annotations

import ipaddress
import socket
import threading
from concurrent.futures import Future

from kvgate.errors import GatewayUnavailable
from kvgate.http.deadline import Deadline

_CUT_POLL_S = 0.05

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


class Resolver:
    """The addresses of one host.

    `getaddrinfo` cannot be interrupted, so it runs in a thread of its own; calls that come meanwhile wait for the same
    one, so that a resolver that hangs holds one thread and no more. An IP address needs no thread.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._in_flight: Future[list[Address]] | None = None
        try:
            ipaddress.ip_address(host)
            self._literal = True
        except ValueError:
            self._literal = False

    def addresses(self, deadline: Deadline) -> list[Address]:
        """At least one address, in the order to try them. Raises GatewayUnavailable, DeadlineExceeded."""
        try:
            if self._literal:
                return self._look_up()
            answer = self._ask()
            while True:
                try:
                    return answer.result(min(deadline.remaining_s(), _CUT_POLL_S))
                except TimeoutError:
                    continue
        except (OSError, UnicodeError) as error:
            raise GatewayUnavailable(f"no address for {self._host}: {error}") from error

    def _ask(self) -> Future[list[Address]]:
        with self._lock:
            if self._in_flight is None:
                self._in_flight = Future()
                threading.Thread(
                    target=self._answer, args=(self._in_flight,), name="kvgate-resolver", daemon=True
                ).start()
            return self._in_flight

    def _answer(self, answer: Future[list[Address]]) -> None:
        try:
            found = self._look_up()
        except Exception as error:  # handed to whoever waits
            self._finished()
            answer.set_exception(error)
        else:
            self._finished()
            answer.set_result(found)

    def _finished(self) -> None:
        with self._lock:
            self._in_flight = None

    def _look_up(self) -> list[Address]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
