"""A TCP proxy whose faults are switched while it runs.

    with FaultProxy(redis_port) as proxy:
        proxy.fault = Cut(after_nbytes=1000)
        ...
        proxy.fault = NONE

A fault decides synchronously what becomes of the bytes that have come (`Fault.step`); the proxy carries that out, in a
thread with an event loop of its own. Offsets and counts are of one connection and one direction, from when the fault
began. Connections that are open when a fault begins suffer from it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, TypeVar

T = TypeVar("T")

Direction = Literal["request", "answer"]

PIECE_NBYTES = 64 << 10
_START_S = 20


class Step(NamedTuple):
    """What becomes of the first `consumed` bytes that have come.

    send:    goes on in their place, after `pause_s` unless the fault changes before
    reply:   goes back to the client
    end:     how the connection ends after that, if it does
    """

    consumed: int
    send: bytes = b""
    pause_s: float = 0.0
    reply: bytes = b""
    end: Literal["", "close", "reset"] = ""


@dataclass
class Flow:
    """One direction of one connection under one fault.

    position: how many bytes have been consumed
    held:     for the fault to keep what it has not decided on
    turn:     whether these bytes are the first since the other side has spoken
    """

    direction: Direction
    position: int = 0
    held: bytes = b""
    turn: bool = True


@dataclass(frozen=True)
class Fault:
    """None: everything passes."""

    def step(self, flow: Flow, piece: bytes) -> Step:
        return Step(len(piece), piece)


NONE = Fault()


@dataclass(frozen=True)
class Delay(Fault):
    """Every answer begins later."""

    seconds: float

    def step(self, flow: Flow, piece: bytes) -> Step:
        late = flow.direction == "answer" and flow.turn
        return Step(len(piece), piece, self.seconds if late else 0.0)


@dataclass(frozen=True)
class Bandwidth(Fault):
    """So many bytes a second, in each direction of each connection."""

    nbytes_per_s: float

    def step(self, flow: Flow, piece: bytes) -> Step:
        part = piece[: max(1, int(self.nbytes_per_s / 50))]
        return Step(len(part), part, len(part) / self.nbytes_per_s)


@dataclass(frozen=True)
class Cut(Fault):
    """The connection ends after so many bytes of one direction, as when the server's process ends."""

    after_nbytes: int = 0
    direction: Direction = "answer"
    how: Literal["close", "reset"] = "close"

    def step(self, flow: Flow, piece: bytes) -> Step:
        left = self.after_nbytes - flow.position
        if flow.direction != self.direction or len(piece) <= left:
            return Step(len(piece), piece)
        return Step(len(piece), piece[:left], end=self.how)


@dataclass(frozen=True)
class Truncate(Fault):
    """So many bytes are missing, and what follows them comes."""

    at: int
    nbytes: int
    direction: Direction = "answer"

    def step(self, flow: Flow, piece: bytes) -> Step:
        if flow.direction != self.direction:
            return Step(len(piece), piece)
        first = max(0, self.at - flow.position)
        last = max(0, self.at + self.nbytes - flow.position)
        return Step(len(piece), piece[:first] + piece[last:])


@dataclass(frozen=True)
class Corrupt(Fault):
    """A bit is flipped in the byte `at`, or in one of every `every` bytes, by chance."""

    at: int | None = None
    every: int = 0
    direction: Direction = "answer"
    chance: random.Random = field(default_factory=lambda: random.Random(7), compare=False, repr=False)

    def step(self, flow: Flow, piece: bytes) -> Step:
        if flow.direction != self.direction:
            return Step(len(piece), piece)
        changed = bytearray(piece)
        if self.at is not None and flow.position <= self.at < flow.position + len(piece):
            changed[self.at - flow.position] ^= 1 << self.chance.randrange(8)
        if self.every:
            at = self.chance.randrange(self.every)
            while at < len(piece):
                changed[at] ^= 1 << self.chance.randrange(8)
                at += self.chance.randrange(2 * self.every) + 1
        return Step(len(piece), bytes(changed))


@dataclass(frozen=True)
class Blackhole(Fault):
    """Connections are accepted, and nothing comes through. What waits goes on when that ends."""

    def step(self, flow: Flow, piece: bytes) -> Step:
        return Step(len(piece), piece, math.inf)


