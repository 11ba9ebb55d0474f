"""How many chunk hashes a second `match` compares with the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import chunks
import msgpack
import signed
from bed import Bed
from driver import Exchange
from figures import Sample
from gateway import ACCESS_KEY, BUCKET, CREDENTIAL, SECRET_KEY

from kvgate.client.sync import Client

ROW = "match x8"
HASHES = 1024
"""A call: 262,144 tokens in chunks of 256."""
CONNECTIONS = 8
AGES = 64


def names() -> list[str]:
    return [ROW]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if not wanted(ROW):
        return
    space = chunks.space(16, 2)
    hashes = [chunks.chunk_hash(number) for number in range(HASHES)]
    store(bed, space, hashes)
    kvgate = bed.kvgate
    call = {"bucket": BUCKET, "space": space.id, "hashes": b"".join(hashes), "lease_s": 1}
    body = msgpack.packb(call)
    media = {"content-type": "application/msgpack"}

    def exchange() -> Exchange:
        return Exchange(
            [
                signed.request(CREDENTIAL, kvgate.port, "POST", "/_kv/v1/match", media, body=body, age_s=age_s)
                for age_s in range(AGES)
            ]
        )

    calls = bed.transfer("kvgate", exchange, CONNECTIONS)

    def run() -> Sample:
        sample = calls()
        return replace(sample, operations=sample.operations * HASHES, all_operations=sample.all_operations * HASHES)

    if mine := bed.measure(ROW, "hashes/s", {"kvgate": run}).get("kvgate"):
        mine.want(">= 1,000,000/s", mine.value >= 1_000_000)


def store(bed: Bed, space: chunks.Space, hashes: list[bytes]) -> None:
    """Publish a chunk for each hash, and see that all of them match."""
    with Client(bed.kvgate.gateway.url, ACCESS_KEY, SECRET_KEY, deadline_s=30) as client:
        client.put(BUCKET, f"kv/{space.id}/manifest.json", space.canonical_json())
        for number, name in enumerate(hashes):
            parts = [chunks.header(space, number), bytes(space.layout.nbytes)]
            client.put(BUCKET, f"kv/{space.id}/{name.hex()}", parts)
    call = {"bucket": BUCKET, "space": space.id, "hashes": [name.hex() for name in hashes], "lease_s": 1}
    matched = bed.kvgate.gateway.ask("/_kv/v1/match", call)["matched"]
    if matched != len(hashes):
        raise RuntimeError(f"{matched} of {len(hashes)} chunks match that were just stored")
