"""One connection to a Redis server: commands out of leased memory, replies into it, and never somebody else's reply.

redis-py makes the connection and proves who we are; from then on a `Wire` carries the bytes, because redis-py would
copy a value four times on its way in. It speaks RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec).

Invariants
1. A connection is used by one task at a time, and again only while it is `clean`: no reply is outstanding, and none
   has come that nobody asked for. A task that is cancelled between command and reply leaves it unclean, for ever.
2. The transport holds views of a lease only between `send` and the return of `flushed`, or until `abort`.
3. Bytes are received into a caller's views only while `receive` waits.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis._parsers import BaseParser
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError

from kvgate.errors import CorruptCopy

Reply = bytes | int | None | list[Any] | RedisError
"""What a server answered; an error is a value here, so that the replies behind it are read as well."""

_BUFFER_NBYTES = 32 << 10
_LONGEST_REPLY_NBYTES = 32 << 20
_MOST_ITEMS = 1 << 20
_DEEPEST = 8


class Body(NamedTuple):
    """An argument of a command that lies in several pieces of memory."""

    views: Sequence[memoryview]
    nbytes: int


Argument = bytes | str | int | Body


class Wire(asyncio.BufferedProtocol):
    """A connection that is open. See the module's invariants."""

    def __init__(self) -> None:
        self.asking = False
        """Whether each command is preceded by ASKING: its slot is on its way to this server."""
        self._transport: asyncio.Transport | None = None
        self._lost: str | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wake: asyncio.Future[None] | None = None
        self._paused_writing = False
        self._paused_reading = False
        self._outstanding: deque[bool] = deque()  # of each reply to come, whether that of ASKING precedes it
        self._unsent = bytearray()
        self._buffer = bytearray(_BUFFER_NBYTES)
        self._memory = memoryview(self._buffer)
        self._begin = self._end = 0  # what has come and is not yet read
        self._target: memoryview | None = None

    @property
    def clean(self) -> bool:
        """Whether the next reply will be that of the next command."""
        return self._lost is None and not self._outstanding and not self._unsent and self._begin == self._end

    def abort(self) -> None:
        """Close at once. From here on no view is read or written."""
        self._lost = self._lost or "the connection was closed"
        self._target = None
        self._unsent.clear()
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the socket is closed, after `abort`."""
        if self._transport is not None:
            await asyncio.shield(self._ended)

    # --- commands -----------------------------------------------------------------------------------------------------

    def send(self, *arguments: Argument, alone: bool = True) -> None:
        """Queue a command, which has one reply.

        alone: not one of a transaction behind its MULTI
        """
        asking = self.asking and alone
        if asking:
            self._unsent += b"*1\r\n$6\r\nASKING\r\n"
        self._outstanding.append(asking)
        self._unsent += b"*%d\r\n" % len(arguments)
        for argument in arguments:
            if isinstance(argument, Body):
                self._unsent += b"$%d\r\n" % argument.nbytes
                self._write_unsent()
                for view in argument.views:
                    self._write(view)
                self._unsent += b"\r\n"
            else:
                data = argument if isinstance(argument, bytes) else str(argument).encode()
                self._unsent += b"$%d\r\n%s\r\n" % (len(data), data)

    async def flushed(self) -> None:
        """Return when all that was sent is with the kernel."""
        self._write_unsent()
        while self._paused_writing:
            await self._more()

    def _write_unsent(self) -> None:
        if self._unsent:
            self._write(bytes(self._unsent))
            self._unsent.clear()

    def _write(self, data: bytes | memoryview) -> None:
        if self._lost is not None or self._transport is None:
            raise RedisConnectionError(self._lost or "not connected")
        self._transport.write(data)

    # --- replies ------------------------------------------------------------------------------------------------------

    async def reply(self) -> Reply:
        """The next reply."""
        refused = await self._begin_reply()
        value = await self._value(0)
        self._outstanding.popleft()
        return refused or value

    async def receive(self, views: Sequence[memoryview]) -> bool:
        """Fill `views` with the next reply; False when it is nil.

        Raises CorruptCopy when it is of another length, and the RedisError that came instead.
        """
        refused = await self._begin_reply()
        line = await self._line()
        if not line.startswith(b"$"):
            value = await self._value_of(line, 0)
            self._outstanding.popleft()
            raise refused or (value if isinstance(value, RedisError) else InvalidResponse("expected a string"))
        nbytes = _integer(line)
        if nbytes >= 0:
            if nbytes != sum(map(len, views)):
                raise CorruptCopy(f"a piece of {nbytes} bytes has another length than it should")
            for view in views:
                await self._fill(view)
            await self._crlf()
        self._outstanding.popleft()
        if refused is not None:
            raise refused
        return nbytes >= 0

    async def _begin_reply(self) -> RedisError | None:
        await self.flushed()
        said = await self._value(0) if self._outstanding[0] else None
        return said if isinstance(said, RedisError) else None

    async def _value(self, depth: int) -> Reply:
        return await self._value_of(await self._line(), depth)

    async def _value_of(self, line: bytes, depth: int) -> Reply:
        kind = line[:1]
        if kind == b"+":
            return line[1:]
        if kind == b":":
            return _integer(line)
        if kind == b"-":
            return _error(line)
        count = _integer(line)
        if count == -1 and kind in b"$*":
            return None
        if kind == b"$" and 0 <= count <= _LONGEST_REPLY_NBYTES:
            data = bytearray(count)
            await self._fill(memoryview(data))
            await self._crlf()
            return bytes(data)
        if kind == b"*" and 0 <= count <= _MOST_ITEMS and depth < _DEEPEST:
            return [await self._value(depth + 1) for _ in range(count)]
        raise InvalidResponse("the server does not speak RESP2, or an answer is far too long")

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._begin, self._end)) < 0:
            if self._end - self._begin == _BUFFER_NBYTES:
                raise InvalidResponse("the server does not speak RESP2")
            await self._more()
        line = bytes(self._memory[self._begin : end])
        self._begin = end + 2
        return line

    async def _crlf(self) -> None:
        end = bytearray(2)
        await self._fill(memoryview(end))
        if end != b"\r\n":
            raise InvalidResponse("the server does not speak RESP2")

    async def _fill(self, view: memoryview) -> None:
        have = min(len(view), self._end - self._begin)
        view[:have] = self._memory[self._begin : self._begin + have]
        self._begin += have
        self._target = view[have:]
        try:
            while self._target:
                await self._more()
        finally:
            self._target = None

    async def _more(self) -> None:
        """Return when something has changed. Raises RedisConnectionError when the connection is lost."""
        if self._lost is not None:
            raise RedisConnectionError(self._lost)
        if self._paused_reading and self._transport is not None:
            self._compact()
            if self._end < _BUFFER_NBYTES:
                self._paused_reading = False
                self._transport.resume_reading()
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _compact(self) -> None:
        rest = bytes(self._memory[self._begin : self._end])
        self._memory[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- what the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Nothing may be left in the transport when `flushed` returns; but with 0 that of TLS would never resume.
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1, low=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        if self._target:
            return self._target
        if self._begin:
            self._compact()
        return self._memory[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        if self._target:
            self._target = self._target[nbytes:]
            if self._target:
                return
        else:
            self._end += nbytes
            if self._end == _BUFFER_NBYTES and self._transport is not None:
                self._paused_reading = True
                self._transport.pause_reading()
        self._wake_up()

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        self._lost = self._lost or "the server closed the connection"
        self._wake_up()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        self._lost = self._lost or ("the server closed the connection" if error is None else reason.lower())
        self._wake_up()
        if not self._ended.done():
            self._ended.set_result(None)

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._paused_writing = False
        self._wake_up()

    # --- what redis-py calls while it connects ------------------------------------------------------------------------

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Send one command that redis-py has packed."""
        self._outstanding.append(False)
        for part in parts:
            self._unsent += part
        self._write_unsent()

    async def drain(self) -> None:
        """See asyncio.StreamWriter."""
        await self.flushed()

    def close(self) -> None:
        """See asyncio.StreamWriter."""
        self.abort()

    def get_extra_info(self, name: str) -> Any:
        """See asyncio.StreamWriter."""
        return self._transport.get_extra_info(name) if self._transport is not None else None


