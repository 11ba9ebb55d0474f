"""How long a gateway takes to come back with many objects on disk, and what each costs in memory.

    python loadtest/restart.py --objects 1000000

Fills the index of a disk tier with records as their PUTs would leave them (the files themselves are not read at a
start, so they are not made), then starts `kvgate serve` on it and waits for /readyz: first with no object, then with
all. Prints both, their ratio, and the memory and HEAD latency at either size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

from kvgate.client.sync import Client
from kvgate.tiers.base import Record
from kvgate.tiers.disk_index import DiskIndex

ACCESS_KEY, SECRET_KEY = "LOADTESTKEY", "loadtest-secret-0123456789"
SPACE = hashlib.sha256(b"loadtest").hexdigest()
CHUNK_NBYTES = 3 << 20


def key_of(number: int) -> str:
    return f"kv/{SPACE}/{hashlib.sha256(str(number).encode()).hexdigest()}"


def fill(folder: Path, objects: int) -> None:
    """Write the index that `objects` published chunks leave behind."""
    index = DiskIndex(folder / "index.sqlite3", durable=False)
    index.open()
    began = time.monotonic()
    batch = 50_000
    numbers = sorted(range(objects), key=key_of)
    for begin in range(0, objects, batch):
        index.put_now(
            [
                (
                    Record(
                        "load", "bucket", key_of(n), CHUNK_NBYTES, n * 0x9E3779B97F4A7C15 % 2**64, 1_700_000_000_000 + n
                    ),
                    n + 1,
                )
                for n in numbers[begin : begin + batch]
            ]
        )
        done = min(begin + batch, objects)
        print(f"\rindex: {done:,} of {objects:,} rows, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    index.close()


def measure(folder: Path, objects: int) -> dict[str, float]:
    """Start a gateway on `folder` and measure it."""
    ports = [free_port(), free_port()]
    config = {
        "listen": {"port": ports[0], "admin_port": ports[1]},
        "tenants": {
            "load": {"access_keys": [{"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}], "buckets": ["bucket"]}
        },
        "tiers": {"host": {"capacity": "64MiB", "prefault": 0}, "disk": {"path": str(folder), "capacity": "100TiB"}},
    }
    path = folder / "kvgate.yaml"
    path.write_text(yaml.safe_dump(config))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(path), "--log-level", "warning"]
    )
    try:
        while not ready(ports[1]):
            if process.poll() is not None:
                raise SystemExit(f"the gateway ended with {process.returncode}")
            time.sleep(0.005)
        start_s = time.monotonic() - began
        cpu_s = sum(os_times(process.pid))
        with Client(f"http://127.0.0.1:{ports[0]}", ACCESS_KEY, SECRET_KEY) as client:
            head_us = []
            for number in range(2000):
                at = time.perf_counter()
                if objects:
                    client.head("bucket", key_of(number * (objects // 2000) if objects >= 2000 else number % objects))
                else:
                    list(client.list_buckets())
                head_us.append((time.perf_counter() - at) * 1e6)
        return {
            "start_s": start_s,
            "start_cpu_s": cpu_s,
            "rss_nbytes": rss(process.pid),
            "head_p50_us": statistics.median(head_us),
        }
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def os_times(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000, help="objects on disk (default: 1,000,000)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    for objects in (1_000, options.objects):
        with tempfile.TemporaryDirectory(prefix="kvgate-restart-") as name:
            folder = Path(name)
            fill(folder, objects)
            rows.append({"objects": objects, **measure(folder, objects)})
    few, many = rows
    print(f"{'objects':>12} {'start s':>9} {'CPU s':>7} {'RSS MiB':>9} {'B/object':>9} {'HEAD p50 µs':>12}")
    for row in rows:
        extra = (row["rss_nbytes"] - few["rss_nbytes"]) / max(1, row["objects"] - few["objects"])
        print(
            f"{row['objects']:>12,} {row['start_s']:>9.2f} {row['start_cpu_s']:>7.2f} "
            f"{row['rss_nbytes'] / 2**20:>9.0f} {extra:>9.0f} {row['head_p50_us']:>12.0f}"
        )
    print(f"start: {many['start_s'] - few['start_s']:.2f} s for the objects; the limit for a million is 5 s")
    print(f"HEAD p50: {many['head_p50_us'] / few['head_p50_us']:.2f} times that at {few['objects']:,} objects")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