@dataclass(frozen=True)
class Refuse(Fault):
    """Nobody listens, and the connections that were open are reset."""


@dataclass(frozen=True)
class Reply(Fault):
    """The proxy answers the first bytes of a request by itself, and closes the connection."""

    data: bytes

    def step(self, flow: Flow, piece: bytes) -> Step:
        if flow.direction == "answer":
            return Step(len(piece), piece)
        return Step(len(piece), reply=self.data, end="close")


@dataclass(frozen=True)
class Status(Fault):
    """The proxy answers each HTTP request by itself, when it has read all of it, and closes the connection."""

    status: int = 503

    def step(self, flow: Flow, piece: bytes) -> Step:
        if flow.direction == "answer":
            return Step(len(piece), piece)
        flow.held += piece
        head, found, body = flow.held.partition(b"\r\n\r\n")
        if found and len(body) < _promised_nbytes(head):
            return Step(len(piece))
        if not found and head[:1].isupper():
            return Step(len(piece))
        answer = f"HTTP/1.1 {self.status} Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        return Step(len(piece), reply=answer.encode(), end="close")


def _promised_nbytes(head: bytes) -> int:
    """How long a request's body is, if the server should wait for it."""
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"expect" in fields:
        return 0
    return int(fields.get(b"content-length", b"0"))


class FaultProxy:
    """Listens on 127.0.0.1, until `close`, for a server on a port of the same address. A context manager.

    connections: how many have been accepted
    open:        how many are open
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._fault: Fault = NONE
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._links: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self.connections = 0
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        self._in_loop(self._listen)

    @property
    def open(self) -> int:
        return len(self._links)

    @property
    def fault(self) -> Fault:
        """What goes wrong now."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        """The new fault is in force when this returns."""

        async def change() -> None:
            self._fault = fault
            self._changed.set()
            self._changed = asyncio.Event()
            if isinstance(fault, Refuse):
                await self._stop_listening()
                await self._end_links()
            elif self._accepting is None:
                await self._listen()

        self._in_loop(change)

    def close(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            self._in_loop(self._stop_listening)
            self._in_loop(self._end_links)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _in_loop(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_START_S)

    async def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept(listener))

    async def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None

    async def _end_links(self) -> None:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self.connections += 1
                link = asyncio.create_task(self._link(client))
                self._links.add(link)
                link.add_done_callback(self._links.discard)

    async def _link(self, client: socket.socket) -> None:
        """One connection, to its end."""
        server = socket.socket()
        ended: Literal["", "close", "reset"] = "reset"
        try:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(server, ("127.0.0.1", self._server_port))
            flows = {"request": Flow("request"), "answer": Flow("answer")}
            pumps = [
                asyncio.create_task(self._pump(client, server, client, "request", flows)),
                asyncio.create_task(self._pump(server, client, client, "answer", flows)),
            ]
            try:
                # Both directions may end one after the other; a fault ends both at once.
                ended = ""
                for pump in asyncio.as_completed(pumps):
                    ended = await pump
                    if ended:
                        break
            finally:
                for each in pumps:
                    each.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except asyncio.CancelledError:
            ended = "reset"
            raise
        except OSError:
            ended = "reset"
        finally:
            for sock in (client, server):
                if ended == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()

    async def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        client: socket.socket,
        direction: Direction,
        flows: dict[str, Flow],
    ) -> Literal["", "close", "reset"]:
        """Pass one direction on; how it ended, where a fault has ended it."""
        fault = self._fault
        while piece := await self._loop.sock_recv(source, PIECE_NBYTES):
            other = flows["answer" if direction == "request" else "request"]
            other.turn = True
            while piece:
                if self._fault is not fault:
                    fault = self._fault
                    flows[direction] = Flow(direction)
                flow = flows[direction]
                step = fault.step(flow, piece)
                if step.pause_s and await self._changes_within(step.pause_s):
                    continue
                flow.turn = False
                flow.position += step.consumed
                piece = piece[step.consumed :]
                if step.send:
                    await self._loop.sock_sendall(target, step.send)
                if step.reply:
                    await self._loop.sock_sendall(client, step.reply)
                if step.end:
                    return step.end
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        return ""

    async def _changes_within(self, seconds: float) -> bool:
        changed = self._changed
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await changed.wait()
        except TimeoutError:
            return False
        return True
