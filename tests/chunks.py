"""Small chunks of a small space, valid in every respect."""

from __future__ import annotations

import hashlib

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.space import Space

SPACE = Space(
    model="test-model",
    weights="sha256:" + "1" * 64,
    tokenizer="sha256:" + "2" * 64,
    dtype="F16",
    layers=2,
    kv_heads=2,
    head_dim=8,
    attention="gqa",
    rope={"rope_theta": 10000.0, "rope_type": "default"},
    lora="none",
    multimodal="none",
    chunk_tokens=16,
    hash_scheme="kvgate-sha256-chain-v1",
    layout_version=1,
)


def chunk_hash(number: int) -> bytes:
    """The name of chunk `number`, 32 bytes."""
    return hashlib.sha256(b"chunk %d" % number).digest()


def chunk(number: int = 0) -> tuple[str, bytes]:
    """The key and the bytes of a good chunk."""
    name = chunk_hash(number)
    header = ChunkHeader.encode(SPACE, name, bytes(32), 0)
    return str(ChunkKey(SPACE.id, name.hex())), header + bytes(SPACE.layout.nbytes)
