"""Which server to ask for a key: the only one, the one that the sentinels name, or the cluster's for its slot.

A route forgets what it knows as soon as a server fails, hangs or sends its clients elsewhere, and learns it anew with
the next operation: that is how a failover is followed. Nothing here tries an operation again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from kvgate.errors import TierAway
from kvgate.tiers.redis_errors import FOREIGN, tier_error
from kvgate.tiers.redis_place import Address, Place
from kvgate.tiers.redis_pool import Dial, Pool
from kvgate.tiers.redis_wire import Argument, Wire, checked, dial

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


def route_to(place: Place, connect: Dial, sentinel: Dial, connections: int) -> Route:
    """The route for a URL.

    connections: at the same time, to each server
    """

    def pool(address: Address) -> Pool:
        return Pool(address, connect, connections)

    if place.kind == "sentinel":
        return SentinelRoute(place, sentinel, pool)
    if place.kind == "cluster":
        return ClusterRoute(place, pool)
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


class SentinelRoute:
    """One server has all, and the sentinels know which."""

    def __init__(self, place: Place, sentinel: Dial, pool: Connect) -> None:
        self._service = place.service
        self._sentinels = list(place.addresses)
        self._dial_sentinel = sentinel
        self._make_pool = pool
        self._pool: Pool | None = None
        self._known = False
        self._asking = asyncio.Lock()

    async def locate(self, key: bytes) -> Pool:
        """See Route."""
        async with self._asking:
            if self._pool is None or not self._known:
                address = await self._master()
                if self._pool is None or self._pool.address != address:
                    if self._pool is not None:
                        await self._pool.close()
                    self._pool = self._make_pool(address)
                self._known = True
            return self._pool

    def forget(self, pool: Pool) -> None:
        """See Route."""
        if pool is self._pool:
            self._known = False
            self._sentinels.append(self._sentinels.pop(0))  # it may be the sentinel that does not know better

    def at(self, address: Address) -> Pool:
        """See Route."""
        raise TierAway("a server behind the sentinels is part of a cluster; its URL begins with redis+cluster")

    async def close(self) -> None:
        """See Route."""
        if self._pool is not None:
            await self._pool.close()

    async def _master(self) -> Address:
        problem = "none has answered"
        for address in list(self._sentinels):
            try:
                answer = await self._ask(address)
            except (*FOREIGN, TierAway) as error:
                problem = str(error if isinstance(error, TierAway) else tier_error(error, str(address)))
                self._sentinels.remove(address)
                self._sentinels.append(address)
                continue
            if answer is not None:
                return answer
            problem = f"the sentinel at {address} does not know it"
        raise TierAway(f"no sentinel names a server for {self._service}: {problem}")

    async def _ask(self, address: Address) -> Address | None:
        pool = Pool(address, self._dial_sentinel, 1)
        try:
            async with pool.connection() as wire:
                answer = await _call(wire, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        finally:
            pool.drop_idle()
        return Address(answer[0].decode(), int(answer[1])) if answer else None


class ClusterRoute:
    """Each slot of the cluster has its server."""

    def __init__(self, place: Place, pool: Connect) -> None:
        self._seeds = place.addresses
        self._make_pool = pool
        self._pools: dict[Address, Pool] = {}
        self._slots: list[Address | None] = []
        self._known = False
        self._asking = asyncio.Lock()

    async def locate(self, key: bytes) -> Pool:
        """See Route."""
        if not self._known:
            async with self._asking:
                if not self._known:
                    await self._learn()
        address = self._slots[key_slot(key)]
        if address is None:
            self._known = False
            raise TierAway("no server of the redis cluster has the slot of this key now")
        return self.at(address)

    def forget(self, pool: Pool) -> None:
        """See Route."""
        self._known = False

    def at(self, address: Address) -> Pool:
        """See Route."""
        if address not in self._pools:
            self._pools[address] = self._make_pool(address)
        return self._pools[address]

    async def close(self) -> None:
        """See Route."""
        for pool in self._pools.values():
            await pool.close()

    async def _learn(self) -> None:
        problem = ""
        for address in dict.fromkeys([*self._pools, *self._seeds]):
            pool = self.at(address)
            try:
                async with pool.connection() as wire:
                    ranges = await _call(wire, "CLUSTER", "SLOTS")
            except FOREIGN as error:
                problem = str(tier_error(error, str(address)))
                continue
            await self._adopt(_slots(ranges, address))
            return
        raise TierAway(f"no server of the redis cluster says who has what; the last one: {problem}")

    async def _adopt(self, slots: list[Address | None]) -> None:
        self._slots = slots
        self._known = True
        for address in self._pools.keys() - set(slots):
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
