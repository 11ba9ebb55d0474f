"""Everything at once on tiers that are too small for it: no wrong byte, and nothing left over at the end.

    python loadtest/soak.py --seconds 60

Threads put, overwrite, read (whole and in ranges), delete and list objects of many sizes, some of them in parts, some
broken off half-way, against a gateway whose memory and disk hold only a part. Every body read must be one that was
written to that key. At the end prints operations, errors by code, and what the gateway still holds: descriptors,
leases and bytes beyond its objects must be none.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from gateway import ACCESS_KEY, SECRET_KEY, Gateway
from processes import rss_nbytes

from kvgate.client.sync import Client
from kvgate.errors import DeadlineExceeded, GatewayError

SIZES = [0, 10, 5_000, 100_000, 1 << 20, 3_000_000, 9 << 20]
KEYS = 60


def body_of(key: int, version: int) -> bytes:
    """Version `version` of a key: its name, then bytes that no other version has."""
    name = f"{key}:{version}:".encode()
    nbytes = max(len(name), SIZES[(key * 7 + version) % len(SIZES)])
    seed = hashlib.sha256(name).digest()
    return (name + seed * (nbytes // 32 + 1))[:nbytes]


class Soak:
    """One run against one gateway."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.end_s = time.monotonic() + seconds
        self.versions = [0] * KEYS
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, seed: int) -> None:
        choose = random.Random(seed)
        with Client(self.url, ACCESS_KEY, SECRET_KEY, deadline_s=20, max_connections=2) as client:
            while time.monotonic() < self.end_s and not self.wrong:
                key = choose.randrange(KEYS)
                operation = choose.choices([self.put, self.get, self.part, self.delete, self.cut], [4, 8, 4, 1, 1])[0]
                try:
                    operation(client, key, choose)
                    outcome = operation.__name__
                except GatewayError as error:
                    outcome = f"{operation.__name__}: {error.code or type(error).__name__}"
                with self.lock:
                    self.counts[outcome] += 1

    def put(self, client: Client, key: int, _: random.Random) -> None:
        with self.lock:
            self.versions[key] += 1
            version = self.versions[key]
        client.put("bucket", f"k{key}", [memoryview(body_of(key, version))])

    def get(self, client: Client, key: int, _: random.Random) -> None:
        self.check(key, client.get("bucket", f"k{key}").body or b"", None)

    def part(self, client: Client, key: int, choose: random.Random) -> None:
        info = client.head("bucket", f"k{key}")
        if info.nbytes:
            start = choose.randrange(info.nbytes)
            stop = choose.randrange(start, info.nbytes) + 1
            self.check(key, client.get("bucket", f"k{key}", start=start, stop=stop).body or b"", start)

    def delete(self, client: Client, key: int, _: random.Random) -> None:
        client.delete("bucket", f"k{key}")

    def cut(self, client: Client, key: int, choose: random.Random) -> None:
        with contextlib.suppress(DeadlineExceeded):
            if choose.random() < 0.5:
                client.get("bucket", f"k{key}", deadline_s=choose.uniform(0.0005, 0.02))
            else:
                client.put("bucket", "cut", [bytes(9 << 20)], deadline_s=choose.uniform(0.0005, 0.02))

    def check(self, key: int, body: bytes, start: int | None) -> None:
        candidates = range(1, self.versions[key] + 1)
        if start is None:
            version = int(body.split(b":", 2)[1])
            good = version in candidates and body == body_of(key, version)
        else:
            good = any(body_of(key, version)[start : start + len(body)] == body for version in reversed(candidates))
        if not good:
            self.wrong.append(f"key {key}, from byte {start}: {len(body)} bytes that were never written")


def descriptors(pid: int) -> int:
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += not str(path.readlink()).startswith("/memfd:")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--threads", type=int, default=8, help="how many clients at the same time (default: 8)")
    parser.add_argument("--ack", choices=["memory", "disk"], default="memory", help="store.ack (default: memory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgate-soak-") as folder:
        gateway = Gateway(
            Path(folder),
            {"host": {"capacity": "24MiB"}, "disk": {"path": f"{folder}/disk", "capacity": "80MiB"}},
            {"ack": options.ack, "window": "2MiB"},
        )
        try:
            gateway.start()
            assert gateway.process is not None
            pid = gateway.process.pid
            before = descriptors(pid)
            soak = Soak(gateway.url, options.seconds)
            threads = [threading.Thread(target=soak.run, args=(seed,)) for seed in range(options.threads)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                left_s = max(0.0, soak.end_s - time.monotonic())
                print(f"\r{sum(soak.counts.values()):,} operations, {left_s:.0f} s left ", end="", file=sys.stderr)
                time.sleep(0.5)
            print(file=sys.stderr)
            with Client(soak.url, ACCESS_KEY, SECRET_KEY) as client:
                for entry in list(client.list("bucket")):
                    client.delete("bucket", entry.key)
                time.sleep(2)
                quota_nbytes = client.stats().nbytes
            for outcome, count in sorted(soak.counts.items()):
                print(f"{count:>8,}  {outcome}")
            rest = {
                "wrong bodies": len(soak.wrong),
                "bytes in memory": gateway.metric('kvgate_tier_used_bytes{tier="host"}'),
                "bytes on disk": gateway.metric('kvgate_tier_used_bytes{tier="disk"}'),
                "files": sum(path.is_file() for path in Path(folder, "disk", "objects").rglob("*")),
                "bytes of quota": quota_nbytes,
                "leases": gateway.metric("kvgate_leases"),
                "descriptors more than before": max(0, descriptors(pid) - before - 1),
            }
            for what, number in rest.items():
                print(f"{number:>8,.0f}  {what} left" if what != "wrong bodies" else f"{number:>8,}  {what}")
            print(f"{rss_nbytes(pid) / 2**20:>8.0f}  MiB RSS of the gateway")
            sys.exit("\n".join(soak.wrong) or any(rest.values()))
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
