"""Work in threads on leased memory, which keeps the memory until the thread is done with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import ParamSpec, Protocol, TypeVar

from kvgate.memory.lease import Lease

P = ParamSpec("P")
T = TypeVar("T")


class Held(Protocol):
    """A right to use memory, of which there can be shares."""

    def share(self) -> contextlib.AbstractContextManager[object]:
        """Another such right on the same memory, which ends on exit."""


async def run_holding(
    leases: Lease | Sequence[Held], executor: Executor, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What `fn(*args, **kwargs)` returns or raises in a thread of `executor`, with the slots held while it runs.

    The call has shares of its own in the slots. They end when the thread leaves `fn`, or the executor drops the call
    unstarted: a cancelled caller may release its leases at once. What an abandoned call returns or raises is dropped.
    Raises LeaseReleased when a lease has been released already, and RuntimeError when the executor is shut down.
    """
    with contextlib.ExitStack() as shares:
        for lease in [leases] if isinstance(leases, Lease) else leases:
            shares.enter_context(lease.share())
        call = executor.submit(fn, *args, **kwargs)
        held = shares.pop_all()

    def end_shares(_: Future[T]) -> None:
        held.close()

    call.add_done_callback(end_shares)
    return await asyncio.wrap_future(call)
