"""Real chunks of a small space: a gateway takes no others."""

from __future__ import annotations

import random

from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.space import Space

SPACE = Space.from_manifest(
    {
        "model": "meta-llama/Llama-3.1-8B",
        "weights": "0e9e39f249a16976918f6564b8830bc894c89659",
        "tokenizer": "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        "dtype": "BF16",
        "layers": 4,
        "kv_heads": 8,
        "head_dim": 32,
        "attention": "gqa",
        "rope": {"rope_type": "default", "rope_theta": 500000.0},
        "lora": "none",
        "multimodal": "none",
        "chunk_tokens": 16,
        "hash_scheme": "kvgate-sha256-chain-v1",
        "layout_version": 1,
    }
)


def chunks(salt: bytes, count: int, seed: int = 0) -> list[tuple[bytes, bytes]]:
    """The (hash, body) of each chunk of one random prompt."""
    generator = random.Random(seed)
    tokens = [generator.randrange(100_000) for _ in range(count * SPACE.chunk_tokens)]
    parent = root(bytes.fromhex(SPACE.id), salt)
    hashes = chain_hashes(parent, tokens, SPACE.chunk_tokens)
    bodies = [
        ChunkHeader.encode(SPACE, own, before, index * SPACE.chunk_tokens) + generator.randbytes(SPACE.layout.nbytes)
        for index, (before, own) in enumerate(zip([parent, *hashes], hashes, strict=False))
    ]
    return list(zip(hashes, bodies, strict=True))
