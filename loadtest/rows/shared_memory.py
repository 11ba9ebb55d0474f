"""The hand-off of a chunk through shared memory, and a load out of it, against memcpy.

How it is done is in `loadtest/shm.py`: `open(folder)` starts a gateway of its own there and yields two contenders, each
giving a Sample: `handoff()`, the grant and release of one chunk, many times, and `load()`, a load of LOAD_NBYTES.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable

from bed import Bed
from figures import Sample

HANDOFF, LOAD = "shm hand-off", "shm load 64M"
LOAD_NBYTES = 64 << 20


def names() -> list[str]:
    return [HANDOFF, LOAD]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if not (wanted(HANDOFF) or wanted(LOAD)):
        return
    if importlib.util.find_spec("shm") is None:
        bed.skip("shm", "this kvgate has no loadtest/shm.py")
        if wanted(LOAD):
            bed.measure(LOAD, "GB/s", {"memcpy": memcpy}, limit="memcpy")
        return
    shm = importlib.import_module("shm")
    with shm.open(bed.folder / "shm") as ways:
        if wanted(HANDOFF) and (mine := bed.measure(HANDOFF, "us", {"kvgate shm": ways.handoff}).get("kvgate shm")):
            mine.want("p50 <= 30 us", mine.value <= 30)
        if wanted(LOAD):
            contenders = {"memcpy": memcpy, "kvgate shm": ways.load}
            if mine := bed.measure(LOAD, "GB/s", contenders, limit="memcpy").get("kvgate shm"):
                mine.want_of_limit(0.8)


def memcpy() -> Sample:
    """One copy of LOAD_NBYTES between two buffers that are there already, the fastest of five."""
    source, target = memoryview(bytearray(LOAD_NBYTES)), memoryview(bytearray(LOAD_NBYTES))
    source[:] = target[:]
    took = []
    for _ in range(5):
        began = time.perf_counter()
        target[:] = source
        took.append(time.perf_counter() - began)
    return Sample(operations=1, nbytes=LOAD_NBYTES, wall_s=min(took), p50_us=min(took) * 1e6, all_operations=1)
