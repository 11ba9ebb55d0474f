"""Random paged memory in any affine layout, for the kernels and for their twins."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvgate.chunk.layout import Layout
from kvgate.kernels.paged_copy import Placed, Selection
from kvgate.kernels.pages import Pages, Table
from kvgate.kernels.pieces import Extent
from tests.kernels import devices

AXES = "LPBHT"
"""Layers, parts, blocks, heads, tokens in a block; a row follows, which U splits into units that lie apart."""

ENGINES = {
    "vllm LBNHC, K and V in one row of heads": "LBTPH",
    "vllm LBHNC": "LBPHT",
    "vllm BLHNC": "BLPHT",
    "vllm BLNHC": "BLTPH",
    "flash-attention NHD, K before V": "LPBTH",
    "flash-attention HND": "LPBHT",
    "flashinfer NHD": "LBPTH",
    "flashinfer HND": "LBPHT",
    "sglang pools, one a part": "PLBTH",
    "paged attention v1, split rows": "LPBHUT",
}


@dataclass
class Paged:
    """rows: uint8 [layers, parts, blocks, heads, block_tokens, units, unit bytes], a view of `memory`."""

    memory: Any
    rows: Any
    pages: Pages


def aligned(nbytes: int, shift: int) -> Any:
    """`nbytes` of random bytes whose address is `shift` more than a multiple of 64."""
    memory = devices.filled(np.frombuffer(random.randbytes(nbytes + 64 + shift), np.uint8))
    start = -memory.ctypes.data % 64 + shift
    return memory[start : start + nbytes]


def make_pages(order: str, sizes: dict[str, int], unit: int, padding: int = 0, shift: int = 0) -> Paged:
    """Pages whose axes lie in `order`, the outermost first; `padding` bytes follow each unit."""
    lying = [sizes[axis] for axis in order]
    memory = aligned(int(np.prod(lying)) * (unit + padding), shift)
    view = memory.reshape(*lying, unit + padding)[..., :unit]
    if "U" not in order:
        view, order = view[..., np.newaxis, :], order + "U"
    rows = view.transpose(*(order.index(axis) for axis in "LPBHTU"), len(order))
    first = rows[0, 0, 0, 0, 0, 0].ctypes.data
    stride = dict(zip("LPBHTU", rows.strides, strict=False))
    bases = tuple(
        first + layer * stride["L"] + part * stride["P"] for layer in range(sizes["L"]) for part in range(sizes["P"])
    )
    units = rows.shape[5]
    pages = Pages(
        bases,
        sizes["P"],
        sizes["H"],
        sizes["B"],
        sizes["T"],
        units * unit,
        stride["B"],
        stride["H"],
        stride["T"],
        unit,
        stride["U"],
    )
    return Paged(memory, rows, pages)


def cut(memory: Any, at: list[int]) -> tuple[Any, list[Extent]]:
    """The same bytes in as many separate allocations of the exact size, and where they lie."""
    edges = [0, *sorted({place for place in at if 0 < place < len(memory)}), len(memory)]
    parts = [devices.filled(memory[a:b]) for a, b in itertools.pairwise(edges)]
    return parts, [Extent(part.ctypes.data, len(part)) for part in parts]


def selected(tensor: Any, layout: Layout, selection: Selection, pages: Paged) -> Any:
    """The selection of a whole chunk, uint8 [layers, parts, heads, tokens, units, unit bytes], as a view."""
    units, unit = pages.rows.shape[5:]
    whole = tensor.reshape(layout.layers, layout.parts, layout.kv_heads, layout.tokens, units, unit)
    return whole[selection.layers.start : selection.layers.stop, :, selection.heads.start : selection.heads.stop]


def random_table(rng: random.Random, pages: Pages, tokens: int, free: list[int] | None, holes: bool) -> Table:
    """Blocks for a chunk: any, or of `free` ones, which they are taken from; some left out, the first one in part."""
    offset = rng.randrange(pages.block_tokens)
    needed = -(-(offset + tokens) // pages.block_tokens)
    blocks = [rng.randrange(pages.blocks) if free is None else free.pop() for _ in range(needed)]
    if holes:
        blocks = [-1 if rng.random() < 0.3 else block for block in blocks]
    return Table(blocks, offset)


def placed(extents: list[Extent], table: Table) -> Placed:
    return Placed(extents, table)
