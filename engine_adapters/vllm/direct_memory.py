"""Where the blocks of vLLM's pages lie, for direct transfers: as few contiguous runs a block as there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from engine_adapters.layouts import Pages
from engine_adapters.nixl.layout import HOST, Group, Layout, Region
from kvgate.errors import ConfigError, LayoutMismatch

if TYPE_CHECKING:
    from engine_adapters.vllm import space


def direct_layout(
    groups: Sequence[space.Group], pages: Sequence[Sequence[Pages]], heads: range, rank: int, ranks: int
) -> Layout:
    """The blocks of one worker.

    pages: of each group, of each of its layers; heads: those that the worker holds
    Raises ConfigError for pages that cannot be handed over.
    """
    try:
        told = [_group(group, layers, heads) for group, layers in zip(groups, pages, strict=True)]
        return Layout(rank, ranks, tuple(told))
    except (ValueError, LayoutMismatch) as error:
        raise ConfigError(f"direct: the memory of this engine cannot be handed over: {error}") from error


def _group(group: space.Group, layers: Sequence[Pages], heads: range) -> Group:
    regions: list[Region] = []
    orders = set()
    for name, each in zip(group.layer_names, layers, strict=True):
        found, order = _regions(name, each)
        regions += found
        orders.add(order)
    if len(orders) > 1:
        raise LayoutMismatch("its layers have different orders of bytes")
    packing = f"{group.space.packing}: {orders.pop()}"
    return Group(
        group.space.id, group.space.dtype, packing, group.block_tokens, (heads.start, heads.stop), tuple(regions)
    )


def _regions(name: str, pages: Pages) -> tuple[list[Region], str]:
    """The runs of a layer's blocks, and in words how the bytes in a block follow each other."""
    first = pages.views[0]
    itemsize = first.element_size()
    between_parts = pages.views[-1].data_ptr() - first.data_ptr()
    page, head, token, element = (stride * itemsize for stride in first.stride())
    axes = [
        ("part", pages.parts, between_parts),
        ("page", pages.pages_per_block, page),
        ("head", pages.kv_heads, head),
        ("token", pages.page_tokens, token),
        ("element", pages.head_dim, element),
    ]
    if between_parts < 0:
        raise LayoutMismatch("V lies before K")
    axes = sorted((axis for axis in axes if axis[1] > 1), key=lambda axis: axis[2])
    run, inner = itemsize, 0
    while inner < len(axes) and axes[inner][2] == run:
        run *= axes[inner][1]
        inner += 1
    outer = axes[inner:]
    device = HOST if first.device.type == "cpu" else int(first.device.index)
    order = " ".join(f"{count} {what}" for what, count, _ in reversed(axes)) + f", runs of {run} bytes"
    offsets = [
        sum(at * stride for at, (_, _, stride) in zip(place, outer, strict=True))
        for place in product(*(range(count) for _, count, _ in outer))
    ]
    stride = page * pages.pages_per_block
    if run > stride:
        raise LayoutMismatch("the bytes of different blocks lie between each other")
    return [
        Region(f"{name}.{number}", first.data_ptr() + offset, run, stride, pages.blocks, device)
        for number, offset in enumerate(offsets)
    ], order
