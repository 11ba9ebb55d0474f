"""A tier whose passing errors are tried again. No other wrapper retries."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable

from kvgate.errors import CorruptCopy, TierBusy, TierError
from kvgate.memory.lease import Lease
from kvgate.tiers.base import Arrived, Copy, Reader, Record
from kvgate.tiers.wrapper import Operation, T, Work, WrappedReader, Wrapper

_IDEMPOTENT: frozenset[Operation] = frozenset({"lookup", "publish", "read", "delete"})
"""An upload is not: whoever has its bytes begins another one."""

_ATTEMPTS = 3
_PAUSE_S = 0.05
"""The longest pause before the second attempt; before each further one it may be twice as long."""


class Retry(Wrapper):
    """Transient errors of lookups, reads, publishes and deletes are tried again, `_ATTEMPTS` times in all.

    A read that brought corrupt bytes is done once more, so that a copy is not dropped for what happened on the way.
    A pause of random length goes before each further attempt, so that callers who failed together do not return
    together. The deadline of the whole is someone else's, around this.
    """

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """See Wrapper."""
        if operation not in _IDEMPOTENT:
            return await work()
        return await self.attempts(work, reads=operation == "read")

    async def attempts(self, work: Work[T], *, reads: bool, untouched: Callable[[], bool] = lambda: True) -> T:
        """What the first attempt that succeeds gives.

        reads:     whether bytes that are corrupt should be read once more: it may have happened on their way
        untouched: whether nothing has been done with what a failed attempt has brought
        """
        longest_s = _PAUSE_S
        for _ in range(_ATTEMPTS - 1):
            try:
                return await work()
            except TierBusy:
                raise  # the queue is ours, and full: one more in it mends nothing
            except CorruptCopy:
                if not reads or not untouched():
                    raise
                reads = False
            except TierError as error:
                if not error.transient or not untouched():
                    raise
            await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311
            longest_s *= 2
        return await work()

    def open(self, record: Record, copy: Copy) -> Reader:
        """See Tier."""
        return _Reader(self, self.tier.open(record, copy))


class _Reader(WrappedReader):
    """A reader that reads again only while nobody has been told that something is there.

    What is there and verified may be on its way to a client already, and reading it again would write over it.
    """

    def __init__(self, retry: Retry, reader: Reader) -> None:
        super().__init__(retry, reader)
        self._retry = retry

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        if arrived is None:
            return await super().read_into(start, lease, nbytes)
        told = False

        def tell(nbytes: int) -> None:
            nonlocal told
            told = told or nbytes > 0
            arrived(nbytes)

        return await self._retry.attempts(
            self.reading(start, lease, nbytes, tell), reads=True, untouched=lambda: not told
        )
