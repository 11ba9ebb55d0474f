"""What waits to be written to one tier: fair between tenants, first in, first out within one, and bounded.

Invariants
1. Among the tenants that wait, the one goes next to which least has been written for its weight since it began to wait.
   So one that comes with a single object waits for at most one of each other tenant, however much they have waiting.
2. What falls out of a full queue is the oldest of the tenant that has the most waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable

from kvgate.store.index import Entry


class WriteQueue:
    """Entries that wait, and those that are being written.

    limit:  how many may wait; None where something else bounds them
    weight: of a tenant
    """

    def __init__(self, limit: int | None, weight: Callable[[str], float] = lambda _: 1.0) -> None:
        self._limit = limit
        self._weight = weight
        self._waiting: dict[str, OrderedDict[Entry, None]] = {}  # by tenant; none is empty
        self._count = 0
        self._taken: set[Entry] = set()
        self._written: dict[str, float] = {}  # by tenant, bytes for its weight, on a scale that all have in common
        self._level = 0.0  # on that scale, where the tenant stood that was taken from last
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return self._count + len(self._taken)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._taken or entry in self._waiting.get(entry.record.tenant, ())

    def put(self, entry: Entry) -> Entry | None:
        """Add an entry, unless it is there; one that is taken out to keep the limit."""
        if entry in self:
            return None
        tenant = entry.record.tenant
        if tenant not in self._waiting:
            self._waiting[tenant] = OrderedDict()
            self._written[tenant] = max(self._level, self._written.get(tenant, 0.0))
        self._waiting[tenant][entry] = None
        self._count += 1
        self._changed.set()
        if self._limit is None or self._count <= self._limit:
            return None
        return self._pop(max(self._waiting, key=lambda each: len(self._waiting[each])))

    async def take(self) -> Entry:
        """Wait for the entry whose turn it is. It counts until `end`."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        tenant = min(self._waiting, key=self._written.__getitem__)
        self._level = self._written[tenant]
        entry = self._pop(tenant)
        self._written[tenant] += max(1, entry.record.nbytes) / self._weight(tenant)
        self._taken.add(entry)
        return entry

    def end(self, entry: Entry) -> None:
        """An entry that was taken has arrived, or is not going any further."""
        self._taken.discard(entry)
        self._changed.set()

    async def wait_until_empty(self, timeout_s: float) -> None:
        """Wait until nothing is left, for at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                while len(self):
                    self._changed.clear()
                    await self._changed.wait()

    def clear(self) -> list[Entry]:
        """Take everything out that nobody has taken yet."""
        waiting = [entry for entries in self._waiting.values() for entry in entries]
        self._waiting.clear()
        self._count = 0
        return waiting

    def _pop(self, tenant: str) -> Entry:
        entries = self._waiting[tenant]
        entry, _ = entries.popitem(last=False)
        if not entries:
            del self._waiting[tenant]
        self._count -= 1
        return entry
