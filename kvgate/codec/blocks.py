"""A layer of KV as a block of a lossless codec, and back: the codec's own bytes, made with NumPy where that is faster.

Where high and low bytes are split, NumPy puts them together in half the time, and without the GIL: an engine's other
threads go on meanwhile. No gateway imports this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvgate.codec.base import Codec
from kvgate.codec.split import Split

Array = npt.NDArray[Any]


def encode_block(codec: Codec, layer: Array) -> bytes:
    """What `codec.encode` makes of these bytes. layer: (n,) uint8"""
    if not isinstance(codec, Split):
        return codec.encode(layer.tobytes())
    pairs = _pairs(layer)
    low = pairs.astype(np.uint8).tobytes() + layer[2 * len(pairs) :].tobytes()
    return codec.high.encode((pairs >> 8).astype(np.uint8).tobytes()) + low


def decode_block(codec: Codec, block: bytes, out: Array) -> None:
    """Fill `out`, (n,) uint8, with what `codec.decode` makes of a block of n bytes. Raises ValueError as it does."""
    if not isinstance(codec, Split):
        out[:] = np.frombuffer(codec.decode(block, len(out)), np.uint8)
        return
    pairs, encoded = _pairs(out), np.frombuffer(block, np.uint8)
    high_nbytes = len(block) - (len(out) - len(pairs))
    if high_nbytes < 0:
        raise ValueError("it is shorter than its low bytes")
    low = encoded[high_nbytes:]
    pairs[:] = np.frombuffer(codec.high.decode(block[:high_nbytes], len(pairs)), np.uint8)
    pairs <<= 8
    pairs |= low[: len(pairs)]
    out[2 * len(pairs) :] = low[len(pairs) :]


def _pairs(layer: Array) -> Array:
    """Its numbers of two bytes; a last byte alone is in none."""
    return layer[: len(layer) // 2 * 2].view("<u2")
