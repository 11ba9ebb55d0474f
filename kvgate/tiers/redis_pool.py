"""The connections to one Redis server: as many as allowed, each used by one task at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.exceptions import ConnectionError as RedisConnectionError

from kvgate.tiers.redis_errors import LOST
from kvgate.tiers.redis_place import Address
from kvgate.tiers.redis_wire import Wire

Dial = Callable[[Address], Awaitable[Wire]]


class Pool:
    """Connections to `address`. Those over the limit are waited for."""

    def __init__(self, address: Address, dial: Dial, limit: int) -> None:
        self.address = address
        self._dial = dial
        self._free: list[Wire] = []
        self._slots = asyncio.Semaphore(limit)
        self._wires: set[Wire] = set()
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Wire]:
        """A clean connection for one exchange. What is not clean afterwards is closed before anything else happens."""
        async with self._slots:
            wire = self._take() or await self._dialled()
            try:
                yield wire
            except (*LOST, asyncio.CancelledError):  # the other connections may hang, or be broken, as well
                self.drop_idle()
                raise
            finally:
                if wire.clean and not self._closed:
                    self._free.append(wire)
                else:
                    self._close(wire)

    def drop_idle(self) -> None:
        """Close the connections that are not in use."""
        while self._free:
            self._close(self._free.pop())

    async def close(self) -> None:
        """Close all connections; there are no more after that."""
        self._closed = True
        wires = list(self._wires)
        self._free.clear()
        for wire in wires:
            self._close(wire)
        for wire in wires:
            await wire.wait_closed()

    def _take(self) -> Wire | None:
        while self._free:
            wire = self._free.pop()
            if wire.clean:
                return wire
            self._close(wire)  # the server has closed it meanwhile
        return None

    async def _dialled(self) -> Wire:
        if self._closed:
            raise RedisConnectionError("its connections were closed")
        # In a task, which asyncio.timeout needs: the caller may not have one (see server/http1/eager.py).
        dialling = asyncio.ensure_future(self._dial(self.address))
        try:
            wire = await dialling
        except asyncio.CancelledError:
            dialling.cancel()
            dialling.add_done_callback(_hang_up)  # it may have been connected at that very moment
            raise
        self._wires.add(wire)
        return wire

    def _close(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.abort()


def _hang_up(dialling: asyncio.Future[Wire]) -> None:
    if not dialling.cancelled() and dialling.exception() is None:
        dialling.result().abort()
