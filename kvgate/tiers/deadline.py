"""A tier that never keeps its caller waiting for longer than its rules allow."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from kvgate.errors import TierAway
from kvgate.tiers.base import SharedTier, Upload
from kvgate.tiers.rules import TierRules
from kvgate.tiers.wrapper import Operation, T, Work, Wrapper

logger = logging.getLogger(__name__)


class Deadline(Wrapper):
    """Every operation ends in the time that `rules` allow, with TierAway if need be.

    An operation that is late is cancelled, and so is one whose caller is; nobody waits for it then. It keeps its lease
    until it has really ended: memory that it was to fill may change until then, so the caller has to let go of that and
    read into other memory.
    """

    def __init__(self, tier: SharedTier, rules: TierRules) -> None:
        super().__init__(tier)
        self._rules = rules
        self._left: set[asyncio.Task[Any]] = set()

    @property
    def left(self) -> int:
        """How many operations have been cancelled and have not ended yet."""
        return len(self._left)

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """See Wrapper."""
        allowed_s = self._rules.allowed_s(nbytes, lookup=operation == "lookup")
        task = asyncio.create_task(work())
        try:
            await asyncio.wait([task], timeout=allowed_s)
        except BaseException:
            self._leave(task, operation)
            raise
        if not task.done():
            self._leave(task, operation)
            raise TierAway(f"the {self.name} tier did not answer a {operation} within {allowed_s:.3g} s")
        if task.cancelled():
            raise TierAway(f"the {self.name} tier broke off a {operation}")
        return task.result()

    async def close(self) -> None:
        """See Tier. Operations that were left get as long as one of them might have had."""
        if self._left:
            _, running = await asyncio.wait(self._left, timeout=self._rules.timeout)
            if running:
                logger.warning("%d operations of the %s tier do not end", len(running), self.name)
        await super().close()

    def _leave(self, task: asyncio.Task[Any], operation: Operation) -> None:
        self._left.add(task)
        task.add_done_callback(lambda _: self._ended(task, operation))
        task.cancel()

    def _ended(self, task: asyncio.Task[Any], operation: Operation) -> None:
        self._left.discard(task)
        if task.cancelled() or task.exception() is not None:
            return  # nobody waits for it any more
        if operation == "begin":
            upload: Upload = task.result()
            self._leave_to_end(upload)

    def _leave_to_end(self, upload: Upload) -> None:
        """Drop an upload that was begun too late to be given to anyone."""
        task = asyncio.create_task(upload.abort())
        self._left.add(task)
        task.add_done_callback(lambda _: self._ended(task, "abort"))
