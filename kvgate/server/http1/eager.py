"""Coroutines that mostly end without waiting: run at once, and given a task only when they wait for something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any


def run_eagerly(work: Coroutine[Any, Any, None], create_task: Callable[[Coroutine[Any, Any, None]], Any]) -> bool:
    """Run `work` up to its first wait; whether that was its end. The rest is run by a task.

    Before its first wait `work` is not in a task: it must not use `asyncio.timeout` or `asyncio.TaskGroup` until then.
    Raises what `work` raises before its first wait. (Python 3.12 has this as `asyncio.eager_task_factory`.)
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return True
    create_task(_rest(work, waits_for))
    return False


async def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _Continued(work, waits_for)


class _Continued:
    """A coroutine that has been begun: hands on what it waits for, and what comes of that, as `yield from` does."""

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: asyncio.Future[Any] | None) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        work, waits_for = self._work, self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = work.throw(error)
                else:
                    waits_for = work.send(value)
            except StopIteration:
                return
