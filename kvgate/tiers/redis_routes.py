"""Which server to ask for a key: the only one, the one that the sentinels name, or the cluster's for its slot.

A route forgets what it knows as soon as a server fails, hangs or sends its clients elsewhere, and learns it anew with
the next operation: that is how a failover is followed. Nothing here tries an operation again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from kvgate.errors import TierAway, TierError
from kvgate.tiers.redis_errors import FOREIGN, tier_error
from kvgate.tiers.redis_place import Address, Place
from kvgate.tiers.redis_pool import Dial, Pool
from kvgate.tiers.redis_wire import Argument, Wire, checked, dial

_MOST_ASKED = 64

Connect = Callable[[Address], Pool]


class Route(Protocol):
    """The way to the server of a key."""

    async def locate(self, key: bytes) -> Pool:
        """The connections to the server that has the key, as far as is known. Raises TierError, and FOREIGN errors."""

    def forget(self, pool: Pool) -> None:
        """Note that this server failed, or is not the one to ask any more."""

    def at(self, address: Address) -> Pool:
        """The connections to a server that another one has named."""

    async def close(self) -> None:
        """Close every connection."""


def dialler(tls: ssl.SSLContext | None, timeout_s: float, options: dict[str, Any]) -> Dial:
    """How to connect to a server, in `timeout_s` at most; `options` are redis-py's, for all servers alike."""

    async def connect(address: Address) -> Wire:
        where: dict[str, Any] = {"host": address.host, "port": address.port} if address.port else {}
        async with asyncio.timeout(timeout_s):
            return await dial(None if address.port else address.host, tls, {**where, **options})

    return connect


def route_to(place: Place, connect: Dial, sentinel: Dial, connections: int, patience_s: float) -> Route:
    """The route for a URL.

    connections: at the same time, to each server
    patience_s:  how long one sentinel or node may take to say who has what
    """

    def pool(address: Address) -> Pool:
        return Pool(address, connect, connections)

    if place.kind == "sentinel":
        return SentinelRoute(place, sentinel, pool, patience_s)
    if place.kind == "cluster":
        return ClusterRoute(place, pool, patience_s)
    return SingleRoute(pool(place.addresses[0]))


class SingleRoute:
    """One server has all."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def locate(self, key: bytes) -> Pool:
        """See Route."""
        return self._pool

    def forget(self, pool: Pool) -> None:
        """See Route. There is nowhere else to go."""

    def at(self, address: Address) -> Pool:
        """See Route."""
        raise TierAway(f"redis at {self._pool.address} is part of a cluster; its URL begins with redis+cluster")

    async def close(self) -> None:
        """See Route."""
        await self._pool.close()


class _Discovery:
    """Asking one after the other who has what: once for all who wait, and to its end though they go away.

    Otherwise one sentinel or node that hangs would be asked first by everyone, and nobody would come to the next one.
    """

    def __init__(
        self, addresses: Sequence[Address], ask: Callable[[Address], Awaitable[None]], patience_s: float
    ) -> None:
        self._addresses = list(addresses)
        self._ask = ask
        self._patience_s = patience_s
        self._task: asyncio.Task[None] | None = None
        self.known = False
        """Whether what was learnt last still counts."""

    async def done(self) -> None:
        """Return when somebody has answered. Raises TierAway when nobody does."""
        if not self.known:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._discover())
            await asyncio.shield(self._task)

    def know_of(self, addresses: Iterable[Address]) -> None:
        """Note who can be asked first next time."""
        self._addresses = list(dict.fromkeys([*addresses, *self._addresses]))[:_MOST_ASKED]

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _discover(self) -> None:
        problem = ""
        for address in list(self._addresses):
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._ask(address)
            except (*FOREIGN, TierError) as error:
                problem = str(error if isinstance(error, TierError) else tier_error(error, str(address)))
                self._addresses.remove(address)
                self._addresses.append(address)  # last next time
            else:
                self.known = True
                return
        raise TierAway(f"nobody says which redis has what; the last one asked: {problem}")


class SentinelRoute:
    """One server has all, and the sentinels know which."""

    def __init__(self, place: Place, sentinel: Dial, pool: Connect, patience_s: float) -> None:
        self._service = place.service
        self._dial_sentinel = sentinel
        self._make_pool = pool
        self._pool: Pool | None = None
        self._discovery = _Discovery(place.addresses, self._ask, patience_s)

    async def locate(self, key: bytes) -> Pool:
        """See Route."""
        await self._discovery.done()
        assert self._pool is not None, "somebody has answered"
        return self._pool

    def forget(self, pool: Pool) -> None:
        """See Route."""
        if pool is self._pool:
            self._discovery.known = False

    def at(self, address: Address) -> Pool:
        """See Route."""
        raise TierAway("a server behind the sentinels is part of a cluster; its URL begins with redis+cluster")

    async def close(self) -> None:
        """See Route."""
        await self._discovery.close()
        if self._pool is not None:
            await self._pool.close()

    async def _ask(self, sentinel: Address) -> None:
        pool = Pool(sentinel, self._dial_sentinel, 1)
        try:
            async with pool.connection() as wire:
                answer = await _call(wire, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        finally:
            await pool.close()
        if not answer:
            raise TierAway(f"the sentinel at {sentinel} knows no {self._service}")
        address = Address(answer[0].decode(), int(answer[1]))
        if self._pool is None or self._pool.address != address:
            old, self._pool = self._pool, self._make_pool(address)
            if old is not None:
                await old.close()


class ClusterRoute:
    """Each slot of the cluster has its server."""

    def __init__(self, place: Place, pool: Connect, patience_s: float) -> None:
        self._make_pool = pool
        self._pools: dict[Address, Pool] = {}
        self._slots: list[Address | None] = []
        self._discovery = _Discovery(place.addresses, self._ask, patience_s)

    async def locate(self, key: bytes) -> Pool:
        """See Route."""
        await self._discovery.done()
        address = self._slots[key_slot(key)]
        if address is None:
            self._discovery.known = False
            raise TierAway("no server of the redis cluster has the slot of this key now")
        return self.at(address)

    def forget(self, pool: Pool) -> None:
        """See Route."""
        self._discovery.known = False

    def at(self, address: Address) -> Pool:
        """See Route."""
        if address not in self._pools:
            self._pools[address] = self._make_pool(address)
        return self._pools[address]

    async def close(self) -> None:
        """See Route."""
        await self._discovery.close()
        for pool in self._pools.values():
            await pool.close()

    async def _ask(self, node: Address) -> None:
        async with self.at(node).connection() as wire:
            ranges = await _call(wire, "CLUSTER", "SLOTS")
        self._slots = _slots(ranges, node)
        servers = {address for address in self._slots if address is not None}
        self._discovery.know_of([node, *sorted(servers)])
        for address in self._pools.keys() - servers:
            await self._pools.pop(address).close()


def _slots(ranges: Sequence[Any], asked: Address) -> list[Address | None]:
    """The server of each slot, from an answer to CLUSTER SLOTS of the server `asked`."""
    slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in ranges:
        name = (host or b"").decode()
        address = Address(asked.host if name in ("", "?") else name, port)
        slots[first : last + 1] = [address] * (last + 1 - first)
    return slots


async def _call(wire: Wire, *arguments: Argument) -> Any:
    """The answer to one command. Raises FOREIGN errors."""
    wire.send(*arguments)
    return checked(await wire.reply())
