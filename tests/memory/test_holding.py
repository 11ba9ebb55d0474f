"""A slot is released when the thread that uses it has ended, whatever became of the coroutine that waited."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvgate.errors import LeaseReleased
from kvgate.memory import PAGE_NBYTES, Arena, run_holding


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 * PAGE_NBYTES)
    yield arena
    assert arena.used_nbytes == arena.lease_count == 0
    arena.close()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def test_result_and_error_reach_the_awaiter(arena: Arena, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        with arena.reserve("a", 10) as one, arena.reserve("a", 10) as two:
            assert await run_holding(one, executor, int, "11", base=2) == 3
            with pytest.raises(ValueError, match="invalid literal"):
                await run_holding([one, two], executor, int, "x")
            assert arena.lease_count == 2

    asyncio.run(main())


def test_cancelled_awaiter_leaves_the_slot_to_the_thread_that_still_writes(
    arena: Arena, executor: ThreadPoolExecutor
) -> None:
    started, resume = threading.Event(), threading.Event()

    def copy(view: memoryview) -> None:
        started.set()
        resume.wait(10)
        view[:] = b"x" * len(view)
        raise OSError("nobody waits for this any more")

    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        lease = arena.reserve("a", PAGE_NBYTES)
        call = asyncio.create_task(run_holding(lease, executor, copy, lease.views[0]))
        await asyncio.to_thread(started.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        lease.release()
        assert arena.used_nbytes == PAGE_NBYTES
        others = arena.reserve("a", arena.headroom("a"))
        resume.set()
        async with asyncio.timeout(10):
            while arena.used_nbytes > others.nbytes:
                await asyncio.sleep(0.001)
        assert all(view == bytes(len(view)) for view in others.views)
        others.release()
        del call
        gc.collect()
        assert complaints == []

    asyncio.run(main())


def test_call_cancelled_before_it_starts_gives_its_share_back(arena: Arena, executor: ThreadPoolExecutor) -> None:
    resume = threading.Event()
    executor.submit(resume.wait, 10)

    async def main() -> None:
        lease = arena.reserve("a", 1)
        call = asyncio.create_task(run_holding(lease, executor, print, "never"))
        await asyncio.sleep(0)
        assert arena.lease_count == 2
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        lease.release()
        assert arena.lease_count == 0

    asyncio.run(main())
    resume.set()


def test_call_that_cannot_start_keeps_no_share(arena: Arena, executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        ended = arena.reserve("a", 1)
        ended.release()
        with arena.reserve("a", 1) as lease:
            with pytest.raises(LeaseReleased):
                await run_holding([lease, ended], executor, print, "never")
            executor.shutdown()
            with pytest.raises(RuntimeError, match="shutdown"):
                await run_holding(lease, executor, print, "never")
            assert arena.lease_count == 1

    asyncio.run(main())
