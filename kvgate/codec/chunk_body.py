"""KV to the bytes of a chunk object, and back, in the form that its space asks for.

1. What is decoded is what was encoded, or within the error that the codec bounds. What cannot have been encoded is an
   error; nothing is read beyond a tensor, and no more is allocated than the KV of a few layers has.
2. A slice of a chunk, as a gateway sends and takes it, is the form of a smaller layout: the same functions serve both.
3. A chunk is in blocks of a lossless codec only where that makes it smaller.

KV is the bytes of kv[layers, parts, kv_heads, tokens, head_dim] in its dtype, C-contiguous. No gateway imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvgate.chunk.form import BLOCK_NBYTES_TENSOR, KV_TENSOR, RAW, stored_form
from kvgate.chunk.header import ChunkHeader, check_tensors
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.chunk.safetensors import TensorInfo, decode_header
from kvgate.chunk.space import Space
from kvgate.codec.blocks import decode_block, encode_block
from kvgate.codec.installed import codec_named
from kvgate.codec.lossy import Quantisers, lossy_codec
from kvgate.errors import InvalidChunk, LayoutError, NotFinite
from kvgate.kernels import quantise

Buffer = bytes | bytearray | memoryview

ARRAY_DTYPES: Mapping[str, npt.DTypeLike] = quantise.ARRAY_DTYPES | {
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
}
"""How numbers lie in arrays, by the dtype of their tensor."""


def max_body_nbytes(space: Space) -> int:
    """Bytes of a chunk object of the space; one in blocks of a lossless codec has fewer."""
    return DATA_START + space.stored.nbytes


def encode_kv(
    space: Space, kv: Buffer, data: Buffer, layout: Layout | None = None, *, quantisers: Quantisers = quantise
) -> None:
    """Write KV in the form of its space.

    kv:     layout.nbytes bytes
    data:   as many bytes as that form of the layout has: what follows the header of a chunk, or a slice of that
    layout: of a slice; by default the whole chunk's
    quantisers: of another array library, which give the same bits
    Raises NotFinite where a codec cannot keep a NaN or an infinity, LayoutError for buffers of another size.
    """
    layout = layout or space.layout
    stored = stored_form(space.codec, layout)
    target, numbers = _array(data, stored.nbytes), _kv(kv, layout)
    if space.codec == RAW:
        target[:] = _array(kv, layout.nbytes)
        return
    codec = lossy_codec(space.codec)
    tensors = _tensors(target, stored.tensors)
    for layer in range(layout.layers):
        codec.encode(numbers[layer], layout.dtype, {name: each[layer] for name, each in tensors.items()}, quantisers)
    if any(quantise.is_poisoned(scales) for name, scales in tensors.items() if name.endswith("_scale")):
        raise NotFinite(f"KV with NaN or infinities is not kept by {space.codec}")


def decode_kv(
    space: Space, data: Buffer, kv: Buffer, layout: Layout | None = None, *, quantisers: Quantisers = quantise
) -> None:
    """Fill `kv` from what `encode_kv` has written. Raises InvalidChunk, LayoutError for buffers of another size."""
    layout = layout or space.layout
    stored = stored_form(space.codec, layout)
    source, out = _array(data, stored.nbytes), _kv(kv, layout)
    if space.codec == RAW:
        _array(kv, layout.nbytes)[:] = source
        return
    codec = lossy_codec(space.codec)
    tensors = _tensors(source, stored.tensors)
    for layer in range(layout.layers):
        try:
            codec.decode({name: each[layer] for name, each in tensors.items()}, layout.dtype, out[layer], quantisers)
        except ValueError as error:
            raise InvalidChunk(f"layer {layer} of {space.codec}: {error}") from error


def encode_body(
    space: Space,
    chunk_hash: bytes,
    parent: bytes,
    first_token: int,
    kv: Buffer,
    *,
    lossless: str = RAW,
    quantisers: Quantisers = quantise,
) -> Sequence[Buffer]:
    """A whole chunk object, in pieces that follow one another.

    chunk_hash, parent, first_token: see ChunkHeader.encode
    kv:       space.layout.nbytes bytes, which the pieces may be views of
    lossless: a codec that makes raw KV smaller, where it does; for a space without a lossy codec
    Raises what `encode_kv` raises, and ConfigError for a codec that is not installed.
    """
    if space.codec != RAW:
        data = bytearray(space.stored.nbytes)
        encode_kv(space, kv, data, quantisers=quantisers)
        return [ChunkHeader.encode(space, chunk_hash, parent, first_token), data]
    raw = _array(kv, space.layout.nbytes)
    if lossless != RAW:
        blocks = _blocks(raw, space.layout, lossless)
        nbytes = [len(block) for block in blocks]
        if 8 * len(blocks) + sum(nbytes) < space.layout.nbytes:
            header = ChunkHeader.encode(space, chunk_hash, parent, first_token, blocks=(lossless, sum(nbytes)))
            return [header, np.array(nbytes, "<u8").tobytes(), *blocks]
    return [ChunkHeader.encode(space, chunk_hash, parent, first_token), raw.data]


def decode_body(space: Space, body: Buffer, kv: Buffer, *, quantisers: Quantisers = quantise) -> None:
    """Fill `kv`, space.layout.nbytes bytes, from a whole chunk object in whatever form a chunk of the space may have.

    Whether it is the right chunk is for `check_chunk`. Raises InvalidChunk, and ConfigError for a codec that is not
    installed; then `kv` holds anything.
    """
    view = memoryview(body).cast("B")
    codec, sizes = _blocks_of(space, view)
    if codec == space.codec:
        decode_kv(space, view[DATA_START:], kv, quantisers=quantisers)
        return
    _array(kv, space.layout.nbytes)
    _decode_layers(space.layout, codec, sizes, view[len(view) - sum(sizes) :], memoryview(kv).cast("B"))


def decode_in_place(space: Space, buffer: memoryview, nbytes: int) -> None:
    """Turn a whole chunk object into KV where it lies: `buffer[DATA_START:]`.

    space:  a raw one
    buffer: max_body_nbytes(space) bytes, writable, of which the first `nbytes` are the object
    Needs memory for three layers. Raises as `decode_body`; then `buffer` holds anything.
    """
    codec, sizes = _blocks_of(space, buffer[:nbytes])
    if codec != RAW:
        # From the end of the buffer no block is reached before it is read: none is longer than its layer.
        start = len(buffer) - sum(sizes)
        buffer[start:] = buffer[nbytes - sum(sizes) : nbytes]
        _decode_layers(space.layout, codec, sizes, buffer[start:], buffer[DATA_START:])


def decode_slice(space: Space, body: Buffer, data: Buffer, layers: range, heads: range) -> None:
    """Fill `data` with `kv[layers, :, heads]`, in C order, from a whole chunk object.

    space: a raw one; in blocks or not, of a chunk's layers only these are read
    Raises as `decode_body`; then `data` holds anything.
    """
    view, layout = memoryview(body).cast("B"), space.layout
    layout.check_slice(layers, heads)
    codec, sizes = _blocks_of(space, view)
    planes = (layout.parts, layout.kv_heads, layout.tokens * layout.head_dim * layout.itemsize)
    part = replace(layout, layers=len(layers), kv_heads=len(heads))
    out = _array(data, part.nbytes).reshape(part.layers, part.parts, part.kv_heads, -1)
    layer_nbytes = layout.nbytes // layout.layers
    if codec == RAW:
        sizes = [layer_nbytes] * layout.layers
    whole = np.empty(layer_nbytes, np.uint8)
    position = len(view) - sum(sizes[layers.start :])
    for index, layer in enumerate(layers):
        _decode(codec, layer, view[position : position + sizes[layer]], whole)
        out[index] = whole.reshape(planes)[:, heads.start : heads.stop]
        position += sizes[layer]


def _blocks_of(space: Space, view: memoryview) -> tuple[str, list[int]]:
    """The codec of a whole chunk object, and the bytes of each layer's block, all of which end with the object.

    Raises InvalidChunk. No block is longer than its layer; there are none where the codec is the space's own.
    """
    header = decode_header(view, len(view))
    codec = header.metadata.get("codec", "")
    check_tensors(header, codec, space)
    if codec == space.codec:
        return codec, []
    table, blocks = header.tensors[BLOCK_NBYTES_TENSOR], header.tensors[KV_TENSOR]
    sizes = _array(view[DATA_START : DATA_START + table.stop], table.stop).view("<u8").tolist()
    if sum(sizes) != blocks.stop - blocks.start:
        raise InvalidChunk(f"its blocks have {sum(sizes)} bytes in all, and {blocks.stop - blocks.start} are there")
    if max(sizes) > space.layout.nbytes // space.layout.layers:
        raise InvalidChunk(f"a block of {max(sizes)} bytes is longer than its layer")
    return codec, sizes


def _decode_layers(layout: Layout, codec: str, sizes: Sequence[int], blocks: memoryview, out: memoryview) -> None:
    layer_nbytes, position = layout.nbytes // layout.layers, 0
    layers = _array(out, layout.nbytes)
    for layer, nbytes in enumerate(sizes):
        into = layers[layer * layer_nbytes : (layer + 1) * layer_nbytes]
        _decode(codec, layer, blocks[position : position + nbytes], into)
        position += nbytes


def _decode(codec: str, layer: int, block: memoryview, out: quantise.Array) -> None:
    """Fill `out` with a layer from its block; one of that many bytes is the layer itself. Raises InvalidChunk.

    `out` may lie over the block: it is copied first.
    """
    if len(block) == len(out):
        out[:] = _array(block, len(out))
        return
    try:
        decode_block(codec_named(codec), bytes(block), out)
    except ValueError as error:
        raise InvalidChunk(f"layer {layer} of {codec}: {error}") from error


def _blocks(raw: quantise.Array, layout: Layout, name: str) -> list[Buffer]:
    codec, layer_nbytes = codec_named(name), layout.nbytes // layout.layers
    blocks: list[Buffer] = []
    for start in range(0, len(raw), layer_nbytes):
        layer = raw[start : start + layer_nbytes]
        encoded = encode_block(codec, layer)
        blocks.append(encoded if len(encoded) < layer_nbytes else layer.tobytes())
    return blocks


def _array(buffer: Buffer, nbytes: int) -> quantise.Array:
    array = np.frombuffer(buffer, np.uint8)
    if len(array) != nbytes:
        raise LayoutError(f"a buffer of {len(array)} bytes, where {nbytes} are meant")
    return array


def _kv(kv: Buffer, layout: Layout) -> quantise.Array:
    return _array(kv, layout.nbytes).view(ARRAY_DTYPES.get(layout.dtype, np.uint8)).reshape(layout.shape)


def _tensors(data: quantise.Array, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return {
        name: data[info.start : info.stop].view(ARRAY_DTYPES[info.dtype]).reshape(info.shape)
        for name, info in tensors.items()
    }
