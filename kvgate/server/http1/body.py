"""The body of a request on a plain connection, received where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvgate.errors import IncompleteBody
from kvgate.messages import Consume
from kvgate.server.http1.transfer import PeerGone, Receive

if TYPE_CHECKING:
    from kvgate.server.http1.connection import Connection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Body:
    """See RequestBody and ScatteredBody. `Expect: 100-continue` is answered when the body is first asked for."""

    def __init__(self, connection: Connection, nbytes: int, *, expected: bool) -> None:
        """expected: whether the peer waits to be told that it may send"""
        self.left = nbytes
        """How many bytes of it have not been asked for."""
        self._connection = connection
        self._expected = expected and nbytes > 0

    @property
    def unread_after_expect(self) -> bool:
        """Whether the peer still waits to be told that it may send the body."""
        return self._expected

    async def readinto(self, view: memoryview) -> int:
        """See RequestBody."""
        if not self.left:
            return 0
        await self._begin()
        view = view[: self.left]
        count = self._connection.take_received(view)
        if not count:
            count = await self._receive_some(view)
        self._count(count)
        return count

    async def fill(self, views: Sequence[memoryview], consume: Consume, *, slow: bool = False) -> int:
        """See ScatteredBody."""
        wanted = min(sum(map(len, views)), self.left)
        if not wanted:
            return 0
        await self._begin()
        rest = list(views)
        done = 0
        while done < wanted and (count := self._connection.take_received(rest[0][: wanted - done])):
            consume(rest[0][:count])
            rest[0] = rest[0][count:]
            if not rest[0]:
                del rest[0]
            done += count
        self._count(done)
        if done < wanted:
            receive = self._connection.receive(rest, wanted - done, consume)
            try:
                await self._move(receive, slow=slow)
            finally:
                self._count(receive.received)
        return wanted

    async def _receive_some(self, view: memoryview) -> int:
        while True:
            try:
                count = self._connection.sock.recv_into(view)
            except BlockingIOError:
                await self._wait()
            except ConnectionError as error:
                raise incomplete(error) from error
            else:
                if not count:
                    raise incomplete("the peer ended the stream")
                return count

    async def _wait(self) -> None:
        """Wait until there is a byte to read."""
        try:
            await self._connection.readable()
        except (ConnectionError, TimeoutError) as error:
            raise incomplete(error) from error

    async def _move(self, receive: Receive, *, slow: bool) -> None:
        try:
            await self._connection.move(receive, slow=slow)
        except PeerGone as error:
            raise incomplete(error) from error
        except (ConnectionError, TimeoutError) as error:
            raise incomplete(error) from error

    async def _begin(self) -> None:
        if self._expected:
            self._expected = False
            try:
                await self._connection.send([_CONTINUE])
            except (ConnectionError, TimeoutError) as error:
                raise incomplete(error) from error

    def _count(self, nbytes: int) -> None:
        self.left -= nbytes
        self._connection.metrics.received_bytes.inc(nbytes)


def incomplete(error: object) -> IncompleteBody:
    """What to raise for a body of which no more comes; `error` says why."""
    return IncompleteBody(f"the body ended before its announced length: {error}")
