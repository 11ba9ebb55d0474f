"""The objects that are on their way from memory to a lower tier."""

from __future__ import annotations

import asyncio


class Backlog:
    """How many there are, and a way to wait for the next one to arrive."""

    def __init__(self) -> None:
        self.count = 0
        self._moved = asyncio.Event()

    def begin(self) -> None:
        """One more is on its way."""
        self.count += 1

    def end(self) -> None:
        """One has arrived, or is not going any further."""
        self.count -= 1
        self._moved.set()

    async def next(self, timeout_s: float | None = None) -> bool:
        """Wait until one ends; False when none does within `timeout_s`."""
        self._moved.clear()
        waiter = asyncio.ensure_future(self._moved.wait())
        try:
            done, _ = await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            waiter.cancel()
        return bool(done)

    async def clear(self) -> None:
        """Wait until none is on its way."""
        while self.count:
            await self.next()
