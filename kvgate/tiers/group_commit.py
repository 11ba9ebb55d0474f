"""Writes that are gathered: while one transaction commits, those that arrive meanwhile form the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Generic, TypeVar

from kvgate.errors import TierError

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Carries changes out in the order of the calls, a batch at a time. To be used on the event loop."""

    def __init__(
        self, thread: Executor, commit: Callable[[list[T]], None], tier_error: Callable[[BaseException], TierError]
    ) -> None:
        """
        thread:     where `commit` runs, once at a time
        commit:     carries a batch out, all or none of it
        tier_error: what its failure means to those who wait
        """
        self._thread = thread
        self._commit = commit
        self._tier_error = tier_error
        self._pending: list[T] = []
        self._gathering: asyncio.Future[None] | None = None
        self._committing = False

    async def add(self, changes: Iterable[T]) -> None:
        """Return when the changes are committed. When cancelled, they are committed all the same. Raises TierError."""
        loop = asyncio.get_running_loop()
        self._pending.extend(changes)
        if self._gathering is None:
            self._gathering = loop.create_future()
        committed = self._gathering
        if not self._committing:
            self._start(loop)
        await asyncio.shield(committed)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, committed = self._pending, self._gathering
        assert committed is not None
        self._pending, self._gathering, self._committing = [], None, True

        def ended(running: asyncio.Future[None]) -> None:
            self._committing = False
            error = running.exception()
            if error is None:
                committed.set_result(None)
            else:
                committed.set_exception(self._tier_error(error))
                committed.exception()  # whoever still waits sees it; nobody has to
            if self._pending:
                self._start(loop)

        loop.run_in_executor(self._thread, self._commit, batch).add_done_callback(ended)
