"""A batch of 64 chunks read by kvgate's own client, against GETs over bare TCP on as many connections."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import chunks
from bed import Bed
from figures import Sample
from gateway import ACCESS_KEY, BUCKET, SECRET_KEY
from processes import cpu_s

from kvgate.client.sync import Client
from rows.transfer import fill

ROW = "batch of 64 x 1M"
CHUNKS = 64
LAYERS = 2048
"""With 16 tokens a chunk: 1 MiB."""
RAW_NBYTES = 1 << 20
CONNECTIONS = 8


def names() -> list[str]:
    return [ROW]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if not wanted(ROW):
        return
    space = chunks.space(16, LAYERS)
    hashes = [chunks.chunk_hash(number) for number in range(CHUNKS)]
    nbytes = space.layout.nbytes + len(chunks.header(space, 0))
    buffers = [memoryview(bytearray(nbytes)) for _ in hashes]
    url, pid = bed.kvgate.gateway.url, bed.kvgate.pid
    with Client(url, ACCESS_KEY, SECRET_KEY, deadline_s=30, max_connections=CONNECTIONS) as client:
        client.put(BUCKET, f"kv/{space.id}/manifest.json", space.canonical_json())
        for number, name in enumerate(hashes):
            client.put(
                BUCKET, f"kv/{space.id}/{name.hex()}", [chunks.header(space, number), bytes(space.layout.nbytes)]
            )

        def run() -> Sample:
            before, client_before = cpu_s(pid), time.process_time()
            began = now = time.perf_counter()
            took_us: list[float] = []
            while now < began + bed.seconds:
                arrived = client.load_chunks(BUCKET, space.id, hashes, buffers).leading
                if arrived != CHUNKS:
                    raise RuntimeError(f"{arrived} of {CHUNKS} chunks arrived")
                last, now = now, time.perf_counter()
                took_us.append((now - last) * 1e6)
            return Sample(
                operations=len(took_us),
                nbytes=len(took_us) * CHUNKS * nbytes,
                wall_s=now - began,
                p50_us=statistics.median(took_us),
                p99_us=max(took_us),
                all_operations=len(took_us),
                server_cpu_s=cpu_s(pid) - before,
                client_cpu_s=time.process_time() - client_before,
            )

        fill(bed, RAW_NBYTES, ["raw"])
        raw = bed.transfer("raw", partial(bed.peers["raw"].get, RAW_NBYTES), CONNECTIONS)
        bed.measure(ROW, "GB/s", {"raw": raw, "kvgate": run}, limit="raw")
