"""Paged KV as each engine allocates and writes it, by the engine's own indexing, for the tests of layouts and staging.

`ENGINES` has one entry a layout and order in memory. Each knows how the engine allocates a model's layers and how it
writes a block; nothing here looks at the table under test but for the name of its line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from engine_adapters.layouts import Pages, pages_of


@dataclass(frozen=True)
class Shape:
    layers: int = 2
    blocks: int = 5
    heads: int = 2
    tokens: int = 4
    dim: int = 8
    dtype: Any = torch.bfloat16


Tensors = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Engine:
    """allocate: a tuple of tensors for each layer. write: one block of one layer, kv is (parts, heads, tokens, dim)."""

    name: str
    allocate: Callable[[Shape], Tensors]
    write: Callable[[tuple[Any, ...], int, Any], None]
    parts: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def pages(self, shape: Shape, tensors: Tensors) -> list[Pages]:
        return [
            pages_of(
                self.name,
                *layer,
                kv_heads=shape.heads,
                head_dim=shape.dim,
                block_tokens=shape.tokens,
                **self.options,
            )
            for layer in tensors
        ]


def noise(*shape: int, dtype: Any) -> Any:
    """Every bit pattern, NaNs included."""
    *outer, last = shape
    return torch.randint(0, 256, (*outer, last * dtype.itemsize), dtype=torch.uint8).view(dtype)


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.uint8)


# --- vLLM >= 0.26 -----------------------------------------------------------------------------------------------------

ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}
"""Which logical axis of [L, B, H, N, C] comes where in memory (vllm.v1.kv_cache_layout)."""


def unified(order: str, shape: Shape, heads: int, tokens: int, content: int) -> Tensors:
    logical = (shape.layers, shape.blocks * (shape.tokens // tokens), heads, tokens, content)
    permutation = ORDERS[order]
    memory = noise(*(logical[axis] for axis in permutation), dtype=shape.dtype)
    back = [permutation.index(axis) for axis in range(5)]
    return [(view,) for view in memory.permute(back)]


def write_unified(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    """As flash_attn.py: kv_cache.transpose(1, 2).split(head_size, dim=-1), then by slot."""
    pages = layer[0].transpose(1, 2)
    keys, values = pages.split(kv.shape[3], dim=-1)
    page_tokens = pages.shape[1]
    for token in range(kv.shape[2]):
        page, offset = divmod(block * kv.shape[2] + token, page_tokens)
        keys[page, offset] = kv[0, :, token]
        values[page, offset] = kv[1, :, token]


def padded_pages(shape: Shape) -> Tensors:
    """LBNHC with pages of 24 elements more than they need (page_size_padded)."""
    page = shape.tokens * shape.heads * 2 * shape.dim
    memory = noise(shape.layers, shape.blocks, page + 24, dtype=shape.dtype)
    inside = memory[:, :, :page].unflatten(2, (shape.tokens, shape.heads, 2 * shape.dim))
    return [(view,) for view in inside.transpose(2, 3)]


def planes(shape: Shape) -> Tensors:
    """As b12x.py: two head slots, of K and of V."""
    memory = noise(shape.layers, shape.blocks, 2, shape.tokens, shape.heads * shape.dim, dtype=shape.dtype)
    return [(view,) for view in memory]


def write_planes(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    for cache, part in zip(layer[0].unbind(1), kv, strict=True):
        cache.unflatten(-1, part.shape[::2])[block] = part.transpose(0, 1)


def pack(part: Any) -> Any:
    """A packing of (heads, tokens, dim) that leaves no token together: dim first, as "vec" has keys."""
    return part.transpose(1, 2).flatten(1).view(part.shape)


def write_cpu(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    """As cpu_attn.py: the view [B, H, 2 * N, D], its first half K, its second V; each packed in its own way."""
    pages, heads, tokens, _ = layer[0].shape
    keys, values = layer[0].view((pages, heads, tokens * 2, -1)).chunk(2, dim=2)
    for page in range(kv.shape[2] // tokens):
        number, mine = block * (kv.shape[2] // tokens) + page, kv[:, :, page * tokens : (page + 1) * tokens]
        keys[number] = pack(mine[0])
        values[number] = pack(mine[1])


def latents(*, page_padding: int = 0, row_padding: int = 0, head_axis: bool = True) -> Callable[[Shape], Tensors]:
    def allocate(shape: Shape) -> Tensors:
        row = shape.dim + row_padding
        memory = noise(shape.layers, shape.blocks, shape.tokens * row + page_padding, dtype=shape.dtype)
        rows = memory[:, :, : shape.tokens * row].unflatten(2, (shape.tokens, row))
        return [(view.unsqueeze(1) if head_axis else view,) for view in rows]

    return allocate


def write_latent(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    layer[0][block].squeeze(0)[:, : kv.shape[3]] = kv[0, 0]


# --- vLLM before 0.26, FlashInfer -------------------------------------------------------------------------------------


def whole(*axes: str, order: str = "") -> Callable[[Shape], Tensors]:
    """A tensor a layer of these axes; in memory in this order, where it is another."""

    def allocate(shape: Shape) -> Tensors:
        sizes = {"2": 2, "B": shape.blocks, "N": shape.tokens, "H": shape.heads, "D": shape.dim}
        memory_order = order or "".join(axes)
        back = [memory_order.index(axis) for axis in axes]
        return [
            (noise(*(sizes[axis] for axis in memory_order), dtype=shape.dtype).permute(back),)
            for _ in range(shape.layers)
        ]

    return allocate


def write_parts_first(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    keys, values = layer[0].unbind(0)
    keys[block], values[block] = kv.transpose(1, 2)


def write_nhd(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    layer[0][block, 0], layer[0][block, 1] = kv.transpose(1, 2)


def write_hnd(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    layer[0][block, 0], layer[0][block, 1] = kv


# --- SGLang -----------------------------------------------------------------------------------------------------------


def pools(shape: Shape) -> Tensors:
    slots = shape.blocks * shape.tokens
    return [
        tuple(noise(slots, shape.heads, shape.dim, dtype=shape.dtype) for _ in range(2)) for _ in range(shape.layers)
    ]


def write_pools(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    for token in range(kv.shape[2]):
        for pool, part in zip(layer, kv, strict=True):
            pool[block * kv.shape[2] + token] = part[:, token]


def fused(shape: Shape) -> Tensors:
    slots = shape.blocks * shape.tokens
    return [(noise(slots, 2 * shape.heads, shape.dim, dtype=shape.dtype),) for _ in range(shape.layers)]


def write_fused(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    tokens = slice(block * kv.shape[2], (block + 1) * kv.shape[2])
    layer[0][tokens, 0::2], layer[0][tokens, 1::2] = kv.transpose(1, 2)


def latent_pool(shape: Shape) -> Tensors:
    slots = shape.blocks * shape.tokens
    return [(noise(slots, 1, shape.dim, dtype=shape.dtype),) for _ in range(shape.layers)]


def write_latent_pool(layer: tuple[Any, ...], block: int, kv: Any) -> None:
    layer[0][block * kv.shape[2] : (block + 1) * kv.shape[2], 0] = kv[0, 0]


def _unified(order: str, split: int = 1) -> Engine:
    return Engine(
        "vllm",
        lambda shape: unified(order, shape, shape.heads, shape.tokens // split, 2 * shape.dim),
        write_unified,
    )


def _cpu(split: int = 1) -> Engine:
    return Engine(
        "vllm-cpu",
        lambda shape: unified("LBHNC", shape, shape.heads, shape.tokens // split, 2 * shape.dim),
        write_cpu,
        options={"packing": "test"},
    )


ENGINES: dict[str, Engine] = {
    **{f"vllm {order}": _unified(order) for order in ORDERS},
    "vllm LBNHC, kernel blocks": _unified("LBNHC", split=2),
    "vllm LBHNC, kernel blocks": _unified("LBHNC", split=2),
    "vllm LBNHC, padded pages": Engine("vllm", padded_pages, write_unified),
    "vllm planes": Engine("vllm-planes", planes, write_planes),
    "vllm cpu": _cpu(),
    "vllm cpu, kernel blocks": _cpu(split=2),
    "vllm mla": Engine("vllm-mla", latents(), write_latent, parts=1),
    "vllm mla, padded pages": Engine("vllm-mla", latents(page_padding=40), write_latent, parts=1),
    "vllm mla, padded rows": Engine(
        "vllm-mla", latents(row_padding=8), write_latent, parts=1, options={"row_elements": 16}
    ),
    "flash-attn NHD": Engine("flash-attn", whole(*"2BNHD"), write_parts_first),
    "flash-attn HND": Engine("flash-attn", whole(*"2BNHD", order="2BHND"), write_parts_first),
    "flashinfer NHD": Engine("flashinfer-nhd", whole(*"B2NHD"), write_nhd),
    "flashinfer NHD, HND by strides": Engine("flashinfer-nhd", whole(*"B2NHD", order="B2HND"), write_nhd),
    "flashinfer HND": Engine("flashinfer-hnd", whole(*"B2HND"), write_hnd),
    "mla": Engine("mla", latents(head_axis=False), write_latent, parts=1),
    "mla, padded pages and rows": Engine(
        "mla",
        latents(page_padding=16, row_padding=8, head_axis=False),
        write_latent,
        parts=1,
        options={"row_elements": 16},
    ),
    "sglang": Engine("sglang", pools, write_pools),
    "sglang fused": Engine("sglang-fused", fused, write_fused),
    "sglang mla": Engine("sglang-mla", latent_pool, write_latent_pool, parts=1),
}
