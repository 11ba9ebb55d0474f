"""The KV of chunks to a DynamicCache, and back, bit for bit.

A chunk's is kv[layers, 2, kv_heads, tokens, head_dim]; a cache layer holds K and V of [1, kv_heads, tokens, head_dim]
each. Copies are one strided pass a chunk; nothing is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def fill_cache(cache: Any, layout: Layout, chunks: Any, device: Any) -> None:
    """Put the KV of consecutive chunks, the first of a sequence, into an empty DynamicCache.

    chunks: (chunks, layout.nbytes) uint8 on the CPU, each contiguous; may be written again after the call
    """
    if not len(chunks):
        return
    kv = chunks.to(device).view(DTYPES[layout.dtype]).view(len(chunks), *layout.shape)
    # [chunks, layers, 2, heads, tokens, dim] becomes [1, heads, all tokens, dim] for K and V of each layer, each in
    # memory of its own: the model's first pass copies layer after layer, and lets go of one when it has copied it.
    filled = [
        [
            part.transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(1, 2).unsqueeze(0)
            for part in kv[:, index].unbind(1)
        ]
        for index in range(layout.layers)
    ]
    # Not before all are there: a cache filled in part would give another text. This is what DynamicLayer.update does to
    # an empty layer, without its copy.
    for layer, (keys, values) in zip(cache.layers, filled, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values


def check_cache(layers: Sequence[tuple[Any, Any]], layout: Layout, tokens: int) -> None:
    """Accept K and V of every layer for at least `tokens` tokens of one sequence. Raises LayoutError."""
    if len(layers) != layout.layers:
        raise LayoutError(f"a cache of {len(layers)} layers, the space has {layout.layers}")
    for index, pair in enumerate(layers):
        for tensor in pair:
            batch, heads, held, dim = tensor.shape
            if (batch, heads, dim) != (1, layout.kv_heads, layout.head_dim) or held < tokens:
                raise LayoutError(f"layer {index} holds {list(tensor.shape)}")
            if tensor.dtype != DTYPES[layout.dtype]:
                raise LayoutError(f"layer {index} holds {tensor.dtype}, the space says {layout.dtype}")


def fill_chunk(chunk: Any, layout: Layout, layers: Sequence[tuple[Any, Any]], first_token: int) -> None:
    """Write the KV of one chunk.

    chunk:  layout.nbytes bytes of uint8 on the CPU
    layers: K and V of each layer, [1, kv_heads, at least first_token + layout.tokens, head_dim]
    """
    kv = chunk.view(DTYPES[layout.dtype]).view(layout.shape)
    last = first_token + layout.tokens
    device = layers[0][0].device
    # From another device the chunk is gathered there, and crosses in one piece.
    target = kv if device == kv.device else torch.empty_like(kv, device=device)
    for layer, pair in zip(target, layers, strict=True):
        for part, tensor in zip(layer, pair, strict=True):
            part.copy_(tensor[0, :, first_token:last])
    if target is not kv:
        kv.copy_(target)
