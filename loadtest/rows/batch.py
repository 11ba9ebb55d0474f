"""A batch of 64 chunks read by kvgate's own client, against as many GETs over bare TCP."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import chunks
from bed import Bed
from figures import Sample
from gateway import ACCESS_KEY, BUCKET, SECRET_KEY
from processes import cpu_s

from kvgate.client.sync import Client

ROW = "batch of 64 x 1M"
CHUNKS = 64
LAYERS = 2048
"""With 16 tokens a chunk: 1 MiB."""
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
            began, batches = time.perf_counter(), 0
            while (now := time.perf_counter()) < began + bed.seconds or not batches:
                arrived = client.load_chunks(BUCKET, space.id, hashes, buffers)
                if arrived != CHUNKS:
                    raise RuntimeError(f"{arrived} of {CHUNKS} chunks arrived")
                batches += 1
            now = time.perf_counter()
            return Sample(
                operations=batches,
                nbytes=batches * CHUNKS * nbytes,
                wall_s=now - began,
                p50_us=(now - began) / batches * 1e6,
                p99_us=0.0,
                all_operations=batches,
                server_cpu_s=cpu_s(pid) - before,
                client_cpu_s=time.process_time() - client_before,
            )

        raw = bed.transfer("raw", partial(bed.peers["raw"].get, 1 << 20), CONNECTIONS)
        bed.measure(ROW, "GB/s", {"raw": raw, "kvgate": run}, limit="raw")
