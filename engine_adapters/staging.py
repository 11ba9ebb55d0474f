"""Chunks out of an engine's pages, and into them: plan once, then execute.

`plan` compares a chunk's layout with the pages of the layers that this rank holds, once, when the engine hands its
memory out, and joins layers that lie at equal distances in one allocation, as they do in vLLM: one copy reaches them
all. A Plan then copies whole batches, a few copies a chunk.

Bytes are moved, nothing is converted. A Plan has no state, so threads may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine_adapters.layouts import DTYPES, Pages
from engine_adapters.paged_copy import SKIP, HostCopy, PagedCopy, PageTable, TorchCopy
from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError, LayoutMismatch

Blocks = Any
"""Block ids: an integer tensor (chunks, blocks_per_chunk), or lists of lists. SKIP is one that scatter leaves alone."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """Layers that one strided copy can reach.

    first:  index of the first of them in the plan's pages
    part:   index of its first part
    count:  how many they are
    memory: (pages, layers, parts, heads, page_tokens, bytes of head_dim), the engine's own memory
    """

    first: int
    part: int
    count: int
    memory: Any


class Plan:
    """How chunks of one layout, or a rank's slice of them, lie in one engine's pages. Made by `plan`.

    slice_nbytes:     bytes of kv[layers, :, heads] in C order: what a chunk is for this rank
    blocks_per_chunk: blocks that hold a chunk's tokens
    blocks:           ids are below it
    packing:          of all pages; chunks are interchangeable only between equal packings
    """

    def __init__(self, layout: Layout, pages: Sequence[Pages], copy: PagedCopy) -> None:
        first = pages[0]
        self._shape = (len(pages), first.parts, first.kv_heads, layout.tokens, first.head_dim * layout.itemsize)
        self._pages_per_block = first.pages_per_block
        self._page_tokens = first.page_tokens
        self._copy = copy
        self._stacks = [replace(stack, memory=copy.view(stack.memory)) for stack in _stacks(pages)]
        self.device = first.device
        self.packing = first.packing
        self.blocks = min(each.blocks for each in pages)
        self.blocks_per_chunk = layout.tokens // first.block_tokens
        self.layers, parts, heads, tokens, row = self._shape
        self.slice_nbytes = self.layers * parts * heads * tokens * row

    def gather(self, blocks: Blocks, out: Any, layers: range | None = None) -> None:
        """Copy chunks out of the engine's pages.

        blocks: which ids hold each chunk, in the order of its tokens; a block may be in several chunks
        out:    uint8 (chunks, slice_nbytes) on the device of the pages; rows are contiguous, and may lie apart
        layers: a range of indices into the plan's pages; only their bytes of `out` are written. All of them by default.
        Raises LayoutError, and then nothing has been written.
        """
        ids = self._ids(blocks)
        wanted = self._wanted(layers)
        self._check_rows("out", out, len(ids))
        _check_range(ids, 0, self.blocks)
        self._move(self._copy.gather, ids, out, wanted)

    def scatter(self, blocks: Blocks, source: Any, layers: range | None = None) -> None:
        """Copy chunks into the engine's pages.

        blocks: which ids shall hold each chunk, in the order of its tokens, each id once at most; -1 leaves out what
                the chunk has for that block
        source: as `out` of gather
        layers: as in gather; only these layers are written
        Raises LayoutError, and then nothing has been written.
        """
        ids = self._ids(blocks)
        wanted = self._wanted(layers)
        self._check_rows("source", source, len(ids))
        _check_range(ids, SKIP, self.blocks)
        _check_unique(ids)
        self._move(self._copy.scatter, ids, source, wanted)

    def _move(self, move: Callable[[Any, Any, PageTable], None], ids: Any, rows: Any, wanted: range) -> None:
        table = PageTable.of(self._pages(ids))
        whole = self._copy.view(self._paged(rows))
        for stack in self._stacks:
            layers = range(max(wanted.start, stack.first), min(wanted.stop, stack.first + stack.count))
            if layers:
                memory = stack.memory[:, layers.start - stack.first : layers.stop - stack.first]
                parts = slice(stack.part, stack.part + memory.shape[2])
                move(memory, whole[:, :, layers.start : layers.stop, parts], table)

    def _paged(self, rows: Any) -> Any:
        """Rows as (chunks, pages, layers, parts, heads, page_tokens, bytes of head_dim)."""
        layers, parts, heads, tokens, nbytes = self._shape
        head_nbytes = tokens * nbytes
        part_nbytes = heads * head_nbytes
        page_nbytes = self._page_tokens * nbytes
        shape = (len(rows), tokens // self._page_tokens, layers, parts, heads, self._page_tokens, nbytes)
        strides = (rows.stride(0), page_nbytes, parts * part_nbytes, part_nbytes, head_nbytes, nbytes, 1)
        return rows.as_strided(shape, strides)

    def _ids(self, blocks: Blocks) -> Any:
        """(chunks, blocks_per_chunk) int64 on the CPU."""
        try:
            ids = torch.as_tensor(blocks, device="cpu")
        except (TypeError, ValueError) as error:
            raise LayoutError(f"blocks must be rows of {self.blocks_per_chunk} ids: {error}") from error
        if ids.numel() == 0 and ids.dim() < 2:
            return torch.empty((0, self.blocks_per_chunk), dtype=torch.int64)
        if ids.dim() != 2 or ids.shape[1] != self.blocks_per_chunk:
            raise LayoutError(f"blocks must be (chunks, {self.blocks_per_chunk}), got {list(ids.shape)}")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise LayoutError(f"blocks must be integers, got {ids.dtype}")
        return ids.to(torch.int64)

    def _pages(self, ids: Any) -> Any:
        """(chunks, pages a chunk): the pages of each block, SKIP for those of a block that is skipped."""
        if self._pages_per_block == 1:
            return ids
        pages = ids.unsqueeze(2) * self._pages_per_block + torch.arange(self._pages_per_block)
        return pages.masked_fill(ids.unsqueeze(2) == SKIP, SKIP).flatten(1)

    def _wanted(self, layers: range | None) -> range:
        if layers is None:
            return range(self.layers)
        if layers.step != 1 or not 0 <= layers.start < layers.stop <= self.layers:
            raise LayoutError(f"layers {layers.start}:{layers.stop} are not a non-empty range within 0:{self.layers}")
        return layers

    def _check_rows(self, what: str, rows: Any, count: int) -> None:
        if rows.dtype != torch.uint8 or tuple(rows.shape) != (count, self.slice_nbytes):
            raise LayoutError(
                f"{what} must be uint8 ({count}, {self.slice_nbytes}), got {rows.dtype} {tuple(rows.shape)}"
            )
        if rows.device != self.device:
            raise LayoutError(f"{what} is on {rows.device}, and the pages are on {self.device}")
        if rows.stride(1) != 1 or (count > 1 and rows.stride(0) < self.slice_nbytes):
            raise LayoutError(f"rows of {what} must be contiguous and apart, got strides {rows.stride()}")


def plan(layout: Layout, pages: Sequence[Pages], heads: range | None = None, *, copy: PagedCopy | None = None) -> Plan:
    """How chunks of `layout` lie in `pages`.

    layout: of the whole chunk, whatever of it this rank has
    pages:  the layers that this rank holds, in the model's order
    heads:  which of the model's KV heads they have; all by default
    copy:   what copies; by default what fits the device of the pages
    Raises LayoutMismatch that names both sides.
    """
    if not pages:
        raise LayoutMismatch("this rank holds no layer")
    if len(pages) > layout.layers:
        raise LayoutMismatch(f"the engine has {len(pages)} layers, a chunk {layout.layers}")
    held = range(layout.kv_heads) if heads is None else heads
    if held.step != 1 or not 0 <= held.start < held.stop <= layout.kv_heads:
        raise LayoutMismatch(f"heads {held.start}:{held.stop} are not among the {layout.kv_heads} of a chunk")
    first = pages[0]
    for index, each in enumerate(pages):
        for name, found, expected in (
            ("parts", each.parts, layout.parts),
            ("heads", each.kv_heads, len(held)),
            ("elements a head", each.head_dim, layout.head_dim),
        ):
            if found != expected:
                raise LayoutMismatch(f"layer {index}: the engine has {found} {name}, the chunk's slice {expected}")
        if each.dtype not in DTYPES.get(layout.dtype, ()):
            raise LayoutMismatch(f"layer {index}: the engine has {each.dtype}, a chunk {layout.dtype}")
        if layout.tokens % each.block_tokens:
            raise LayoutMismatch(
                f"layer {index}: blocks of {each.block_tokens} tokens do not divide a chunk of {layout.tokens}"
            )
        for name in ("page_tokens", "pages_per_block", "packing", "device"):
            if getattr(each, name) != getattr(first, name):
                raise LayoutMismatch(
                    f"layer {index} has {name} {getattr(each, name)}, layer 0 has {getattr(first, name)}"
                )
    addresses = {each.views[0].data_ptr(): index for index, each in enumerate(pages)}
    for index, each in enumerate(pages):
        if addresses[each.views[0].data_ptr()] != index:
            raise LayoutMismatch(f"layers {index} and {addresses[each.views[0].data_ptr()]} are the same memory")
    return Plan(layout, pages, copy or (HostCopy() if first.device.type == "cpu" else TorchCopy()))


def _stacks(pages: Sequence[Pages]) -> list[_Stack]:
    layers = [[view.view(torch.uint8) for view in each.views] for each in pages]
    joined = [_joined(views) for views in layers]
    if all(each is not None for each in joined):
        return _joined_layers(joined, 0)
    parts = [[views[part].unsqueeze(0) for views in layers] for part in range(pages[0].parts)]
    return [stack for part, tensors in enumerate(parts) for stack in _joined_layers(tensors, part)]


def _joined_layers(layers: list[Any], part: int) -> list[_Stack]:
    """As few stacks as hold the layers, each (parts, pages, heads, page_tokens, bytes)."""
    stacks = []
    first = 0
    while first < len(layers):
        memory, stop = layers[first].unsqueeze(0), first + 1
        while stop < len(layers) and (more := _joined(layers[first : stop + 1])) is not None:
            memory, stop = more, stop + 1
        stacks.append(_Stack(first, part, stop - first, memory.movedim(2, 0)))
        first = stop
    return stacks


def _joined(tensors: Sequence[Any]) -> Any | None:
    """The tensors as one with an axis before theirs, where they lie at equal distances in one allocation; else None."""
    first = tensors[0]
    if any(
        (each.shape, each.stride(), each.untyped_storage().data_ptr())
        != (first.shape, first.stride(), first.untyped_storage().data_ptr())
        for each in tensors
    ):
        return None
    offsets = [each.storage_offset() for each in tensors]
    step = offsets[1] - offsets[0] if len(offsets) > 1 else 1
    if step <= 0 or any(offset != offsets[0] + index * step for index, offset in enumerate(offsets)):
        return None
    return first.as_strided((len(tensors), *first.shape), (step, *first.stride()), offsets[0])


def _check_range(ids: Any, least: int, limit: int) -> None:
    if ids.numel() and not (least <= int(ids.min()) and int(ids.max()) < limit):
        outside = ids[(ids < least) | (ids >= limit)]
        raise LayoutError(f"block {int(outside[0])} is not among the engine's {limit}")


def _check_unique(ids: Any) -> None:
    kept = ids[ids != SKIP].sort().values
    if bool((kept[1:] == kept[:-1]).any()):
        twice = kept[1:][kept[1:] == kept[:-1]]
        raise LayoutError(f"block {int(twice[0])} is to be written twice")
