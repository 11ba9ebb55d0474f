"""Brings the KV of a prompt's beginning from the gateway into a cache, in time or not at all.

1. `load` never raises, and returns within its deadline. The tenant, match and chunk calls share that one deadline.
2. KV gets into the cache only when it arrived whole, matches its checksum, and its header names this space, hash,
   parent and place in the sequence.
3. At least one token of the prompt is left to compute, because its logits are needed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine_adapters import torch_quantise
from engine_adapters.breaker import Breaker
from engine_adapters.transformers import kv_layout
from engine_adapters.transformers.stats import Ledger, RequestStats
from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.form import RAW
from kvgate.chunk.header import check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import file_nbytes
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.codec.chunk_body import decode_body, max_body_nbytes
from kvgate.errors import DeadlineExceeded, GatewayUnavailable, InvalidChunk, KVGateError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Prefix:
    """A prompt's names in its space, and how much of it the gateway holds.

    chain:       the root, then the hash of each full chunk; empty as long as the tenant's salt is not known
    held_chunks: how many leading chunks the gateway said that it has
    """

    chain: list[bytes]
    held_chunks: int


class PrefixLoader:
    """Loads prefixes from one bucket. Use it from one thread at a time."""

    def __init__(self, client: Client, bucket: str, breaker: Breaker, ledger: Ledger, *, deadline_s: float) -> None:
        self._client = client
        self._bucket = bucket
        self._breaker = breaker
        self._ledger = ledger
        self._deadline_s = deadline_s
        self._salt: bytes | None = None

    def load(self, space: Space, tokens: Sequence[int], cache: Any, device: Any, stats: RequestStats) -> Prefix:
        """Fill the empty DynamicCache with the KV of as many leading tokens as arrive; `stats` says how many."""
        start_s = time.monotonic()
        end_s = start_s + self._deadline_s
        prefix = Prefix([], 0)
        allowed = self._breaker.allows()
        wanted = (len(tokens) - 1) // space.chunk_tokens
        try:
            if self._salt is None and allowed:
                self._salt = self._client.tenant(deadline_s=_left_s(end_s)).salt
            if self._salt is not None:
                start = root(space.digest, self._salt)
                prefix.chain = [start, *chain_hashes(start, tokens, space.chunk_tokens)]
            if wanted and allowed:
                chunks, nbytes = self._fetch(space, prefix, wanted, stats, end_s)
                kv_layout.fill_cache(cache, space.layout, chunks, device)
                stats.reused_tokens = len(chunks) * space.chunk_tokens
                stats.loaded_chunks, stats.loaded_nbytes = len(chunks), nbytes
            elif wanted:
                stats.miss = "the gateway was unavailable a moment ago"
        except GatewayUnavailable as error:
            self._breaker.failed()
            stats.miss = str(error)
        except KVGateError as error:
            stats.miss = str(error)
        except Exception as error:  # a defect of ours must not cost the engine its request
            _log.exception("the load of a prefix failed")
            stats.miss = f"defect: {type(error).__name__}"
        stats.load_s = time.monotonic() - start_s
        return prefix

    def _fetch(self, space: Space, prefix: Prefix, wanted: int, stats: RequestStats, end_s: float) -> tuple[Any, int]:
        """The KV of the leading chunks that came, beyond doubt, (chunks, layout.nbytes) uint8; and what was loaded."""
        chunks = min(self._match(space, prefix, end_s), wanted)
        if chunks < wanted:
            stats.miss = f"the gateway holds {chunks} of {wanted} chunks"
        bodies = torch.empty((chunks, max_body_nbytes(space)), dtype=torch.uint8)
        views = [memoryview(body.numpy()) for body in bodies]
        hashes = prefix.chain[1 : chunks + 1]
        arrived = 0
        if chunks:
            loaded = self._client.load_chunks(
                self._bucket, space.id, hashes, views, deadline_s=_left_s(end_s), exact=False
            )
            arrived = loaded.leading
        if arrived < chunks:
            late = time.monotonic() >= end_s
            if late and not arrived:
                self._breaker.failed()
            stats.miss = f"{arrived} of {chunks} chunks arrived whole" + (" in time" if late else "")
            self._ledger.failed("late" if late else "broken", 1)
        return self._decoded(space, prefix.chain, bodies[:arrived], stats, end_s)

    def _decoded(
        self, space: Space, chain: Sequence[bytes], bodies: Any, stats: RequestStats, end_s: float
    ) -> tuple[Any, int]:
        views = [memoryview(body.numpy()) for body in bodies]
        done, loaded_nbytes, decoded = 0, 0, None
        try:
            for index, view in enumerate(views):
                body = view[: file_nbytes(view)]
                codec = _check(body, space, chain, index)
                if codec != RAW and decoded is None:
                    decoded = torch.empty((len(bodies), space.layout.nbytes), dtype=torch.uint8)
                    if index:  # of a raw space, whose bodies have room for raw KV
                        decoded[:index] = bodies[:index, DATA_START:]
                if decoded is not None:
                    _left_s(end_s)
                    decode_body(space, body, memoryview(decoded[index].numpy()), quantisers=torch_quantise)
                done, loaded_nbytes = index + 1, loaded_nbytes + len(body)
        except InvalidChunk as error:
            stats.miss = f"chunk {done}: {error}"
            self._ledger.failed("invalid", 1)
        except DeadlineExceeded:
            stats.miss = f"{done} of {len(bodies)} chunks were decoded in time"
            self._ledger.failed("late", 1)
        kv = bodies[:, DATA_START:] if decoded is None else decoded
        return kv[:done], loaded_nbytes

    def _match(self, space: Space, prefix: Prefix, end_s: float) -> int:
        """How many leading chunks the gateway holds."""
        # The lease lasts as long as the load may, and ends by itself: a release would be a round trip before the first
        # token. Every hash is asked for, to know what need not be stored.
        left_s = _left_s(end_s)
        match = self._client.match(self._bucket, space.id, prefix.chain[1:], lease_s=left_s, deadline_s=left_s)
        self._breaker.succeeded()
        prefix.held_chunks = match.matched
        return prefix.held_chunks


def _check(body: memoryview, space: Space, chain: Sequence[bytes], index: int) -> str:
    """The codec of a body that is chunk `index` of a sequence. Raises InvalidChunk."""
    header = check_chunk(body, len(body), ChunkKey(space.id, chain[index + 1].hex()), space)
    if (header.parent, header.first_token) != (chain[index].hex(), index * space.chunk_tokens):
        raise InvalidChunk("metadata parent or first_token is another chunk's")
    return header.codec


def _left_s(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the load did not end within its deadline")
    return left_s
