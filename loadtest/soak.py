"""Everything at once on tiers that are too small for it: no wrong byte, and nothing left over at the end.

    python loadtest/soak.py --seconds 60
    python loadtest/soak.py --seconds 600 --load 0.8 --shared

Threads put, overwrite, read (whole and in ranges), delete and list objects of many sizes, some of them in parts, some
broken off half-way, against a gateway whose memory and disk hold only a part. Every body read must be one that was
written to that key. With --load, first measures for a while what the gateway can do, and then asks for that share of
it. With --shared, half of the objects also lie in a folder that gateways could share. At the end prints operations,
errors by code, the gateway's memory over time, which must not grow, and what it still holds: descriptors, leases and
bytes beyond its objects must be none.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import statistics
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
CALIBRATION_S = 15.0
SETTLING_SHARE = 0.25
"""The first part of a run, in which memory may still grow: pools fill, and threads start."""

GROWTH_NBYTES = 24 << 20
"""What the median of the last quarter may be above that of the second one: the host tier of these runs."""


def body_of(key: int, version: int) -> bytes:
    """Version `version` of a key: its name, then bytes that no other version has."""
    name = f"{key}:{version}:".encode()
    nbytes = max(len(name), SIZES[(key * 7 + version) % len(SIZES)])
    seed = hashlib.sha256(name).digest()
    return (name + seed * (nbytes // 32 + 1))[:nbytes]


class Soak:
    """One run against one gateway."""

    def __init__(self, url: str, seconds: float, versions: list[int], *, shared: bool, pause_s: float = 0.0) -> None:
        """
        versions: by key, how many have been written so far
        pause_s:  from the beginning of one operation of a thread to that of the next
        """
        self.url = url
        self.shared = shared
        self.pause_s = pause_s
        self.end_s = time.monotonic() + seconds
        self.versions = versions
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, seed: int) -> None:
        choose = random.Random(seed)
        with Client(self.url, ACCESS_KEY, SECRET_KEY, deadline_s=20, max_connections=2) as client:
            next_s = time.monotonic() + choose.random() * self.pause_s
            while time.monotonic() < self.end_s and not self.wrong:
                time.sleep(max(0.0, next_s - time.monotonic()))
                next_s = max(next_s + self.pause_s, time.monotonic() - 1.0)  # what is late is made up for, but not all
                key = choose.randrange(KEYS)
                operation = choose.choices([self.put, self.get, self.part, self.delete, self.cut], [4, 8, 4, 1, 1])[0]
                try:
                    operation(client, key, choose)
                    outcome = operation.__name__
                except GatewayError as error:
                    outcome = f"{operation.__name__}: {error.code or type(error).__name__}"
                with self.lock:
                    self.counts[outcome] += 1

    def name(self, key: int) -> str:
        """An opaque key, or one of LMCache, which shared tiers hold too."""
        return f"model@1@0@{key:064x}@half" if self.shared and key % 2 else f"k{key}"

    def put(self, client: Client, key: int, _: random.Random) -> None:
        with self.lock:
            self.versions[key] += 1
            version = self.versions[key]
        client.put("bucket", self.name(key), [memoryview(body_of(key, version))])

    def get(self, client: Client, key: int, _: random.Random) -> None:
        self.check(key, client.get("bucket", self.name(key)).body or b"", None)

    def part(self, client: Client, key: int, choose: random.Random) -> None:
        info = client.head("bucket", self.name(key))
        if info.nbytes:
            start = choose.randrange(info.nbytes)
            stop = choose.randrange(start, info.nbytes) + 1
            self.check(key, client.get("bucket", self.name(key), start=start, stop=stop).body or b"", start)

    def delete(self, client: Client, key: int, _: random.Random) -> None:
        client.delete("bucket", self.name(key))

    def cut(self, client: Client, key: int, choose: random.Random) -> None:
        with contextlib.suppress(DeadlineExceeded):
            if choose.random() < 0.5:
                client.get("bucket", self.name(key), deadline_s=choose.uniform(0.0005, 0.02))
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


def run(soak: Soak, pid: int, options: argparse.Namespace) -> list[int]:
    """Carry one soak out; the bytes of RSS each half second."""
    threads = [threading.Thread(target=soak.run, args=(seed,)) for seed in range(options.threads)]
    rss = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rss.append(rss_nbytes(pid))
        left_s = max(0.0, soak.end_s - time.monotonic())
        line = f"{sum(soak.counts.values()):,} operations, {rss[-1] / 2**20:.0f} MiB, {left_s:.0f} s left"
        print(f"\r{line:<60}", end="", file=sys.stderr)
        time.sleep(0.5)
    print(file=sys.stderr)
    return rss


def growth(rss: list[int]) -> tuple[int, int]:
    """The median memory of the second quarter and of the last one."""
    quarter = max(1, int(len(rss) * SETTLING_SHARE))
    return int(statistics.median(rss[quarter : 2 * quarter] or rss)), int(statistics.median(rss[-quarter:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--threads", type=int, default=8, help="how many clients at the same time (default: 8)")
    parser.add_argument("--ack", choices=["memory", "disk"], default="memory", help="store.ack (default: memory)")
    parser.add_argument("--load", type=float, default=1.0, help="share of what the gateway can do (default: 1)")
    parser.add_argument("--shared", action="store_true", help="with a folder as a tier that gateways could share")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgate-soak-") as folder:
        tiers = {"host": {"capacity": "24MiB"}, "disk": {"path": f"{folder}/disk", "capacity": "80MiB"}}
        if options.shared:
            tiers["fs"] = {"path": f"{folder}/fs", "keep_free": 0}
        gateway = Gateway(Path(folder), tiers, {"ack": options.ack, "window": "2MiB"})
        try:
            gateway.start()
            assert gateway.process is not None
            pid = gateway.process.pid
            before = descriptors(pid)
            pause_s = 0.0
            versions = [0] * KEYS
            if options.load < 1:
                tried = Soak(gateway.url, CALIBRATION_S, versions, shared=options.shared)
                run(tried, pid, options)
                rate = sum(tried.counts.values()) / CALIBRATION_S
                pause_s = options.threads / (rate * options.load)
                print(f"{rate:,.0f} operations a second at most; {rate * options.load:,.0f} asked for from here on")
            soak = Soak(gateway.url, options.seconds, versions, shared=options.shared, pause_s=pause_s)
            rss = run(soak, pid, options)
            with Client(soak.url, ACCESS_KEY, SECRET_KEY) as client:
                for entry in list(client.list("bucket")):
                    client.delete("bucket", entry.key)
                time.sleep(2)
                quota_nbytes = client.stats().nbytes
            for outcome, count in sorted(soak.counts.items()):
                print(f"{count:>8,}  {outcome}")
            early, late = growth(rss)
            rest = {
                "wrong bodies": len(soak.wrong),
                "bytes in memory": gateway.metric('kvgate_tier_used_bytes{tier="host"}'),
                "bytes on disk": gateway.metric('kvgate_tier_used_bytes{tier="disk"}'),
                "files": sum(path.is_file() for path in Path(folder).glob("*/objects/**/*")),
                "bytes of quota": quota_nbytes,
                "leases": gateway.metric("kvgate_leases"),
                "descriptors more than before": max(0, descriptors(pid) - before - 1),
                "bytes of growth": late - early if late - early > GROWTH_NBYTES else 0,
            }
            for what, number in rest.items():
                print(f"{number:>8,.0f}  {what} left" if what != "wrong bodies" else f"{number:>8,}  {what}")
            print(f"{early / 2**20:>8.0f}  MiB RSS of the gateway in the second quarter, median")
            print(f"{late / 2**20:>8.0f}  MiB RSS in the last quarter, median")
            sys.exit("\n".join(soak.wrong) or any(rest.values()))
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
