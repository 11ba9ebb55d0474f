"""An object on its way to memory, which can be read as far as it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvgate.memory.lease import Lease


class Arrival:
    """The memory that a promotion fills, and how much of it. All methods run on the event loop.

    lease:  the promotion's; a reader takes a share of it, as the promotion may end and be evicted meanwhile
    nbytes: the first bytes that are there and verified
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.nbytes = 0
        self.followers: set[Callable[[Lease], None]] = set()
        """Told of a `switch` with a share of the other memory, before anything has come there."""
        self.ended = False
        self._error: Exception | None = None
        self._moved = asyncio.Event()

    def switch(self, lease: Lease) -> None:
        """Go on with other memory, into which nothing has come so far. Whoever has a share of the last one keeps it."""
        self.lease.release()
        self.lease = lease
        self.nbytes = 0
        for follow in self.followers:
            follow(lease.share())

    def advance(self, nbytes: int) -> None:
        """Note that the first `nbytes` are there and verified."""
        self.nbytes = max(self.nbytes, nbytes)
        self._moved.set()

    def end(self, error: Exception | None) -> None:
        """Note that all is there, or with an error that nothing more will come."""
        self._error, self.ended = error, True
        self._moved.set()

    async def reach(self, nbytes: int) -> None:
        """Wait until the first `nbytes` are there, at least one; of an empty object, until it is verified.

        Raises the error that ended the promotion before that.
        """
        while not self.ended and self.nbytes < max(nbytes, 1):
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None and self.nbytes < max(nbytes, 1):
            raise self._error

    async def wait(self) -> None:
        """Wait for the end. Raises its error."""
        while not self.ended:
            self._moved.clear()
            await self._moved.wait()
        if self._error is not None:
            raise self._error
