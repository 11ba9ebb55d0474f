"""Work that is begun at once and goes on in a task."""

from __future__ import annotations

import asyncio

import pytest

from kvgate.server.http1.eager import run_eagerly


async def test_what_does_not_wait_has_ended_and_has_no_task() -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append("done")

    assert run_eagerly(work(), pytest.fail)
    assert seen == ["done"]


async def test_what_waits_goes_on_in_a_task_with_results_and_errors() -> None:
    tasks: list[asyncio.Task[None]] = []
    first, second = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
    seen: list[object] = []

    async def work() -> None:
        seen.append(await first)
        try:
            await second
        except ValueError as error:
            seen.append(error)
        async with asyncio.timeout(10):  # by now it is in a task
            await asyncio.sleep(0)
        raise KeyError("the end")

    assert not run_eagerly(work(), lambda rest: tasks.append(asyncio.ensure_future(rest)))
    first.set_result("one")
    second.set_exception(error := ValueError("two"))
    with pytest.raises(KeyError, match="the end"):
        await tasks[0]
    assert seen == ["one", error]


async def test_an_error_before_the_first_wait_is_the_callers() -> None:
    async def work() -> None:
        raise KeyError("at once")

    with pytest.raises(KeyError):
        run_eagerly(work(), pytest.fail)


async def test_a_cancelled_task_cancels_what_was_begun() -> None:
    tasks: list[asyncio.Task[None]] = []
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled = True
            raise

    run_eagerly(work(), lambda rest: tasks.append(asyncio.ensure_future(rest)))
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert cancelled
