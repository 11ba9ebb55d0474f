"""Threads for blocking work, all of them running before there is any."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose `count` threads run already, named `name`_0 and so on.

    A pool that starts its threads when it is handed work raises RuntimeError where the system refuses one, and keeps
    that work nonetheless: another thread does it later, on memory that has been given back meanwhile.
    Raises RuntimeError when the system refuses a thread now.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_run = threading.Barrier(count)  # a pool starts no thread while another one is idle
    try:
        for waits in [pool.submit(all_run.wait) for _ in range(count)]:
            waits.result()
    except BaseException:
        all_run.abort()
        pool.shutdown(wait=False)
        raise
    return pool
