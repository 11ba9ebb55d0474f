"""GETs of objects that lie on disk and not in the page cache, against preadv of the same files.

    python loadtest/disk.py --objects 8 --nbytes 32MiB

Stores the objects, then in turn reads their files with `preadv`, each whole and into memory that has been used, and
starts a gateway on them, whose memory is empty, and GETs them, each on as many connections or threads. Before either,
the kernel forgets the files (posix_fadvise). Prints the medians of GB/s and of the ratio within a round, and the CPU
seconds a GB of both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from restart import ACCESS_KEY, SECRET_KEY, free_port, os_times, ready
from throughput import run_threads

from kvgate.client.sync import Client
from kvgate.config import MiB, format_size, parse_size


@dataclass
class Round:
    """GB/s and CPU seconds a GB of one pass over the objects, by preadv and through a gateway."""

    preadv_gb_s: float
    preadv_cpu_s_gb: float
    get_gb_s: float
    get_cpu_s_gb: float

    @property
    def ratio(self) -> float:
        return self.get_gb_s / self.preadv_gb_s


class Gateway:
    """A gateway whose memory is empty, and has had the time to prepare all of it."""

    def __init__(self, folder: Path, memory_nbytes: int) -> None:
        """memory_nbytes: a multiple of 8 MiB"""
        ports = [free_port(), free_port()]
        key = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
        config = {
            "listen": {"port": ports[0], "admin_port": ports[1]},
            "tenants": {"load": {"access_keys": [key], "buckets": ["bucket"]}},
            "tiers": {
                "host": {"capacity": memory_nbytes, "segment": memory_nbytes // 8, "prefault": memory_nbytes},
                "disk": {"path": str(folder / "disk"), "fsync": True},
            },
        }
        path = folder / "kvgate.yaml"
        path.write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._admin_port = ports[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(path), "--log-level", "warning"]
        )
        while not ready(self._admin_port) or self._sample("kvgate_ready_bytes") < memory_nbytes:
            if self._process.poll() is not None:
                raise SystemExit(f"the gateway ended with {self._process.returncode}")
            time.sleep(0.05)

    def cpu_s(self) -> float:
        return sum(os_times(self._process.pid))

    def from_disk(self) -> float:
        """How many objects were read from disk."""
        return self._sample("kvgate_promoted_objects_total") + self._sample('kvgate_reads_total{tier="disk"}')

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _sample(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def measure(folder: Path, *, objects: int, nbytes: int, connections: int, rounds: int) -> list[Round]:
    """Store `objects` of `nbytes` below `folder`, and read them cold by both ways in turn.

    objects: a multiple of `connections`, each of which reads its own share in order, once
    """
    memory_nbytes = -(-objects * nbytes * 5 // 4 // (8 * MiB)) * 8 * MiB
    gateway = Gateway(folder, memory_nbytes)
    with Client(gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=60) as client:
        for number in range(objects):
            client.put("bucket", f"object-{number}", os.urandom(nbytes))
    gateway.stop()
    files = [path for path in (folder / "disk" / "objects").rglob("*") if path.is_file()]
    buffers = [memoryview(bytearray(os.urandom(nbytes))) for _ in range(connections)]
    results = []
    for _ in range(rounds):
        drop_from_page_cache(files)
        cpu_s = time.process_time()
        preadv_s = run_threads(
            connections, objects, lambda thread, at: read_file(files[at * connections + thread], buffers[thread])
        )
        preadv_cpu_s = time.process_time() - cpu_s
        gateway = Gateway(folder, memory_nbytes)
        try:
            drop_from_page_cache(files)
            get_s, get_cpu_s = get_all(gateway, objects, connections, buffers)
            if gateway.from_disk() != objects:
                raise SystemExit(f"{gateway.from_disk():.0f} of {objects} objects came from disk")
        finally:
            gateway.stop()
        gigabytes = objects * nbytes / 1e9
        results.append(Round(gigabytes / preadv_s, preadv_cpu_s / gigabytes, gigabytes / get_s, get_cpu_s / gigabytes))
    return results


def read_file(path: Path, buffer: memoryview) -> None:
    """Read a file's first bytes, as many as the buffer takes."""
    fd = os.open(path, os.O_RDONLY)
    done = 0
    while done < len(buffer):
        done += os.preadv(fd, [buffer[done:]], done)
    os.close(fd)


def get_all(gateway: Gateway, objects: int, connections: int, buffers: list[memoryview]) -> tuple[float, float]:
    """Seconds, and CPU seconds of the gateway, for one GET of each object."""
    clients = [Client(gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=60) for _ in range(connections)]
    for client in clients:
        client.tenant()  # connects
    cpu_s = gateway.cpu_s()

    def get(thread: int, at: int) -> None:
        clients[thread].get("bucket", f"object-{at * connections + thread}", into=buffers[thread])

    seconds = run_threads(connections, objects, get)
    cpu_s = gateway.cpu_s() - cpu_s
    for client in clients:
        client.close()
    return seconds, cpu_s


def drop_from_page_cache(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--nbytes", type=parse_size, nargs="*", default=[4 * MiB, 32 * MiB], help="of each, in turn")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8], help="at the same time (default 1 and 8)")
    parser.add_argument("--rounds", type=int, default=5, help="over all objects (default 5)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    print(f"{'':20} {'preadv GB/s':>12} {'GET GB/s':>9} {'ratio':>6} {'preadv CPU s/GB':>16} {'server CPU s/GB':>16}")
    rows = []
    for nbytes in options.nbytes:
        for connections in options.connections:
            with tempfile.TemporaryDirectory(prefix="kvgate-disk-", dir=options.folder) as name:
                results = measure(
                    Path(name),
                    objects=options.objects,
                    nbytes=nbytes,
                    connections=connections,
                    rounds=options.rounds,
                )
            values = {
                key: statistics.median(getattr(each, key) for each in results)
                for key in ("preadv_gb_s", "get_gb_s", "ratio", "preadv_cpu_s_gb", "get_cpu_s_gb")
            }
            print(
                f"{format_size(nbytes):>8}, {connections:2} at once {values['preadv_gb_s']:12.2f} "
                f"{values['get_gb_s']:9.2f} {values['ratio']:6.2f} {values['preadv_cpu_s_gb']:16.2f} "
                f"{values['get_cpu_s_gb']:16.2f}",
                flush=True,
            )
            rows.append({"nbytes": nbytes, "connections": connections, "rounds": [asdict(each) for each in results]})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
