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
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gateway import ACCESS_KEY, BUCKET, SECRET_KEY, Gateway
from processes import cpu_s, rss_nbytes

from kvgate.client.sync import Client
from kvgate.tiers.base import Record
from kvgate.tiers.disk_index import DiskIndex

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
                        "load", BUCKET, key_of(n), CHUNK_NBYTES, n * 0x9E3779B97F4A7C15 % 2**64, 1_700_000_000_000 + n
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
    gateway = Gateway(
        folder, {"host": {"capacity": "64MiB", "prefault": 0}, "disk": {"path": str(folder), "capacity": "100TiB"}}
    )
    began = time.monotonic()
    try:
        gateway.start()
        start_s = time.monotonic() - began
        assert gateway.process is not None
        pid = gateway.process.pid
        start_cpu_s = cpu_s(pid)
        with Client(gateway.url, ACCESS_KEY, SECRET_KEY) as client:
            head_us = []
            for number in range(2000):
                at = time.perf_counter()
                if objects:
                    client.head(BUCKET, key_of(number * (objects // 2000) if objects >= 2000 else number % objects))
                else:
                    list(client.list_buckets())
                head_us.append((time.perf_counter() - at) * 1e6)
        return {
            "start_s": start_s,
            "start_cpu_s": start_cpu_s,
            "rss_nbytes": rss_nbytes(pid),
            "head_p50_us": statistics.median(head_us),
        }
    finally:
        gateway.stop()


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
