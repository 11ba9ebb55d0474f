"""Where each layer and head of a chunk's KV lies.

The tensor `kv` is C-contiguous, `kv[layers, 2, kv_heads, tokens, head_dim]` with K before V, or for MLA
`kv[layers, 1, 1, tokens, latent_dim]`. A layer range is therefore one run of bytes, and a head range a regular stride.

Every offset here counts from the first byte of the tensor. In a chunk object that is byte `DATA_START`, and `in_file()`
makes the shift.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvgate.chunk.dtype import ITEMSIZE
from kvgate.errors import LayoutError

DATA_START = 4096
"""Offset of the tensor data in a chunk object: one page, so that O_DIRECT, GDS and DMA can use it as it lies."""

_MAX_NBYTES = 2**63 - 1
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def in_file(self) -> ByteRange:
        """The same bytes, counted from the start of the chunk object instead of its tensor."""
        return ByteRange(self.start + DATA_START, self.stop + DATA_START)


@dataclass(frozen=True, slots=True)
class Strided:
    """`count` runs of `run_nbytes` bytes; run i begins at `start + i * stride`. In order they are the whole slice."""

    start: int
    run_nbytes: int
    stride: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.run_nbytes * self.count

    def runs(self) -> Iterator[ByteRange]:
        """Each run as a byte range, in the order of the slice."""
        for index in range(self.count):
            start = self.start + index * self.stride
            yield ByteRange(start, start + self.run_nbytes)

    @property
    def stop(self) -> int:
        """Where the last run ends."""
        return self.start + (self.count - 1) * self.stride + self.run_nbytes

    def in_file(self) -> Strided:
        """The same runs, counted from the start of the chunk object instead of its tensor."""
        return Strided(self.start + DATA_START, self.run_nbytes, self.stride, self.count)

    @classmethod
    def of_heads(
        cls, start: int, layer_nbytes: int, planes: int, kv_heads: int, layers: range, heads: range
    ) -> Strided:
        """The runs of some layers and heads of a tensor `[layers, planes, kv_heads, …]` that begins at `start`.

        One run a layer and plane; all heads of adjoining layers are a single run.
        """
        plane_nbytes = layer_nbytes // planes
        head_nbytes = plane_nbytes // kv_heads
        start += layers.start * layer_nbytes + heads.start * head_nbytes
        count = len(layers) * planes
        if len(heads) == kv_heads:
            return cls(start, count * plane_nbytes, count * plane_nbytes, 1)
        return cls(start, len(heads) * head_nbytes, plane_nbytes, count)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one tensor after the other, each tensor's beyond those before. In order they are the whole slice."""

    tensors: tuple[Strided, ...]

    @property
    def nbytes(self) -> int:
        return sum(strided.nbytes for strided in self.tensors)

    @property
    def start(self) -> int:
        return self.tensors[0].start

    @property
    def stop(self) -> int:
        """Where the last run ends."""
        return self.tensors[-1].stop

    def runs(self) -> Iterator[ByteRange]:
        """Each run as a byte range, in the order of the slice."""
        for strided in self.tensors:
            yield from strided.runs()

    def in_file(self) -> Runs:
        """The same runs, counted from the start of the chunk object instead of its data."""
        return Runs(tuple(strided.in_file() for strided in self.tensors))


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape and dtype of a chunk's KV.

    parts:    2 (K, then V), or 1 for the latent of MLA
    head_dim: elements a head and token; the latent dimension for MLA
    Raises LayoutError for a layout that no chunk can have.
    """

    layers: int
    parts: int
    kv_heads: int
    tokens: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        for name, value in zip(("layers", "parts", "kv_heads", "tokens", "head_dim"), self.shape, strict=True):
            if type(value) is not int or value < 1:
                raise LayoutError(f"{name} must be a positive integer, got {value!r}")
        if self.parts > 2:
            raise LayoutError(f"parts must be 2 (K and V) or 1 (MLA), got {self.parts}")
        if self.parts == 1 and self.kv_heads != 1:
            raise LayoutError(f"an MLA layout has one head, got kv_heads={self.kv_heads}")
        if self.dtype not in ITEMSIZE:
            raise LayoutError(f"unknown dtype {self.dtype!r}; known: {', '.join(ITEMSIZE)}")
        if self.nbytes > _MAX_NBYTES:
            raise LayoutError(f"a chunk of {self.nbytes} bytes is more than any store can hold")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.layers, self.parts, self.kv_heads, self.tokens, self.head_dim)

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without the header."""
        return math.prod(self.shape) * self.itemsize

    def layer_range(self, first: int, last_exclusive: int) -> ByteRange:
        """The one run that holds the layers first … last_exclusive - 1.

        Raises LayoutError for an empty range or one outside the layout.
        """
        layers = _bounded("layers", range(first, last_exclusive), self.layers)
        layer_nbytes = self.nbytes // self.layers
        return ByteRange(layers.start * layer_nbytes, layers.stop * layer_nbytes)

    def head_slices(self, layers: range, heads: range) -> Strided:
        """The runs whose concatenation is `kv[layers, :, heads]` in C order.

        One run a layer and part; all heads of adjoining layers are a single run.
        Raises LayoutError for an empty range, a step other than 1, or one outside the layout.
        """
        self.check_slice(layers, heads)
        return Strided.of_heads(0, self.nbytes // self.layers, self.parts, self.kv_heads, layers, heads)

    def check_slice(self, layers: range, heads: range) -> None:
        """Accept ranges that are not empty, without steps, and within the layout. Raises LayoutError."""
        _bounded("layers", layers, self.layers)
        _bounded("heads", heads, self.kv_heads)


def parse_range(text: str, limit: int) -> range:
    """The range that ``0-15`` (inclusive, as in an HTTP range) or a single ``7`` names, each index below `limit`.

    Raises LayoutError saying what is accepted.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise LayoutError(f"expected a range such as 0-{limit - 1} or an index such as 0, got {text[:64]!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < limit:
        raise LayoutError(f"the range {text} is not within 0-{limit - 1}")
    return range(first, last + 1)


def _bounded(what: str, indices: range, limit: int) -> range:
    if indices.step != 1 or not 0 <= indices.start < indices.stop <= limit:
        raise LayoutError(f"{what} {indices.start}:{indices.stop} are not a non-empty range within 0:{limit}")
    return indices
