from __future__ import annotations

import subprocess
import sys
import threading

from kvgate.memory.threads import started_threads

_REFUSED = """
import resource
from pathlib import Path
from kvgate.memory.threads import started_threads

pool = started_threads(2, "before")
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20),) * 2)
try:
    started_threads(50, "after")
except RuntimeError:
    print(pool.submit(sum, [1, 2]).result())
"""


def test_all_threads_run_before_there_is_work() -> None:
    pool = started_threads(3, "kvgate-test")
    assert sum(thread.name.startswith("kvgate-test") for thread in threading.enumerate()) == 3
    assert list(pool.map(abs, [-1, 2])) == [1, 2]
    pool.shutdown()


def test_a_thread_that_the_system_refuses_is_an_error_at_once_and_not_when_there_is_work() -> None:
    answer = subprocess.run([sys.executable, "-c", _REFUSED], check=False, capture_output=True, text=True, timeout=60)
    assert answer.stdout == "3\n", answer.stderr
