"""A rank of an engine, as a process: writes its layers of a prompt's chunks, and says what became of each.

    python -m tests.server.rank URL WRITER RANK RANKS CHUNKS LEASE_S

One line a chunk goes to stdout: its number, and the state or the code of the refusal.
"""

from __future__ import annotations

import sys

from kvgate.chunk.chain import chain_hashes, root
from kvgate.client.sync import Client
from kvgate.client.values import Slice
from kvgate.errors import GatewayError
from tests.chunks import SPACE as SMALL
from tests.gateways import ALPHA

BUCKET = "alpha-bucket"
SPACE = type(SMALL).from_manifest(SMALL.manifest() | {"layers": 8, "head_dim": 128, "chunk_tokens": 128})
"""Chunks of 1 MiB."""


def hashes_of(salt: bytes, count: int) -> list[bytes]:
    """The root, and the hashes of a prompt's chunks."""
    start = root(SPACE.digest, salt)
    return [start, *chain_hashes(start, list(range(count * SPACE.chunk_tokens)), SPACE.chunk_tokens)]


def kv_of(chunk: int) -> bytes:
    """The KV of a chunk, each of another content."""
    return bytes((chunk + each) % 256 for each in range(256)) * (SPACE.layout.nbytes // 256)


def layers_of(rank: int, ranks: int) -> range:
    """The layers that a rank holds."""
    each = SPACE.layers // ranks
    return range(rank * each, (rank + 1) * each)


def main(url: str, writer: str, rank: int, ranks: int, chunks: int, lease_s: float) -> None:
    layers = layers_of(rank, ranks)
    run = SPACE.layout.layer_range(layers.start, layers.stop)
    with Client(url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        hashes = hashes_of(client.tenant().salt, chunks)
        for index in range(chunks):
            part = Slice(layers, None, memoryview(kv_of(index))[run.start : run.stop])
            place = BUCKET, SPACE.id, hashes[index + 1], hashes[index], index * SPACE.chunk_tokens
            try:
                written = client.write_slices(*place, [part], writer=writer, lease_s=lease_s).state
            except GatewayError as error:
                written = error.code
            print(index, written, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), float(sys.argv[6]))
