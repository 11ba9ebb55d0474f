"""Where engines on this host attach: the socket, its connections, and their deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.tenants import Tenants
from kvgate.errors import Overloaded
from kvgate.memory import handoff
from kvgate.memory.arena import Arena
from kvgate.metrics import Metrics
from kvgate.server.shm.connection import Connection
from kvgate.store.store import Store

logger = logging.getLogger(__name__)

MAX_ENGINES = 64
"""Connections that one tenant may have attached at the same time."""

_MAX_UNATTACHED = 64
_ATTACH_S = 5.0
_EXPIRE_EVERY_S = 0.25


class EngineListener:
    """Accepts engines on `sock` and keeps their deadlines. Used by the event loop only."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        store: Store,
        arena: Arena,
        authenticator: Authenticator,
        tenants: Tenants,
        metrics: Metrics,
        boot_id: bytes,
        lease_s: float,
    ) -> None:
        self.store, self.arena = store, arena
        self.authenticator, self.tenants = authenticator, tenants
        self.metrics = metrics
        self.boot_id = boot_id
        self.lease_s = lease_s
        self.buffer = memoryview(bytearray(handoff.MAX_FRAME_NBYTES + 1))
        """Where each frame is received: memory of that size takes longer to get than a frame to answer."""
        self.granted: Counter[str] = Counter()
        """Objects granted, by tier, since the metrics were last collected: to count each there takes too long."""
        self.tasks: asyncio.TaskGroup
        sock.setblocking(False)
        self._sock = sock
        self._connections: set[Connection] = set()
        self._numbers = count(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Engines can attach inside the context; leaving it ends their connections."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self.tasks:
            sweeper = self.tasks.create_task(self._expire_forever())
            loop.add_reader(self._sock.fileno(), self._accept)
            try:
                yield
            finally:
                loop.remove_reader(self._sock.fileno())
                sweeper.cancel()
                for connection in list(self._connections):
                    connection.close("the gateway ends")
                    connection.forget()

    def admit(self, tenant: str) -> None:
        """Raises Overloaded when a tenant has as many engines as it may."""
        if self._engines()[tenant] >= MAX_ENGINES:
            raise Overloaded(f"{MAX_ENGINES} engines of this tenant are attached; use fewer connections")

    def next_number(self) -> int:
        """A number that no connection has had."""
        return next(self._numbers)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    def collect(self) -> None:
        """Bring the gauges of the metrics up to date."""
        granted, self.granted = self.granted, Counter()
        self.metrics.shm_granted.inc(granted.total())
        for tier, objects in granted.items():
            self.metrics.reads.labels(tier).inc(objects)
        self.metrics.shm_engines.set(sum(self._engines().values()))
        self.metrics.shm_grants.set(sum(connection.grant_count for connection in self._connections))

    def _engines(self) -> Counter[str]:
        return Counter(connection.tenant for connection in self._connections if connection.tenant)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:  # nobody any more, or no descriptor left for now
            logger.debug("shared memory: no connection: %s", error)
            return
        sock.setblocking(False)
        if len(self._connections) - sum(self._engines().values()) >= _MAX_UNATTACHED:
            sock.close()
            return
        self._connections.add(Connection(sock, self, asyncio.get_running_loop().time() + _ATTACH_S))

    async def _expire_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            now = loop.time()
            for connection in list(self._connections):
                connection.expire(now)
