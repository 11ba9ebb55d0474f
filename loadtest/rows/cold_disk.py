"""GET of objects that lie on disk alone and not in the page cache, against reading the same files with preadv."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bed import Bed
from driver import Driver
from figures import Sample
from gateway import Gateway
from peers.base import OBJECTS
from peers.kvgate import Kvgate
from processes import cpu_s

ROW = "cold disk GET 32M x1"
NBYTES = 32 << 20
MEMORY_NBYTES = 640 << 20
QUICK_OBJECTS = 4
MAX_ROUNDS, QUICK_ROUNDS = 5, 2


def names() -> list[str]:
    return [ROW]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if not wanted(ROW):
        return
    objects = QUICK_OBJECTS if bed.quick else OBJECTS
    cold = Cold(bed.folder / "cold", bed.driver, objects)
    try:
        cold.store()
        contenders = {"preadv": cold.preadv, "kvgate": cold.get}
        rounds = min(bed.rounds, QUICK_ROUNDS if bed.quick else MAX_ROUNDS)
        figures = bed.measure(ROW, "GB/s", contenders, limit="preadv", rounds=rounds)
    finally:
        cold.server.stop()
    if mine := figures.get("kvgate"):
        mine.rss_mib = None  # of the gateway that serves the other rows
        mine.want_of_limit(0.9)


class Cold:
    """A gateway of its own, whose memory forgets with each restart."""

    def __init__(self, folder: Path, driver: Driver, objects: int) -> None:
        self._disk, self._driver, self._objects = folder / "disk", driver, objects
        self.server = Kvgate(folder)
        memory = {"capacity": MEMORY_NBYTES, "prefault": MEMORY_NBYTES}
        tiers = {"host": memory, "disk": {"path": str(self._disk), "fsync": True}}
        self.server.gateway = Gateway(folder, tiers, {"ack": "disk"})
        self.server.port = self.server.gateway.port

    def store(self) -> None:
        self.server.start()
        put = self.server.put(NBYTES)
        self._driver.once(self.server.port, replace(put, heads=put.heads[: self._objects]), 1)
        self.server.stop()

    def get(self) -> Sample:
        """Every object once, in order, on one connection."""
        self._forget()
        self.server.start()
        try:
            self._settle()
            exchange = self.server.get(NBYTES)
            before = cpu_s(self.server.pid)
            outcome = self._driver.once(self.server.port, replace(exchange, heads=exchange.heads[: self._objects]), 1)
            cost = cpu_s(self.server.pid) - before
            ask = self.server.gateway.metric
            from_disk = ask("kvgate_promoted_objects_total") + ask('kvgate_reads_total{tier="disk"}')
            if from_disk < self._objects:
                raise RuntimeError(f"{from_disk:.0f} of {self._objects} objects came from disk")
        finally:
            self.server.stop()
        return Sample(
            operations=outcome.exchanges,
            nbytes=outcome.exchanges * NBYTES,
            wall_s=outcome.wall_s,
            p50_us=outcome.p50_us,
            p99_us=outcome.p99_us,
            all_operations=outcome.exchanges,
            server_cpu_s=cost,
            client_cpu_s=outcome.cpu_s,
        )

    def preadv(self) -> Sample:
        """Every file once, whole, into the same buffer."""
        self._forget()
        buffer = memoryview(bytearray(NBYTES + (1 << 20)))
        files, nbytes = self._files(), 0
        cpu_before, began = time.process_time(), time.perf_counter()
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            at = 0
            while got := os.preadv(descriptor, [buffer[at:]], at):
                at += got
            os.close(descriptor)
            nbytes += at
        wall_s = time.perf_counter() - began
        return Sample(
            operations=len(files),
            nbytes=nbytes,
            wall_s=wall_s,
            p50_us=wall_s / len(files) * 1e6,
            all_operations=len(files),
            client_cpu_s=time.process_time() - cpu_before,
        )

    def _settle(self) -> None:
        """Wait until all memory is prepared, as that of a gateway is which has run for a while.

        It is all that there is, so that nothing is prepared anew while objects are read.
        """
        while self.server.gateway.metric("kvgate_ready_bytes") < MEMORY_NBYTES:
            time.sleep(0.05)

    def _files(self) -> list[Path]:
        files = [path for path in (self._disk / "objects").rglob("*") if path.is_file()]
        files = [path for path in files if path.stat().st_size >= NBYTES]
        if len(files) != self._objects:
            raise RuntimeError(f"the disk tier has {len(files)} files of {NBYTES} bytes, not {self._objects}")
        return files

    def _forget(self) -> None:
        """Have the kernel drop the files from its page cache."""
        for path in self._files():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
