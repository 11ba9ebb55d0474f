"""Which memory of an engine's worker holds which blocks, and whether a peer's fits ours.

A cache group has its own block table; block i of a group is the i-th part of each of its regions. Two workers fit when
everything that gives the bytes of a block their meaning is equal. Where they lie, and how many there are, may differ.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine_adapters.nixl.errors import MalformedMessage, PeerRefused

HOST = -1
"""The `device` of regions in host memory."""

MAX_GROUPS, MAX_REGIONS, MAX_BLOCKS = 64, 4096, 1 << 24
_MAX_ADDRESS = 1 << 63
_MAX_NAME = 256
_SPACE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of one layer, or of one part of it: block i is `block_nbytes` bytes at `base + i * stride`.

    device: index of the GPU, HOST for host memory
    """

    name: str
    base: int
    block_nbytes: int
    stride: int
    blocks: int
    device: int = HOST

    @property
    def span_nbytes(self) -> int:
        """Bytes from the start of the first block to the end of the last one."""
        return (self.blocks - 1) * self.stride + self.block_nbytes


@dataclass(frozen=True, slots=True)
class Group:
    """Regions that share one block table.

    space:   hex id of the space of its KV
    packing: the order of the bytes in a block, in the engine's words
    heads:   the KV heads held, first and last + 1
    """

    space: str
    dtype: str
    packing: str
    block_tokens: int
    heads: tuple[int, int]
    regions: tuple[Region, ...]

    @property
    def blocks(self) -> int:
        return self.regions[0].blocks

    @property
    def block_nbytes(self) -> int:
        """Bytes of one block in all regions."""
        return sum(region.block_nbytes for region in self.regions)


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of a request in one group: `ids[i]` is its block `first + i`, counted from its first token."""

    first: int
    ids: tuple[int, ...]

    def part(self, first: int, count: int) -> tuple[int, ...] | None:
        """The ids of `count` blocks from the request's block `first`; None when some are not in this run."""
        start = first - self.first
        return self.ids[start : start + count] if start >= 0 and start + count <= len(self.ids) else None


@dataclass(frozen=True, slots=True)
class Layout:
    """All memory of one worker that others may write to.

    rank, ranks: which of how many tensor-parallel workers this is
    Raises ValueError for a layout that no worker can have.
    """

    rank: int
    ranks: int
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise ValueError(f"a layout has 1 to {MAX_GROUPS} groups, got {len(self.groups)}")
        if not all(group.regions for group in self.groups) or len(list(self.regions())) > MAX_REGIONS:
            raise ValueError(f"a layout has 1 to {MAX_REGIONS} regions, and at least one in each group")
        for group in self.groups:
            _check_group(group)
        if len({region.device == HOST for region in self.regions()}) > 1:
            raise ValueError("regions in host memory beside regions on a GPU")

    def regions(self) -> Iterator[Region]:
        """The regions of all groups, in order."""
        for group in self.groups:
            yield from group.regions

    @property
    def on_host(self) -> bool:
        return self.groups[0].regions[0].device == HOST

    def rows(self) -> Any:
        """The regions as NIXL's strided descriptors (address, length, device, stride, count), [regions, 5] uint64."""
        return np.array(
            [[r.base, r.block_nbytes, max(r.device, 0), r.stride, r.blocks] for r in self.regions()], dtype=np.uint64
        )

    def spans(self) -> list[tuple[int, int, int]]:
        """The memory of all regions as (address, length, device), overlapping and adjoining regions as one."""
        spans: list[tuple[int, int, int]] = []
        for device, base, nbytes in sorted((max(r.device, 0), r.base, r.span_nbytes) for r in self.regions()):
            if spans and spans[-1][2] == device and base <= sum(spans[-1][:2]):
                start, length, _ = spans[-1]
                spans[-1] = (start, max(length, base + nbytes - start), device)
            else:
                spans.append((base, nbytes, device))
        return spans

    def descriptors(self, blocks: Sequence[Sequence[int]]) -> Any:
        """The descriptors of one transfer among all those of `rows`, (n,) int32.

        blocks: block ids for each group. The order is region after region, the same for every layout that fits.
        """
        picked, start = [np.empty(0, dtype=np.int32)], 0
        for group, ids in zip(self.groups, blocks, strict=True):
            of_group = np.array(ids, dtype=np.int32)
            for region in group.regions:
                picked.append(of_group + np.int32(start))
                start += region.blocks
        return np.concatenate(picked)

    def nbytes(self, blocks: Sequence[Sequence[int]]) -> int:
        """The bytes that a transfer of these blocks moves."""
        return sum(group.block_nbytes * len(ids) for group, ids in zip(self.groups, blocks, strict=True))

    def check_blocks(self, blocks: Sequence[Sequence[int]]) -> None:
        """Raises ValueError for ids that are not of blocks of this layout, or that come twice in a group."""
        if len(blocks) != len(self.groups):
            raise ValueError(f"blocks of {len(blocks)} groups, there are {len(self.groups)}")
        for number, (group, ids) in enumerate(zip(self.groups, blocks, strict=True)):
            if any(not 0 <= block < group.blocks for block in ids):
                raise ValueError(f"group {number} has the blocks 0 to {group.blocks - 1}")
            if len(set(ids)) != len(ids):
                raise ValueError(f"a block of group {number} comes twice")

    def as_wire(self) -> list[Any]:
        """Plain values for `from_wire`."""
        return [self.rank, self.ranks, [_group_as_wire(group) for group in self.groups]]


