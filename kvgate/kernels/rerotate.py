"""Keys that RoPE has rotated for one position, as they are at another: the definition, in NumPy, and its tables.

1. Rotations add up: what moves a key by some positions is the rotation of that distance, the same for every position. A
   factor that scaling puts on keys (YaRN) is there already and stays.
2. A pair (a, b) becomes (a cos - b sin, b cos + a sin) in float32: four products, a difference and a sum, each rounded
   once, none fused. Then it is rounded to the dtype. Channels that are not rotated keep their bits.
3. The tables are worked out from the frequencies in float64 and rounded once, so that a far move is as exact as a near
   one. Frequencies are float32, as models have them.

A key that is moved is that of the same hidden state at another position. In every layer but the first, the state itself
depends on what came before, which no rotation changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvgate.errors import LayoutError, UnsupportedModel
from kvgate.kernels.quantise import Array, narrow, widen


@dataclass(frozen=True, slots=True)
class Rotation:
    """What moves keys by some positions.

    cosines, sines: float32, one a pair of channels
    first:          the first channel that is rotated; twice as many as there are pairs are
    interleaved:    whether a pair is two channels that follow one another, as in GPT-J; else the halves are paired, as
                    in GPT-NeoX and Llama
    """

    cosines: Array
    sines: Array
    first: int = 0
    interleaved: bool = False


def frequencies(rope: Mapping[str, Any], head_dim: int) -> Array:
    """Radians a position of every pair of channels, float32: (rotated channels / 2,).

    rope:     as a space's manifest has it, in the names of transformers: `rope_type` `default`, `linear`, `llama3` or
              `yarn`; `partial_rotary_factor` says how much of a head is rotated
    head_dim: for the latent of MLA, that of its rotated part
    Raises UnsupportedModel for a type whose frequencies depend on the length of the sequence, and for a missing field.
    """
    kind = rope.get("rope_type", "default")
    try:
        channels = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
        periods = np.float32(rope["rope_theta"]) ** exponents
        plain = np.float32(1) / periods
        if kind == "default":
            return plain
        if kind == "linear":
            return np.asarray(plain / np.float32(rope["factor"]))
        if kind == "llama3":
            return _llama3(plain, rope)
        if kind == "yarn":
            return _yarn(plain, periods, channels, rope)
    except KeyError as error:
        raise UnsupportedModel(f"rope of type {kind} without {error}") from None
    raise UnsupportedModel(
        f"keys of rope_type {str(kind)[:64]!r} cannot be moved; known: default, linear, llama3, yarn"
    )


def rotation(frequencies: Array, shift: int, *, first: int = 0, interleaved: bool = False) -> Rotation:
    """What moves keys by `shift` positions, forward or back. See Rotation."""
    angles = frequencies.astype(np.float64) * shift
    return Rotation(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), first, interleaved)


def rerotate(keys: Array, dtype: str, move: Rotation, out: Array) -> None:
    """Write the keys as they are at another position.

    keys, out: (..., channels) in `dtype`, see kvgate.kernels.quantise; they may be the same array
    NaN and infinities do not stay what they are.
    """
    pairs = len(move.cosines)
    last = move.first + 2 * pairs
    if last > keys.shape[-1]:
        raise LayoutError(f"channels {move.first} to {last} are rotated, and a head has {keys.shape[-1]}")
    if move.interleaved:
        halves = slice(move.first, last, 2), slice(move.first + 1, last, 2)
    else:
        halves = slice(move.first, move.first + pairs), slice(move.first + pairs, last)
    a, b = (widen(keys[..., half], dtype) for half in halves)
    if out is not keys:
        np.copyto(out, keys)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow(a * move.cosines - b * move.sines, dtype, out[..., halves[0]])
        narrow(b * move.cosines + a * move.sines, dtype, out[..., halves[1]])


def _llama3(plain: Array, rope: Mapping[str, Any]) -> Array:
    factor, length = np.float32(rope["factor"]), rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = np.float32(2 * math.pi) / plain
    smooth = (np.float32(length) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    slowed = np.where(wavelengths > length / low, plain / factor, between)
    return np.where(wavelengths < length / high, plain, slowed).astype(np.float32)


def _yarn(plain: Array, periods: Array, channels: int, rope: Mapping[str, Any]) -> Array:
    length = rope["original_max_position_embeddings"]
    factor = rope["factor"] if rope["factor"] is not None else rope["max_position_embeddings"] / length

    def channel_of(rotations: float) -> float:
        """Which pair turns this often within the original length."""
        turns = math.log(length / (rotations * 2 * math.pi))
        return float(channels * turns / (2 * math.log(rope["rope_theta"])))

    low, high = channel_of(rope.get("beta_fast") or 32), channel_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(channels // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1)
    slowed = np.float32(1) / (np.float32(factor) * periods)
    return np.asarray(slowed * (1 - kept) + plain * kept, np.float32)
