"""The packing of pages whose inside depends on the machine: a tag, taken from what the engine really writes.

vLLM's CPU attention packs tokens and head_dim within each (page, head) of K and of V for the matrix units that it
finds, and the name of the instruction set does not tell all of it: with "neon", bf16 is packed or not by how vLLM was
built. So the tag holds a digest of a page that the engine packed: pages of equal tags are interchangeable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from kvgate.errors import LayoutError


def packing_tag(
    isa: str, page_tokens: int, head_dim: int, dtype: Any, cache_dtype: Any, write: Callable[..., Any]
) -> str:
    """The tag of how `write` packs a page, for instance `vllm-cpu-amx-32-64-0d9f6a12`.

    isa:         what the engine calls it; told in the tag for people
    page_tokens: tokens of a page of the engine's tensors
    dtype:       of keys and values as the model computes them
    cache_dtype: of the pages; uint8 for fp8
    write:       called once as (key, value, key_cache, value_cache, slots) with two tensors (page_tokens, 1, head_dim),
                 two (1, 1, page_tokens, head_dim), and the slots 0 … page_tokens - 1 in int64: vLLM's
                 `ops.cpu_attn_reshape_and_cache` with its other arguments bound
    Raises LayoutError where it does not fill the page.
    """
    count = page_tokens * head_dim
    # Small whole numbers, which every dtype of KV holds exactly, in an order in which no two packings look alike.
    numbers = hashlib.shake_256(b"kvgate page packing").digest(2 * count)
    pattern = torch.tensor([number % 15 - 7 or 8 for number in numbers], dtype=torch.float32).to(dtype)
    key, value = pattern.view(2, page_tokens, 1, head_dim)
    page = torch.zeros((1, 1, 2 * page_tokens, head_dim), dtype=cache_dtype)
    key_cache, value_cache = page.chunk(2, dim=2)
    write(key, value, key_cache, value_cache, torch.arange(page_tokens, dtype=torch.int64))
    packed = page.view(torch.uint8).view(2 * count, -1)
    if not bool(packed.any(1).all()):
        raise LayoutError(f"{isa} left bytes of a page of {page_tokens} x {head_dim} {cache_dtype} unwritten")
    digest = hashlib.sha256(packed.numpy().tobytes()).hexdigest()
    return f"vllm-cpu-{isa}-{page_tokens}-{head_dim}-{digest[:8]}"
