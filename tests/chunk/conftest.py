from __future__ import annotations

from typing import Any

import pytest

from kvgate.chunk.space import Space

MANIFEST: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "weights": "0e9e39f249a16976918f6564b8830bc894c89659",
    "tokenizer": "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "dtype": "BF16",
    "layers": 3,
    "kv_heads": 4,
    "head_dim": 8,
    "attention": "gqa",
    "rope": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "beta": 1e-07,
        "scaled": True,
        "short_factor": [1.5, 2.0],
    },
    "lora": "none",
    "multimodal": "none",
    "chunk_tokens": 4,
    "hash_scheme": "kvgate-sha256-chain-v1",
    "layout_version": 1,
}
MANIFEST_V2: dict[str, Any] = MANIFEST | {
    "layout_version": 2,
    "packing": "vllm-cpu-amx-32",
    "layer_set": "0-1,5",
    "codec": "raw",
}


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A small, valid manifest, free to be changed."""
    return {**MANIFEST, "rope": dict(MANIFEST["rope"])}


@pytest.fixture
def manifest_v2() -> dict[str, Any]:
    """The same of layout version 2."""
    return {**MANIFEST_V2, "rope": dict(MANIFEST["rope"])}


@pytest.fixture(scope="session")
def space() -> Space:
    """The space of that manifest."""
    return Space.from_manifest(MANIFEST)
