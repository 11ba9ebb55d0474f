"""Every order in which an engine allocates its pages, as contiguous runs of a block."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine_adapters.layouts import Pages, pages_of
from engine_adapters.nixl.layout import HostBlocks, Layout
from engine_adapters.vllm.direct_memory import direct_layout
from kvgate.errors import ConfigError

LAYERS, BLOCKS, TOKENS, HEADS, DIM = 3, 5, 4, 2, 8
ORDERS = {  # of memory, and how many runs a block of one layer has
    "LBNHC": 1,
    "LBHNC": 1,
    "BLNHC": 1,
    "BLHNC": 1,
    "LHBNC": HEADS,
    "BHLNC": HEADS,
}


def unified(order: str) -> list[Any]:
    """The layers of vLLM's unified cache, (B, H, N, 2 * D) each, in memory of this order."""
    sizes = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": TOKENS, "C": 2 * DIM}
    memory = torch.arange(LAYERS * BLOCKS * HEADS * TOKENS * 2 * DIM, dtype=torch.int32).view(
        [sizes[axis] for axis in order]
    )
    return list(memory.permute([order.index(axis) for axis in "LBHNC"]))


def group(layers: int = LAYERS) -> Any:
    space = SimpleNamespace(id="ab" * 32, dtype="F32", packing="none")
    return SimpleNamespace(layer_names=tuple(f"l{n}" for n in range(layers)), block_tokens=TOKENS, space=space)


def layout_of(pages: list[Pages], block_tokens: int = TOKENS) -> Layout:
    told = group(len(pages))
    told.block_tokens = block_tokens
    return direct_layout([told], [pages], range(HEADS), 0, 1)


def numbers(layout: Layout, block: int) -> list[int]:
    """What a transfer of a block moves."""
    views = list(HostBlocks(layout).views(0, block))
    return [number for view in views for number in view.cast("i")]


def as_pages(name: str, *tensors: Any, block_tokens: int = TOKENS) -> Pages:
    views = [tensor.view(torch.float32) for tensor in tensors]
    return pages_of(name, *views, kv_heads=HEADS, head_dim=DIM, block_tokens=block_tokens)


@pytest.mark.parametrize(("order", "runs"), ORDERS.items())
def test_block_is_all_of_its_bytes_once_and_nothing_else(order: str, runs: int) -> None:
    caches = unified(order)
    layout = layout_of([as_pages("vllm", cache) for cache in caches])
    assert len(layout.groups[0].regions) == LAYERS * runs
    for block in range(BLOCKS):
        assert sorted(numbers(layout, block)) == sorted(int(n) for cache in caches for n in cache[block].flatten())


@pytest.mark.parametrize(("name", "runs"), [("flash-attn", 2), ("flashinfer-nhd", 1), ("flashinfer-hnd", 1)])
def test_parts_that_lie_apart_are_runs_of_their_own(name: str, runs: int) -> None:
    shape = {
        "flash-attn": (2, BLOCKS, TOKENS, HEADS, DIM),
        "flashinfer-nhd": (BLOCKS, 2, TOKENS, HEADS, DIM),
        "flashinfer-hnd": (BLOCKS, 2, HEADS, TOKENS, DIM),
    }[name]
    cache = torch.arange(2 * BLOCKS * TOKENS * HEADS * DIM, dtype=torch.int32).view(shape)
    layout = layout_of([as_pages(name, cache)])
    assert len(layout.groups[0].regions) == runs
    by_block = cache.movedim(0, 1) if name == "flash-attn" else cache
    for block in range(BLOCKS):
        assert sorted(numbers(layout, block)) == sorted(by_block[block].flatten().tolist())


def test_kernel_blocks_of_one_block_are_moved_together() -> None:
    cache = unified("LBNHC")[0][:4]
    layout = layout_of([as_pages("vllm", cache, block_tokens=2 * TOKENS)], 2 * TOKENS)
    assert layout.groups[0].blocks == 2
    assert sorted(numbers(layout, 1)) == sorted(cache[2:4].flatten().tolist())


def test_orders_of_bytes_are_told_apart() -> None:
    told = {
        layout_of([as_pages("vllm", cache) for cache in unified(order)]).groups[0].packing
        for order in ("LBNHC", "LBHNC", "LHBNC")
    }
    assert len(told) == 3


def test_layers_of_different_orders_are_refused() -> None:
    mixed = [as_pages("vllm", unified("LBNHC")[0]), as_pages("vllm", unified("LBHNC")[0])]
    with pytest.raises(ConfigError, match="different orders"):
        layout_of(mixed)
