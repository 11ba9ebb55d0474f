"""The quantisers of kvgate.kernels.quantise in torch: the same bits, in fewer passes and on torch's threads.

Takes and fills the same NumPy arrays, without copying them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kvgate.kernels.quantise import CHANNEL_GROUP, INT4_GROUP, Array, copy

__all__ = ["copy", "fp8_decode", "fp8_encode", "int4_decode", "int4_encode", "int8_decode", "int8_encode"]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_POISON = 0x7FC0


def int8_encode(numbers: Array, dtype: str, codes: Array, scales: Array) -> None:
    """See kvgate.kernels.quantise."""
    torch.from_numpy(codes).copy_(_over_scale(numbers, dtype, 127, scales).round_())


def int8_decode(codes: Array, scales: Array, dtype: str, out: Array) -> None:
    """See kvgate.kernels.quantise."""
    numbers = _readable(codes).float()
    _narrow(numbers.mul_(_spread(_checked_scales(scales), codes.shape[-1], CHANNEL_GROUP, -1)), dtype, out)


def fp8_encode(numbers: Array, dtype: str, codes: Array, scales: Array) -> None:
    """See kvgate.kernels.quantise."""
    quotients = _over_scale(numbers, dtype, 448, scales).clamp_(-448, 448)
    torch.from_numpy(codes).copy_(quotients.to(torch.float8_e4m3fn).view(torch.uint8))


def fp8_decode(codes: Array, scales: Array, dtype: str, out: Array) -> None:
    """See kvgate.kernels.quantise."""
    numbers = _readable(codes).view(torch.float8_e4m3fn).float()
    if numbers.isnan().any():
        raise ValueError("a code is NaN")
    _narrow(numbers.mul_(_spread(_checked_scales(scales), codes.shape[-1], CHANNEL_GROUP, -1)), dtype, out)


def int4_encode(numbers: Array, dtype: str, axis: int, codes: Array, scales: Array, lows: Array) -> None:
    """See kvgate.kernels.quantise."""
    wide = _widen(numbers, dtype)
    extent = wide.shape[axis]
    lowest, highest = (_reduced(reduce, wide, INT4_GROUP, axis) + 0.0 for reduce in (torch.amin, torch.amax))
    bits = lowest.view(torch.int32)
    low_bits = (bits + ((bits >> 31) & 0xFFFF)) >> 16
    low = (low_bits << 16).view(torch.float32)
    scale_bits = _scales_of(highest - low, 15)
    poisoned = scale_bits == _POISON
    low_bits[poisoned], low[poisoned] = 0, 0
    _write(lows, low_bits)
    _write(scales, scale_bits)
    wide.masked_fill_(_spread(poisoned, extent, INT4_GROUP, axis), 0)
    wide.sub_(_spread(low, extent, INT4_GROUP, axis)).div_(_spread(_divisors(scale_bits), extent, INT4_GROUP, axis))
    loose = wide.round_().to(torch.uint8)
    packed = torch.from_numpy(codes)
    packed.copy_(loose[..., ::2])
    packed[..., : loose.shape[-1] // 2] |= loose[..., 1::2] << 4


def int4_decode(codes: Array, scales: Array, lows: Array, axis: int, dtype: str, out: Array) -> None:
    """See kvgate.kernels.quantise."""
    packed = _readable(codes)
    wide = torch.empty(out.shape)
    wide[..., ::2] = packed & 15
    wide[..., 1::2] = packed[..., : out.shape[-1] // 2] >> 4
    if out.shape[-1] % 2 and (packed[..., -1] >> 4).any():
        raise ValueError("there are codes of no channel")
    low = _of_bf16(lows)
    if not low.isfinite().all():
        raise ValueError("a low is not a finite number")
    extent = out.shape[axis]
    wide.mul_(_spread(_checked_scales(scales), extent, INT4_GROUP, axis))
    _narrow(wide.add_(_spread(low, extent, INT4_GROUP, axis)), dtype, out)


def _tensor(array: Array, dtype: str) -> Any:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if dtype == "BF16" else torch.from_numpy(array)


def _writable(array: Array) -> Array:
    return array if array.flags.writeable else array.copy()  # torch has no tensors that are read-only


def _readable(array: Array) -> Any:
    return torch.from_numpy(_writable(array))


def _widen(numbers: Array, dtype: str) -> Any:
    return _tensor(_writable(numbers), dtype).to(torch.float32, copy=True)


def _narrow(numbers: Any, dtype: str, out: Array) -> None:
    largest = torch.finfo(_DTYPES[dtype]).max
    _tensor(out, dtype).copy_(numbers.clamp_(-largest, largest))


def _of_bf16(bits: Array) -> Any:
    return _tensor(_writable(bits), "BF16").float()


def _write(out: Array, bits: Any) -> None:
    """Write the low 16 bits."""
    torch.from_numpy(out.view(np.int16)).copy_(bits)


def _over_scale(numbers: Array, dtype: str, steps: int, scales: Array) -> Any:
    wide = _widen(numbers, dtype)
    channels = wide.shape[-1]
    bits = _scales_of(_reduced(torch.amax, wide.abs(), CHANNEL_GROUP, -1), steps)
    _write(scales, bits)
    poisoned = bits == _POISON
    if poisoned.any():
        wide.masked_fill_(_spread(poisoned, channels, CHANNEL_GROUP, -1), 0)
    return wide.div_(_spread(_divisors(bits), channels, CHANNEL_GROUP, -1))


def _scales_of(ranges: Any, steps: int) -> Any:
    bits = ((ranges / steps).view(torch.int32) + 0xFFFF) >> 16
    return torch.where(ranges.isfinite(), bits, _POISON)


def _divisors(scale_bits: Any) -> Any:
    divisors = (scale_bits << 16).view(torch.float32)
    return torch.where(divisors > 0, divisors, 1.0)


def _checked_scales(scales: Array) -> Any:
    if (scales >= np.uint16(0x7F80)).any():
        raise ValueError("a scale is not a finite number from 0 up")
    return _of_bf16(scales)


def _reduced(reduce: Callable[..., Any], numbers: Any, group: int, axis: int) -> Any:
    """A value for each group along a negative axis, the last of which may be shorter."""
    extent = numbers.shape[axis]
    whole = extent - extent % group
    groups = numbers.narrow(axis, 0, whole).unflatten(axis, (-1, group))
    parts = [reduce(groups, dim=axis)] if whole else []
    if whole < extent:
        parts.append(reduce(numbers.narrow(axis, whole, extent - whole), dim=axis, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _spread(values: Any, extent: int, group: int, axis: int) -> Any:
    if values.shape[axis] == 1:
        return values
    return values.repeat_interleave(group, axis).narrow(axis, 0, extent)