class HostBlocks:
    """The bytes of blocks in host memory, as views. The caller sees to it that the memory is there."""

    def __init__(self, layout: Layout) -> None:
        self._groups = [
            [(region, memoryview((ctypes.c_ubyte * region.span_nbytes).from_address(region.base)).cast("B"))
             for region in group.regions]
            for group in layout.groups
        ]  # fmt: skip

    def views(self, group: int, block: int) -> Iterator[memoryview]:
        """One view for each region of the group, in order."""
        for region, span in self._groups[group]:
            start = block * region.stride
            yield span[start : start + region.block_nbytes]


def from_wire(value: object) -> Layout:
    """A peer's layout. Raises MalformedMessage."""
    try:
        return _layout_from_wire(value)
    except (TypeError, ValueError) as error:
        raise MalformedMessage(f"a layout that cannot be: {error}") from None


def require_fit(ours: Layout, theirs: Layout) -> None:
    """Raises PeerRefused naming the first field that differs, and both values."""
    _same("the number of tensor-parallel ranks", ours.ranks, theirs.ranks)
    _same("the rank", ours.rank, theirs.rank)
    _same("the number of cache groups", len(ours.groups), len(theirs.groups))
    for number, (our, their) in enumerate(zip(ours.groups, theirs.groups, strict=True)):
        where = f"of group {number}"
        _same(f"the space {where}", our.space, their.space)
        _same(f"the dtype {where}", our.dtype, their.dtype)
        _same(f"the packing {where}", our.packing, their.packing)
        _same(f"the tokens of a block {where}", our.block_tokens, their.block_tokens)
        _same(f"the heads {where}", our.heads, their.heads)
        _same(f"the number of layers' regions {where}", len(our.regions), len(their.regions))
        for our_region, their_region in zip(our.regions, their.regions, strict=True):
            _same(f"the order of layers {where}", our_region.name, their_region.name)
            _same(f"the bytes of a block of {our_region.name}", our_region.block_nbytes, their_region.block_nbytes)


def _same(field: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise PeerRefused(f"{field} differs: {ours!r} here, {theirs!r} there")


def _check_group(group: Group) -> None:
    if not _SPACE.fullmatch(group.space):
        raise ValueError("a space is 64 lower-case hex digits")
    if max(len(group.dtype), len(group.packing)) > _MAX_NAME:
        raise ValueError(f"a dtype or packing of more than {_MAX_NAME} characters")
    if group.block_tokens < 1 or not 0 <= group.heads[0] < group.heads[1]:
        raise ValueError(f"blocks of {group.block_tokens} tokens and the heads {group.heads}")
    if len({region.blocks for region in group.regions}) > 1:
        raise ValueError("the regions of a group have different numbers of blocks")
    for region in group.regions:
        if not region.name or len(region.name) > _MAX_NAME:
            raise ValueError(f"a region's name has 1 to {_MAX_NAME} characters")
        if not 1 <= region.blocks <= MAX_BLOCKS or not 1 <= region.block_nbytes <= region.stride < _MAX_ADDRESS:
            raise ValueError(f"{region.blocks} blocks of {region.block_nbytes} bytes, {region.stride} bytes apart")
        if region.base < 1 or region.device < HOST or region.base + region.span_nbytes > _MAX_ADDRESS:
            raise ValueError("a region outside the address space")


def _group_as_wire(group: Group) -> list[Any]:
    regions = [[r.name, r.base, r.block_nbytes, r.stride, r.blocks, r.device] for r in group.regions]
    return [group.space, group.dtype, group.packing, group.block_tokens, list(group.heads), regions]


def _layout_from_wire(value: Any) -> Layout:
    rank, ranks, groups = value
    return Layout(_count(rank), _count(ranks), tuple(_group_from_wire(group) for group in groups))


def _group_from_wire(value: Any) -> Group:
    space, dtype, packing, block_tokens, (first_head, stop_head), regions = value
    return Group(
        _text(space),
        _text(dtype),
        _text(packing),
        _count(block_tokens),
        (_count(first_head), _count(stop_head)),
        tuple(
            Region(_text(name), _count(base), _count(block_nbytes), _count(stride), _count(blocks), _count(device))
            for name, base, block_nbytes, stride, blocks, device in regions
        ),
    )


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