class _Replies(BaseParser):
    """What redis-py asks for the replies of its handshake."""

    def __init__(self, socket_read_size: int) -> None:
        self._wire: Wire | None = None

    def on_connect(self, connection: Any) -> None:
        self._wire = connection._reader

    def on_disconnect(self) -> None:
        self._wire = None

    async def can_read(self) -> bool:
        return self._wire is None or not self._wire.clean

    async def read_response(self, disable_decoding: bool = False) -> Reply:
        if self._wire is None:
            raise RedisConnectionError("not connected")
        value = await self._wire.reply()
        if isinstance(value, RedisConnectionError):
            raise value
        return value


class _Dialling(Connection):
    """redis-py's connection, over a Wire."""

    def __init__(self, path: str | None, tls: ssl.SSLContext | None, **options: Any) -> None:
        self._path = path
        self._tls = tls
        self.failure: OSError | None = None  # before redis-py makes a text of it
        super().__init__(**options)

    async def _connect(self) -> None:
        try:
            await self._open()
        except OSError as error:
            self.failure = error
            raise

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            _, wire = await loop.create_unix_connection(Wire, self._path)
        else:
            _, wire = await loop.create_connection(Wire, self.host, self.port, ssl=self._tls)
            sock = wire.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            options: Mapping[int, int] = self.socket_keepalive_options  # type: ignore[assignment]
            for name, value in options.items():
                sock.setsockopt(socket.IPPROTO_TCP, name, value)
        self._reader = self._writer = wire  # type: ignore[assignment]


async def dial(path: str | None, tls: ssl.SSLContext | None, options: Mapping[str, Any]) -> Wire:
    """A new connection, authenticated, with its database selected. Raises RedisError or OSError.

    path:    of a unix socket, instead of `host` and `port` in the options
    options: as redis-py's Connection takes them
    """
    connection = _Dialling(
        path, tls, parser_class=_Replies, protocol=2, driver_info=None, socket_timeout=None, **options
    )
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        wire: object = connection._reader
        assert isinstance(wire, Wire)
        connection._reader = connection._writer = None
        return wire
    except BaseException:
        connection._close()  # type: ignore[no-untyped-call]
        if connection.failure is not None:
            raise connection.failure from None
        raise


def checked(value: Reply) -> Any:
    """A reply that is no error. Raises it when it is one."""
    if isinstance(value, RedisError):
        raise value
    return value


def _integer(line: bytes) -> int:
    try:
        return int(line[1:])
    except ValueError as error:
        raise InvalidResponse("the server does not speak RESP2") from error


def _error(line: bytes) -> RedisError:
    try:
        text = line[1:].decode("utf-8", "replace")
        error: RedisError = _Replies.parse_error(text)  # type: ignore[no-untyped-call]
    except ValueError as cause:
        raise InvalidResponse("a redirection that cannot be read") from cause
    return error
