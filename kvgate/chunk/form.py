"""In which tensors a chunk's KV is kept: that of every codec, known to whoever checks a chunk and decodes nothing.

1. `raw` is the one tensor `kv`, as `Layout` says.
2. A lossy codec's tensors follow from the layout alone, and all begin with the axes layers and heads. So raw chunks and
   these have slices: a layer range is one run of each tensor, a head range a regular stride.
3. A lossless codec makes each layer a block of fewer bytes: `kv_nbytes`, U64, says how many, and `kv` holds them one
   after the other. A chunk is kept so only where that makes it smaller, which is how one knows that it has no slices.
4. Tensors lie in the order given here, those with larger elements first, so that every one is aligned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from kvgate import plugins
from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.layout import Layout, Runs, Strided
from kvgate.chunk.safetensors import Header, TensorInfo
from kvgate.errors import ConfigError, InvalidChunk, LayoutError

RAW = "raw"
KV_TENSOR = "kv"
BLOCK_NBYTES_TENSOR = "kv_nbytes"

LOSSLESS_GROUP = "kvgate.codecs"
LOSSY_GROUP = "kvgate.lossy_codecs"
"""The entry-point groups of codecs. See kvgate.codec.base and kvgate.codec.lossy."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The dtype and shape of a tensor. `heads_axis`: which axis its heads are, the first one being the layers."""

    dtype: str
    shape: tuple[int, ...]
    heads_axis: int = 1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


class Form(Protocol):
    """What a lossy codec says of its chunks."""

    def tensors(self, layout: Layout) -> Mapping[str, Tensor]:
        """Its tensors by name, in the order of the file. Raises LayoutError for KV that it does not keep."""


class Stored:
    """The tensors of a chunk that all chunks of a space have in common, and where they lie.

    layout:  of the KV itself
    nbytes:  of all tensors, without the header
    tensors: by name, in the order of the file
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        self.layout = layout
        self._tensors = tensors
        placed: dict[str, TensorInfo] = {}
        position = 0
        for name, tensor in tensors.items():
            placed[name] = TensorInfo(tensor.dtype, tensor.shape, position, position + tensor.nbytes)
            position += tensor.nbytes
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(placed)
        self.nbytes = position

    def slices(self, layers: range, heads: range) -> Runs:
        """The runs of some layers and heads of every tensor, one tensor after the other.

        Raises LayoutError for an empty range, a step other than 1, or one outside the layout.
        """
        self.layout.check_slice(layers, heads)
        starts = (info.start for info in self.tensors.values())
        return Runs(
            tuple(
                _slice(tensor, start, layers, heads)
                for tensor, start in zip(self._tensors.values(), starts, strict=True)
            )
        )


def stored_form(codec: str, layout: Layout) -> Stored:
    """How the chunks of a space are kept. Raises LayoutError for a codec that is not known, or not for this layout."""
    if codec == RAW:
        return Stored(layout, {KV_TENSOR: Tensor(layout.dtype, layout.shape, heads_axis=2)})
    try:
        form: Form = plugins.load(LOSSY_GROUP, codec)()
    except ConfigError:
        known = ", ".join([RAW, *plugins.names(LOSSY_GROUP)])
        raise LayoutError(f"there is no lossy codec {codec[:64]!r}; known: {known}") from None
    return Stored(layout, form.tensors(layout))


def check_stored(body: Header, stored: Stored) -> None:
    """Accept a file of exactly these tensors. Raises InvalidChunk."""
    if body.tensors.keys() != stored.tensors.keys():
        raise InvalidChunk(
            f"chunks of this space hold the tensors {_names(stored.tensors)}, this one: {_names(body.tensors)}"
        )
    for name, expected in stored.tensors.items():
        found = body.tensors[name]
        if found != expected:
            raise InvalidChunk(
                f"tensor {name!r} is {found.dtype} {list(found.shape)} at byte {found.start}, "
                f"chunks of this space are {expected.dtype} {list(expected.shape)} at byte {expected.start}"
            )


@functools.cache
def lossless_codecs() -> frozenset[str]:
    """The names of those that are installed."""
    return frozenset(plugins.names(LOSSLESS_GROUP))


def blocks_tensors(layout: Layout, nbytes: int) -> Mapping[str, TensorInfo]:
    """The tensors of a chunk whose blocks have `nbytes` bytes in all. Raises InvalidChunk where raw KV has no more."""
    sizes_nbytes = layout.layers * ITEMSIZE["U64"]
    if sizes_nbytes + nbytes >= layout.nbytes:
        raise InvalidChunk(f"{sizes_nbytes + nbytes} bytes in blocks, {layout.nbytes} as raw KV: it is kept raw then")
    return {
        BLOCK_NBYTES_TENSOR: TensorInfo("U64", (layout.layers,), 0, sizes_nbytes),
        KV_TENSOR: TensorInfo("U8", (nbytes,), sizes_nbytes, sizes_nbytes + nbytes),
    }


def check_blocks(body: Header, layout: Layout) -> None:
    """Accept a file of a lossless codec's tensors; the blocks are not looked at. Raises InvalidChunk."""
    nbytes = body.nbytes - body.data_start - layout.layers * ITEMSIZE["U64"]
    if nbytes < 0 or body.tensors != blocks_tensors(layout, nbytes):
        raise InvalidChunk(
            f"a chunk in blocks holds {BLOCK_NBYTES_TENSOR}, U64 [{layout.layers}], and then {KV_TENSOR}, U8, "
            f"this one: {_names(body.tensors)}"
        )


def _slice(tensor: Tensor, start: int, layers: range, heads: range) -> Strided:
    planes = math.prod(tensor.shape[1 : tensor.heads_axis])
    layer_nbytes, kv_heads = tensor.nbytes // tensor.shape[0], tensor.shape[tensor.heads_axis]
    return Strided.of_heads(start, layer_nbytes, planes, kv_heads, layers, heads)


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(sorted(name[:32] for name in tensors)[:8]) or "none"
