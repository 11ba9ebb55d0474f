"""Chunks of the gateway as what a rank holds of their KV, whatever lossless codec they are in.

1. A row of staging has KV of a chunk only where that arrived verified; and of a whole object, where it says of itself
   that it is this chunk, and can be decoded.
2. A chunk in a lossless codec has no slices: it is read whole, and the rank's layers and heads are taken out of it.
3. Beside the rows there is memory for one such chunk, and for three layers of each that is being decoded.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine_adapters.vllm.rows import Rows
from kvgate.chunk.form import RAW
from kvgate.chunk.header import check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import file_nbytes
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.codec.chunk_body import decode_in_place, decode_slice, max_body_nbytes
from kvgate.errors import ConfigError, InvalidChunk

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """What a rank holds of a space's chunks.

    layers: of the chunk's
    heads:  None for MLA, which has none
    nbytes: of kv[layers, :, heads]
    """

    space: Space
    layers: range
    heads: range | None
    nbytes: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of them."""
        return self.nbytes == self.space.layout.nbytes


@dataclass(frozen=True, slots=True)
class Came:
    """How many leading chunks came, and their bytes. no_slices: whether the next one can be had whole alone."""

    count: int
    nbytes: int = 0
    no_slices: bool = False


class ChunkReader:
    """Reads chunks into rows, all that it does before a deadline (of time.monotonic). Thread-safe."""

    def __init__(self, client: Client, bucket: str, rows: Rows) -> None:
        self._client = client
        self._bucket = bucket
        self._rows = rows
        self._one = threading.Semaphore()
        self._body = memoryview(b"")

    def slices(self, held: Held, layers: range, hashes: Sequence[bytes], rows: Sequence[int], deadline: float) -> Came:
        """Read some layers of what the rank holds, each into its place. layers: indices into held.layers"""
        layer_nbytes = held.nbytes // len(held.layers)
        span = slice(layers.start * layer_nbytes, layers.stop * layer_nbytes)
        loaded = self._client.load_chunks(
            self._bucket,
            held.space.id,
            hashes,
            [self._rows.body(row, held.nbytes)[DATA_START:][span] for row in rows],
            max(deadline - time.monotonic(), 0),
            layout=held.space.layout,
            layers=range(held.layers.start + layers.start, held.layers.start + layers.stop),
            heads=held.heads,
        )
        return Came(loaded.leading, loaded.leading * len(layers) * layer_nbytes, loaded.no_slices)

    def whole(self, held: Held, hashes: Sequence[bytes], rows: Sequence[int], deadline: float) -> Came:
        """Read whole objects, and have what the rank holds of them in the rows."""
        if not held.is_whole:
            return self._cut(held, hashes, rows, deadline)
        bodies = [self._rows.body(row, held.nbytes) for row in rows]
        count = nbytes = 0
        for chunk_hash, body in zip(hashes[: self._load(held.space, hashes, bodies, deadline)], bodies, strict=False):
            taken = self._taken(held, chunk_hash, body, None, deadline)
            if not taken:
                break
            count, nbytes = count + 1, nbytes + taken
        return Came(count, nbytes)

    def _cut(self, held: Held, hashes: Sequence[bytes], rows: Sequence[int], deadline: float) -> Came:
        count = nbytes = 0
        for chunk_hash, row in zip(hashes, rows, strict=True):
            with self._room(max_body_nbytes(held.space), deadline) as body:
                if body is None or not self._load(held.space, [chunk_hash], [body], deadline):
                    break
                data = self._rows.body(row, held.nbytes)[DATA_START:]
                taken = self._taken(held, chunk_hash, body, data, deadline)
            if not taken:
                break
            count, nbytes = count + 1, nbytes + taken
        return Came(count, nbytes)

    def _load(self, space: Space, hashes: Sequence[bytes], bodies: Sequence[memoryview], deadline: float) -> int:
        left_s = max(deadline - time.monotonic(), 0)
        return self._client.load_chunks(self._bucket, space.id, hashes, bodies, left_s, exact=False).leading

    @staticmethod
    def _taken(held: Held, chunk_hash: bytes, body: memoryview, data: memoryview | None, deadline: float) -> int:
        """Have the KV of an object at the front of `body` in `data`, or else where it lies; its bytes, or 0."""
        space = held.space
        try:
            nbytes = file_nbytes(body)
            header = check_chunk(body, nbytes, ChunkKey(space.id, chunk_hash.hex()), space)
            if header.codec != RAW and time.monotonic() >= deadline:
                return 0
            if data is None:
                decode_in_place(space, body, nbytes)
            else:
                heads = range(space.layout.kv_heads) if held.heads is None else held.heads
                decode_slice(space, body[:nbytes], data, held.layers, heads)
        except InvalidChunk as error:
            _log.warning("a chunk is not what its key says: %s", error)
            return 0
        except ConfigError as error:
            _log.warning("a chunk is in a codec that is not installed here: %s", error)
            return 0
        return nbytes - DATA_START

    @contextlib.contextmanager
    def _room(self, nbytes: int, deadline: float) -> Iterator[memoryview | None]:
        """The memory for a whole chunk; None when others need it until the deadline."""
        if not self._one.acquire(timeout=max(deadline - time.monotonic(), 0)):
            yield None
            return
        try:
            if len(self._body) < nbytes:
                self._body = memoryview(bytearray(nbytes))
            yield self._body[:nbytes]
        finally:
            self._one.release()
