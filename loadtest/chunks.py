"""Chunks to store: valid in every respect, of a model that does not exist, with no KV in them worth having."""

from __future__ import annotations

import hashlib

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.space import Space


def space(chunk_tokens: int, layers: int) -> Space:
    """A space whose chunks have 32 bytes of KV a token and layer."""
    return Space(
        model="loadtest",
        weights="sha256:" + "1" * 64,
        tokenizer="sha256:" + "2" * 64,
        dtype="F16",
        layers=layers,
        kv_heads=1,
        head_dim=8,
        attention="gqa",
        rope={"rope_theta": 10000.0, "rope_type": "default"},
        lora="none",
        multimodal="none",
        chunk_tokens=chunk_tokens,
        hash_scheme="kvgate-sha256-chain-v1",
        layout_version=1,
    )


def chunk_hash(number: int) -> bytes:
    """The name of chunk `number`, 32 bytes."""
    return hashlib.sha256(b"loadtest chunk %d" % number).digest()


def header(of: Space, number: int) -> bytes:
    """What a chunk begins with; `of.layout.nbytes` of anything follow."""
    return ChunkHeader.encode(of, chunk_hash(number), bytes(32), 0)
