"""The hand-off of an object through shared memory, and loads out of it, against a bare exchange and memcpy.

`loadtest/shm.py` measures them, kvgate and limit in turn; this file gives it a gateway and its figures their place.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from bed import Bed, say
from figures import Figure
from gateway import Gateway

HANDOFF = "shm hand-off"
LOADS = {mib: f"shm load {mib}M" for mib in (1, 4, 32, 64)}
LARGEST_MIB = 64
SHM, BARE, MEMCPY = "kvgate shm", "bare exchange", "memcpy"


def names() -> list[str]:
    return [HANDOFF, *LOADS.values()]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if not any(map(wanted, names())):
        return
    if importlib.util.find_spec("shm") is None:
        bed.skip("shm", "this kvgate has no loadtest/shm.py")
        return
    folder = bed.folder / "shm"
    gateway = Gateway(folder, {"host": {"capacity": "512MiB"}}, listen={"shm_socket": str(folder / "socket")})
    try:
        gateway.start()
        found = importlib.import_module("shm").measure(gateway.url, rounds=bed.rounds)
    finally:
        gateway.stop()
    if wanted(HANDOFF):
        times = found["hand_off"]
        bare = _figure(HANDOFF, BARE, "us", times["bare_p50_us"], 1.0, BARE)
        mine = _figure(HANDOFF, SHM, "us", times["p50_us"], times["p50_us"] / times["bare_p50_us"], BARE)
        mine.p99_us = times["p99_us"]
        mine.want("p50 <= 30 us", mine.value <= 30)
        bed.figures += [bare, mine]
        say(f"{HANDOFF}: {mine.value:g} us")
    for load in found["loads"]:
        row = LOADS[load["mib"]]
        if wanted(row):
            memcpy = _figure(row, MEMCPY, "GB/s", load["memcpy_gb_s"], 1.0, MEMCPY)
            mine = _figure(row, SHM, "GB/s", load["verified_gb_s"], load["verified_ratio"], MEMCPY)
            if load["mib"] == LARGEST_MIB:
                mine.want_of_limit(0.8)
            bed.figures += [memcpy, mine]
            say(f"{row}: memcpy {memcpy.value:g}, {SHM} {mine.value:g} GB/s")


def _figure(row: str, contender: str, unit: str, value: float, of_limit: float, limit: str) -> Figure:
    return Figure(
        row=row,
        contender=contender,
        unit=unit,
        value=value,
        of_limit=of_limit,
        limit=limit,
        p50_us=value if unit == "us" else 0.0,
        p99_us=0.0,
        server_cpu_s_per_gb=None,
        server_us_per_operation=None,
        client_cpu_s_per_gb=None,
        client_us_per_operation=None,
        rss_mib=None,
        rounds=[value],
    )
