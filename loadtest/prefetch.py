"""What prefetching gains a client that looks its chunks up before it reads them, as LMCache, vLLM and SGLang do.

    python loadtest/prefetch.py --objects 64 --nbytes 4MiB

Stores the objects under keys of LMCache, then starts a gateway on that disk tier for each round, prefetching or not in
turn, so that nothing is in memory. The files are dropped from the page cache before that (posix_fadvise, which works
for what has been written back; how much of them was still cached is printed). The client sends HEADs in order, waits as
a scheduler would, and reads the objects one after the other in ranges of 8 MiB. Prints the time of the HEADs, the time
of all GETs, the median and the 95th percentile of one, from which tier they came, and the gateway's CPU seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path

from gateway import ACCESS_KEY, SECRET_KEY, Gateway
from processes import cpu_s

from kvgate.client.sync import Client
from kvgate.config import format_size, parse_size
from kvgate.errors import GatewayError

RANGE_NBYTES = 8 << 20
COLUMNS = ("HEADs s", "GETs s", "GET p50 ms", "GET p95 ms", "from memory", "from disk", "CPU s")


def key_of(number: int) -> str:
    return f"meta-llama/Llama-3.1-8B@01000100@0@{number:064x}"


def gateway_on(folder: Path, memory_nbytes: int, share: float, fetched_at_once: int) -> Gateway:
    """One gateway on a folder, of its own memory."""
    gateway = Gateway(
        folder,
        {"host": {"capacity": memory_nbytes}, "disk": {"path": str(folder / "disk"), "fsync": True}},
        {"prefetch": {"share": share, "concurrency": fetched_at_once}},
    )
    gateway.start()
    return gateway


def drop_from_page_cache(folder: Path) -> float:
    """Have the kernel forget the files of a disk tier; the share of their pages that it kept."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = pages = 0
    for path in (folder / "disk" / "objects").rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            nbytes = path.stat().st_size
            count = -(-nbytes // mmap.PAGESIZE)
            with mmap.mmap(file.fileno(), nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
                anchor = ctypes.c_char.from_buffer(view)
                resident = (ctypes.c_ubyte * count)()
                libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(nbytes), resident)
                del anchor
            kept += sum(flag & 1 for flag in resident)
            pages += count
    return kept / max(1, pages)


def found(client: Client, key: str) -> bool:
    try:
        client.head("bucket", key)
    except GatewayError as error:
        if error.status != 404:
            raise
        return False
    return True


def measure(gateway: Gateway, objects: int, nbytes: int, pause_s: float) -> dict[str, float]:
    """HEADs in order up to the first miss, a pause, and GETs in order."""
    buffer = memoryview(bytearray(RANGE_NBYTES))
    assert gateway.process is not None
    pid = gateway.process.pid
    with Client(gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=60) as client:
        assert not found(client, "no such key")  # the connection is there, as an engine's is
        cpu_before_s = cpu_s(pid)
        began = time.perf_counter()
        for number in range(objects + 1):
            assert found(client, key_of(number)) == (number < objects)
        heads_s = time.perf_counter() - began
        time.sleep(pause_s)
        gets_s = []
        for number in range(objects):
            began = time.perf_counter()
            for start in range(0, nbytes, RANGE_NBYTES):
                stop = min(start + RANGE_NBYTES, nbytes)
                client.get("bucket", key_of(number), into=buffer[: stop - start], start=start, stop=stop)
            gets_s.append(time.perf_counter() - began)
        figures = (
            heads_s,
            sum(gets_s),
            statistics.median(gets_s) * 1e3,
            statistics.quantiles(gets_s, n=20)[-1] * 1e3,
            gateway.metric('kvgate_reads_total{tier="host"}'),
            gateway.metric('kvgate_reads_total{tier="disk"}'),
            cpu_s(pid) - cpu_before_s,
        )
    return dict(zip(COLUMNS, figures, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=64, help="objects of the run (default: 64)")
    parser.add_argument("--nbytes", type=parse_size, default=4 << 20, help="bytes of each (default: 4MiB)")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between the HEADs and the GETs (default: 5)")
    parser.add_argument("--at-once", type=int, default=2, help="objects prefetched at the same time (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind, in turn (default: 5)")
    parser.add_argument("--folder", type=Path, help="where the disk tier lies (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    total_nbytes = options.objects * options.nbytes
    memory_nbytes = 4 * total_nbytes + (64 << 20)
    rounds: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    cached = []
    with tempfile.TemporaryDirectory(prefix="kvgate-prefetch-", dir=options.folder) as name:
        folder = Path(name)
        gateway = gateway_on(folder, memory_nbytes, 0.0, options.at_once)
        with Client(gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=60) as client:
            for number in range(options.objects):
                client.put("bucket", key_of(number), [os.urandom(options.nbytes)])
        gateway.stop()
        os.sync()
        for _ in range(options.rounds):
            for kind, share in (("off", 0.0), ("on", 0.5)):
                cached.append(drop_from_page_cache(folder))
                gateway = gateway_on(folder, memory_nbytes, share, options.at_once)
                rounds[kind].append(measure(gateway, options.objects, options.nbytes, options.pause_ms / 1e3))
                gateway.stop()
    medians = {
        kind: {column: statistics.median(row[column] for row in rows) for column in COLUMNS}
        for kind, rows in rounds.items()
    }
    print(f"{options.objects} objects of {format_size(options.nbytes)}, medians of {options.rounds} rounds")
    print(f"of the files, {max(cached):.0%} at most were in the page cache at the start of a round")
    print(f"{'prefetch':>10}" + "".join(f"{column:>13}" for column in COLUMNS))
    for kind, row in medians.items():
        print(f"{kind:>10}" + "".join(f"{row[column]:>13.3g}" for column in COLUMNS))
    off, on = medians["off"], medians["on"]
    print(f"GETs: {off['GETs s'] / on['GETs s']:.2f} times as fast; HEADs and GETs: ", end="")
    print(f"{(off['HEADs s'] + off['GETs s']) / (on['HEADs s'] + on['GETs s']):.2f} times", end="; ")
    print(f"CPU: {on['CPU s'] / off['CPU s']:.2f} times")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "cached": cached}, indent=1))


if __name__ == "__main__":
    main()
