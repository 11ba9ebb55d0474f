"""Quantisers of KV in NumPy: the definition that every other implementation gives bit for bit.

1. All numbers are worked on in float32, in the order written here: each operation rounds once, half to even, and none
   is fused with the next.
2. Scales are BF16, rounded up, and lows are BF16, rounded down, so that no number of a group falls out of its range.
   What is divided by is the rounded scale; where that is 0, 1.
3. A group with a NaN, an infinity, or a range beyond float32 is poisoned: its scale is the NaN 0x7FC0, and its codes,
   and its low, are 0. Decoding refuses it.
4. A decoded number beyond the dtype becomes the largest finite one, so that what was finite stays so.

Arrays hold F32 as float32, F16 as float16, and BF16 as its bits in uint16. Their last axes are tokens and channels;
those before are worked through one by one, so that what is between two passes stays in a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ARRAY_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

CHANNEL_GROUP = 128
"""Channels that share a scale in int8 and fp8: a head, or a part of a wide one such as the latent of MLA."""
INT4_GROUP = 64
"""Tokens, or channels, that share a scale and a low in int4."""

_POISON = np.uint16(0x7FC0)
_FP8_MAX = np.float32(448)
_LARGEST = {"F16": np.float32(65504), "BF16": np.uint32(0x7F7F0000).view(np.float32), "F32": np.finfo(np.float32).max}


def groups_of(extent: int, group: int) -> int:
    """How many groups there are along an axis; the last one may be shorter."""
    return -(-extent // group)


def widen(numbers: Array, dtype: str) -> Array:
    """A fresh float32 array of the same numbers."""
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers.astype(np.float32)


def narrow(numbers: Array, dtype: str, out: Array) -> None:
    """Write float32 `numbers`, none of them NaN, in another dtype. They are clamped in place."""
    np.clip(numbers, -_LARGEST[dtype], _LARGEST[dtype], out=numbers)
    if dtype == "BF16":
        bits = numbers.view(np.uint32)
        half = (bits >> np.uint32(16)) & np.uint32(1)
        half += np.uint32(0x7FFF)
        half += bits
        half >>= np.uint32(16)
        np.copyto(out, half, casting="unsafe")
    else:
        np.copyto(out, numbers, casting="unsafe")


def int8_encode(numbers: Array, dtype: str, codes: Array, scales: Array) -> None:
    """Codes from -127 to 127, and the scale of every CHANNEL_GROUP channels.

    numbers: (..., tokens, channels); codes: the same in int8; scales: (..., tokens, groups) in uint16
    """
    for plane in _planes(numbers):
        quotients = _over_scale(numbers[plane], dtype, 127, scales[plane])
        np.rint(quotients, out=quotients)  # from -127 to 127, by 2.
        np.copyto(codes[plane], quotients, casting="unsafe")


def int8_decode(codes: Array, scales: Array, dtype: str, out: Array) -> None:
    """The numbers of `int8_encode`, as far as they are kept. Raises ValueError for a scale that it does not make."""
    for plane in _planes(out):
        numbers = codes[plane].astype(np.float32)
        with np.errstate(over="ignore"):  # it is clamped
            numbers *= _spread(_checked_scales(scales[plane]), codes.shape[-1], CHANNEL_GROUP, -1)
        narrow(numbers, dtype, out[plane])


def fp8_encode(numbers: Array, dtype: str, codes: Array, scales: Array) -> None:
    """As `int8_encode`, with codes in E4M3 (that with NaN and no infinity), in uint8. The sign of a zero is kept."""
    for plane in _planes(numbers):
        codes[plane] = _fp8_codes(_over_scale(numbers[plane], dtype, 448, scales[plane]))


def fp8_decode(codes: Array, scales: Array, dtype: str, out: Array) -> None:
    """The numbers of `fp8_encode`, as far as they are kept. Raises ValueError for a scale or code it does not make."""
    for plane in _planes(out):
        numbers = _FP8_NUMBERS[codes[plane]]
        if np.isnan(numbers).any():
            raise ValueError("a code is NaN")
        with np.errstate(over="ignore"):
            numbers *= _spread(_checked_scales(scales[plane]), codes.shape[-1], CHANNEL_GROUP, -1)
        narrow(numbers, dtype, out[plane])


def int4_encode(numbers: Array, dtype: str, axis: int, codes: Array, scales: Array, lows: Array) -> None:
    """Codes from 0 to 15, and the scale and the low of every INT4_GROUP numbers along an axis.

    numbers:      (..., tokens, channels)
    axis:         -2 for groups of tokens, each channel by itself; -1 for groups of channels
    codes:        (..., tokens, half the channels, rounded up) in uint8, the even channel in the low four bits; where
                  their number is odd, the last high four bits are 0
    scales, lows: as `numbers` in uint16, with groups instead of the axis
    """
    for plane in _planes(numbers):
        _int4_encode(numbers[plane], dtype, axis, codes[plane], scales[plane], lows[plane])


def int4_decode(codes: Array, scales: Array, lows: Array, axis: int, dtype: str, out: Array) -> None:
    """The numbers of `int4_encode`, as far as they are kept. Raises ValueError for what that never makes."""
    for plane in _planes(out):
        _int4_decode(codes[plane], scales[plane], lows[plane], axis, dtype, out[plane])


def copy(numbers: Array, out: Array) -> None:
    """Write the same numbers."""
    np.copyto(out, numbers)


def is_poisoned(scales: Array) -> bool:
    """Whether some group could not be encoded."""
    return bool((scales == _POISON).any())


def _planes(numbers: Array) -> Iterator[tuple[int, ...]]:
    return np.ndindex(numbers.shape[:-2])


def _fp8_codes(quotients: Array) -> Array:
    np.clip(quotients, -_FP8_MAX, _FP8_MAX, out=quotients)
    bits = quotients.view(np.uint32)
    signs = ((bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
    bits &= np.uint32(0x7FFFFFFF)
    # Below 2**-6 the steps are of 2**-9; eight of them are the first normal number, and have its code.
    small = np.rint(quotients * np.float32(512)).astype(np.uint32)
    normal = bits + np.uint32(0x7FFFF)
    normal += (bits >> np.uint32(20)) & np.uint32(1)
    normal >>= np.uint32(20)
    normal -= np.uint32(120 << 3)  # E4M3 has a bias of 7, float32 of 127; wraps where the number is small
    return np.where(bits < np.uint32(121 << 23), small, normal).astype(np.uint8) | signs


def _int4_encode(numbers: Array, dtype: str, axis: int, codes: Array, scales: Array, lows: Array) -> None:
    wide = widen(numbers, dtype)
    extent = wide.shape[axis]
    # A negative zero becomes a zero: a scale has no sign.
    with np.errstate(invalid="ignore"):  # a NaN may be a signalling one
        lowest = _reduced(np.minimum, wide, INT4_GROUP, axis) + np.float32(0)
        highest = _reduced(np.maximum, wide, INT4_GROUP, axis) + np.float32(0)
    bits = lowest.view(np.uint32)
    away = np.where(bits >> np.uint32(31), np.uint32(0xFFFF), np.uint32(0))
    np.copyto(lows, (bits + away) >> np.uint32(16), casting="unsafe")
    with np.errstate(invalid="ignore", over="ignore"):
        low = widen(lows, "BF16")
        np.copyto(scales, _scales_of(highest - low, 15))
    poisoned = scales == _POISON
    lows[poisoned] = 0
    low[poisoned] = 0
    if poisoned.any():
        np.copyto(wide, 0, where=_spread(poisoned, extent, INT4_GROUP, axis))
    wide -= _spread(low, extent, INT4_GROUP, axis)
    wide /= _spread(_divisors(scales), extent, INT4_GROUP, axis)
    np.rint(wide, out=wide)  # from 0 to 15, by 2.
    loose = wide.astype(np.uint8)
    np.copyto(codes, loose[..., ::2])
    codes[..., : loose.shape[-1] // 2] |= loose[..., 1::2] << np.uint8(4)


def _int4_decode(codes: Array, scales: Array, lows: Array, axis: int, dtype: str, out: Array) -> None:
    wide = np.empty(out.shape, np.float32)
    wide[..., ::2] = codes & np.uint8(15)
    wide[..., 1::2] = codes[..., : out.shape[-1] // 2] >> np.uint8(4)
    if out.shape[-1] % 2 and (codes[..., -1] >> np.uint8(4)).any():
        raise ValueError("there are codes of no channel")
    if ((lows & np.uint16(0x7F80)) == np.uint16(0x7F80)).any():
        raise ValueError("a low is not a finite number")
    extent = out.shape[axis]
    with np.errstate(over="ignore"):
        wide *= _spread(_checked_scales(scales), extent, INT4_GROUP, axis)
        wide += _spread(widen(lows, "BF16"), extent, INT4_GROUP, axis)
    narrow(wide, dtype, out)


def _over_scale(numbers: Array, dtype: str, steps: int, scales: Array) -> Array:
    """Every number over the scale of its group, which is written: so that the largest is at most `steps`."""
    wide = widen(numbers, dtype)
    channels = wide.shape[-1]
    np.copyto(scales, _scales_of(_reduced(np.maximum, np.abs(wide), CHANNEL_GROUP, -1), steps))
    poisoned = scales == _POISON
    if poisoned.any():
        np.copyto(wide, 0, where=_spread(poisoned, channels, CHANNEL_GROUP, -1))
    wide /= _spread(_divisors(scales), channels, CHANNEL_GROUP, -1)
    return wide


def _scales_of(ranges: Array, steps: int) -> Array:
    """`ranges` over `steps` in BF16, rounded up; the poison for what is not finite."""
    bits = (ranges / np.float32(steps)).view(np.uint32)
    return np.where(np.isfinite(ranges), (bits + np.uint32(0xFFFF)) >> np.uint32(16), _POISON).astype(np.uint16)


def _divisors(scales: Array) -> Array:
    divisors = widen(scales, "BF16")
    divisors[~(divisors > 0)] = 1
    return divisors


def _checked_scales(scales: Array) -> Array:
    if (scales >= np.uint16(0x7F80)).any():
        raise ValueError("a scale is not a finite number from 0 up")
    return widen(scales, "BF16")


def _reduced(reduce: np.ufunc, numbers: Array, group: int, axis: int) -> Array:
    extent = numbers.shape[axis]
    if extent <= group:
        return np.asarray(reduce.reduce(numbers, axis=axis, keepdims=True))
    if extent % group == 0:
        axis %= numbers.ndim
        groups = numbers.reshape(*numbers.shape[:axis], -1, group, *numbers.shape[axis + 1 :])
        return np.asarray(reduce.reduce(groups, axis=axis + 1))
    return np.asarray(reduce.reduceat(numbers, range(0, extent, group), axis=axis))


def _spread(values: Array, extent: int, group: int, axis: int) -> Array:
    """A value a group as one that broadcasts over the numbers of the groups."""
    if values.shape[axis] == 1:
        return values
    spread = np.repeat(values, group, axis)
    return spread if spread.shape[axis] == extent else spread.take(range(extent), axis)


def _fp8_numbers() -> Array:
    codes = np.arange(256, dtype=np.int32)
    exponents, mantissas = (codes >> 3) & 15, codes & 7
    magnitudes = np.where(exponents, np.ldexp(1 + mantissas / 8, exponents - 7), np.ldexp(mantissas / 8, -6))
    magnitudes[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -magnitudes, magnitudes).astype(np.float32)


_FP8_NUMBERS = _fp8_numbers()
"""Of every E4M3 code."""
