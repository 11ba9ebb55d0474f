"""What waits to be written to one tier: first in, first out, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict

from kvgate.store.index import Entry


class WriteQueue:
    """Entries in the order in which they came, those that are being written included.

    limit: how many there may be; None where something else bounds them
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._waiting: OrderedDict[Entry, None] = OrderedDict()
        self._taken: set[Entry] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)

    def __contains__(self, entry: object) -> bool:
        return entry in self._waiting or entry in self._taken

    def put(self, entry: Entry) -> Entry | None:
        """Add an entry, unless it is there; the oldest one, taken out to keep the limit."""
        if entry in self:
            return None
        self._waiting[entry] = None
        self._changed.set()
        if self._limit is None or len(self._waiting) <= self._limit:
            return None
        return self._waiting.popitem(last=False)[0]

    async def take(self) -> Entry:
        """Wait for the first entry. It counts until `end`."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        entry = self._waiting.popitem(last=False)[0]
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
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting
