"""Where the bytes of an engine's paged KV lie, in the terms that every kernel takes: addresses and strides in bytes.

A row is the head_dim elements of one token, head and part. Every affine layout is a base for each layer and part and
four strides, whether K and V share a tensor, heads come before tokens or after them, rows are padded, or a row is split
into units that lie apart (the K cache of paged attention v1). Mirrors csrc/pages.cuh.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvgate.chunk.layout import ByteRange, Layout
from kvgate.errors import LayoutError
from kvgate.kernels.divider import LIMIT, Divider

WIDEST_ACCESS = 16
"""Bytes that one access moves at the most."""


class PagesArgument(ctypes.Structure):
    """`struct Pages`."""

    _fields_ = (
        ("bases", ctypes.c_uint64),
        ("tables", ctypes.c_uint64),
        ("block_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("unit_stride", ctypes.c_int64),
        ("table_width", ctypes.c_uint32),
        ("first_layer", ctypes.c_uint32),
        ("first_head", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("unit", Divider),
        ("block_tokens", Divider),
    )


class ChunkShape(ctypes.Structure):
    """`struct ChunkShape`."""

    _fields_ = (("row", Divider), ("tokens", Divider), ("heads", Divider), ("parts", Divider))


@dataclass(frozen=True, slots=True)
class Pages:
    """The paged KV of some layers and heads, as one worker of an engine holds it. Addresses and strides are bytes.

    bases:      address of the first block, one a layer and part: (layer 0, K), (layer 0, V), (layer 1, K), …
    blocks:     how many there are: an id outside is refused
    unit_nbytes, unit_stride: the units of a row and how far apart they begin; one unit where unit_nbytes == row_nbytes
    Raises LayoutError for what no kernel can address.
    """

    bases: tuple[int, ...]
    parts: int
    heads: int
    blocks: int
    block_tokens: int
    row_nbytes: int
    block_stride: int
    head_stride: int
    token_stride: int
    unit_nbytes: int = 0
    unit_stride: int = 0

    def __post_init__(self) -> None:
        if not self.unit_nbytes:
            object.__setattr__(self, "unit_nbytes", self.row_nbytes)
        counts = (self.parts, self.heads, self.blocks, self.block_tokens, self.row_nbytes, self.unit_nbytes)
        if not all(1 <= count < LIMIT for count in counts):
            raise LayoutError(f"pages whose counts are not all from 1 to {LIMIT - 1}: {counts}")
        if self.row_nbytes % self.unit_nbytes:
            raise LayoutError(f"a row of {self.row_nbytes} bytes is not whole units of {self.unit_nbytes}")
        if not self.bases or len(self.bases) % self.parts:
            raise LayoutError(f"{len(self.bases)} base addresses for {self.parts} parts a layer")
        if 0 in self.bases:
            raise LayoutError("a layer without memory: its address is 0")

    @property
    def layers(self) -> int:
        return len(self.bases) // self.parts

    def of_part(self, part: int) -> Pages:
        """The same pages with one part only: K is 0, V is 1."""
        return replace(self, bases=self.bases[part :: self.parts], parts=1)

    def of_layers(self, layers: range) -> Pages:
        """The same pages with these layers only, counted from 0 here."""
        return replace(self, bases=self.bases[layers.start * self.parts : layers.stop * self.parts])

    def access_nbytes(self, more: Iterable[int] = ()) -> int:
        """The widest access, a power of two, that is aligned everywhere: here, and at the addresses in `more`."""
        return widest_access((*self.bases, *self._strides(), *more))

    def _strides(self) -> tuple[int, ...]:
        unit_stride = self.unit_stride if self.unit_nbytes != self.row_nbytes else 0
        return (self.block_stride, self.head_stride, self.token_stride, unit_stride, self.unit_nbytes)

    def argument(self, access_nbytes: int, table_width: int, first_layer: int, first_head: int) -> PagesArgument:
        """The struct, still without the addresses of its tables."""
        return PagesArgument(
            block_stride=self.block_stride,
            head_stride=self.head_stride,
            token_stride=self.token_stride,
            unit_stride=self.unit_stride,
            table_width=table_width,
            first_layer=first_layer,
            first_head=first_head,
            unit=Divider.by(self.unit_nbytes // access_nbytes),
            block_tokens=Divider.by(self.block_tokens),
        )


def widest_access(numbers: Iterable[int]) -> int:
    """The largest power of two up to WIDEST_ACCESS that divides all numbers."""
    return math.gcd(WIDEST_ACCESS, *numbers)


@dataclass(frozen=True, slots=True)
class Table:
    """Which blocks of the pages the tokens of one chunk lie in.

    blocks: of each run of block_tokens tokens, in order; a negative id leaves its tokens out
    offset: the place of the chunk's first token in the first block, less than block_tokens
    """

    blocks: Sequence[int]
    offset: int = 0


def packed_tables(tables: Sequence[Table], pages: Pages, tokens: int) -> tuple[array[int], int]:
    """All tables as lines of one array, and how long a line is. Raises LayoutError for one that is not of the pages.

    tokens: of a chunk
    """
    width = max((needed_blocks(table, pages.block_tokens, tokens) for table in tables), default=1)
    packed = array("i")
    for table in tables:
        if not 0 <= table.offset < pages.block_tokens:
            raise LayoutError(f"token {table.offset} of a block that has {pages.block_tokens}")
        needed = needed_blocks(table, pages.block_tokens, tokens)
        if len(table.blocks) != needed:
            raise LayoutError(f"{len(table.blocks)} blocks for {tokens} tokens, expected {needed}")
        if max(table.blocks) >= pages.blocks:
            raise LayoutError(f"block {max(table.blocks)} of pages that have {pages.blocks}")
        packed.extend(block if block >= 0 else -1 for block in table.blocks)
        packed.extend([-1] * (width - needed))
    return packed, width


def needed_blocks(table: Table, block_tokens: int, tokens: int) -> int:
    """How many blocks the table of a chunk of `tokens` tokens names."""
    return -(-(table.offset + tokens) // block_tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor [layers, parts, heads, tokens, row]: a chunk's KV, or one part of it as some codecs keep it."""

    layers: int
    parts: int
    heads: int
    tokens: int
    row_nbytes: int

    @classmethod
    def of(cls, layout: Layout) -> Rows:
        """Those of a chunk's KV."""
        row_nbytes = layout.head_dim * layout.itemsize
        return cls(layout.layers, layout.parts, layout.kv_heads, layout.tokens, row_nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.layers * self.parts * self.heads * self.tokens * self.row_nbytes

    def runs(self, layers: range, heads: range) -> Iterator[ByteRange]:
        """The runs that hold these layers and heads, ascending. Raises LayoutError outside the tensor."""
        for what, wanted, count in (("layers", layers, self.layers), ("heads", heads, self.heads)):
            if wanted.step != 1 or not 0 <= wanted.start < wanted.stop <= count:
                raise LayoutError(f"{what} {wanted.start}:{wanted.stop} are not a range within 0:{count}")
        head_nbytes = self.tokens * self.row_nbytes
        part_nbytes = self.heads * head_nbytes
        if len(heads) == self.heads:
            layer_nbytes = self.parts * part_nbytes
            yield ByteRange(layers.start * layer_nbytes, layers.stop * layer_nbytes)
            return
        for part in range(layers.start * self.parts, layers.stop * self.parts):
            first = part * part_nbytes
            yield ByteRange(first + heads.start * head_nbytes, first + heads.stop * head_nbytes)


def check_chunk(rows: Rows, pages: Pages, layers: range, heads: range) -> None:
    """Accept pages that hold `layers` and `heads` of such chunks. Raises LayoutError saying what differs."""
    expected = {
        "parts": (rows.parts, pages.parts),
        "bytes a row": (rows.row_nbytes, pages.row_nbytes),
        "layers": (len(layers), pages.layers),
        "heads": (len(heads), pages.heads),
    }
    for what, (ours, theirs) in expected.items():
        if ours != theirs:
            raise LayoutError(f"the chunk has {ours} {what}, the pages have {theirs}")


def chunk_shape(rows: Rows, access_nbytes: int) -> ChunkShape:
    """`struct ChunkShape` of such chunks. Raises LayoutError where one has too many accesses to count."""
    if rows.nbytes // access_nbytes >= LIMIT:
        raise LayoutError(f"a chunk of {rows.nbytes} bytes moved {access_nbytes} at a time: too many to count")
    row = rows.row_nbytes // access_nbytes
    return ChunkShape(*(Divider.by(count) for count in (row, rows.tokens, rows.heads, rows.parts)))
