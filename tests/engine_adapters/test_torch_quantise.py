"""torch's quantisers against NumPy's, which define them: every bit."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine_adapters import torch_quantise
from kvgate.kernels import quantise
from kvgate.kernels.quantise import ARRAY_DTYPES, Array, groups_of

WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
SHAPES = [(2, 64, 64), (1, 1, 1), (3, 70, 7), (2, 130, 136), (1, 16, 576)]

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", ARRAY_DTYPES)


def numbers(shape: tuple[int, ...], dtype: str, kind: str) -> Array:
    """Any bits at all; or finite ones, with zeros of both signs, groups of nothing else, and subnormal numbers."""
    generator = np.random.default_rng(sum(shape))
    if kind == "any bits":
        return generator.integers(0, 2 ** (8 * WORDS[dtype]().itemsize), shape, WORDS[dtype]).view(ARRAY_DTYPES[dtype])
    kv = generator.standard_normal(shape).astype(np.float32) * 10.0 ** generator.integers(-44, 5, shape)
    kv = kv.astype(np.float32)
    kv[0, 0], kv[-1, :, -1], kv[:, -1, ::3] = -0.0, -0.0, 0.0
    out = np.empty(shape, ARRAY_DTYPES[dtype])
    quantise.narrow(kv, dtype, out)
    return out


def same(one: Array, other: Array) -> None:
    np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@each_shape
@each_dtype
@pytest.mark.parametrize("kind", ["any bits", "finite"])
@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_codes_and_scales_are_the_same_both_ways(shape, dtype: str, kind: str, codec: str) -> None:
    given = numbers(shape, dtype, kind)
    given.flags.writeable = False
    made = []
    for module in (quantise, torch_quantise):
        codes = np.empty(shape, np.int8 if codec == "int8" else np.uint8)
        scales = np.empty((*shape[:-1], groups_of(shape[-1], quantise.CHANNEL_GROUP)), np.uint16)
        with np.errstate(all="ignore"):
            getattr(module, f"{codec}_encode")(given, dtype, codes, scales)
        made.append((codes, scales))
    for one, other in zip(*made, strict=True):
        same(one, other)
    codes, scales = made[0]
    scales[scales >= 0x7F80] = 0x7F00  # the largest numbers, which are clamped
    outs = [np.empty(shape, ARRAY_DTYPES[dtype]) for _ in made]
    for module, out in zip((quantise, torch_quantise), outs, strict=True):
        getattr(module, f"{codec}_decode")(codes, scales, dtype, out)
    same(*outs)


@each_shape
@each_dtype
@pytest.mark.parametrize("kind", ["any bits", "finite"])
@pytest.mark.parametrize("axis", [-1, -2])
def test_four_bits_are_the_same_both_ways(shape, dtype: str, kind: str, axis: int) -> None:
    given = numbers(shape, dtype, kind)
    groups = list(shape)
    groups[axis] = groups_of(shape[axis], quantise.INT4_GROUP)
    made = []
    for module in (quantise, torch_quantise):
        codes = np.empty((*shape[:-1], groups_of(shape[-1], 2)), np.uint8)
        scales, lows = np.empty(groups, np.uint16), np.empty(groups, np.uint16)
        module.int4_encode(given, dtype, axis, codes, scales, lows)
        made.append((codes, scales, lows))
    for one, other in zip(*made, strict=True):
        same(one, other)
    codes, scales, lows = made[0]
    scales[scales >= 0x7F80] = 0x7F00
    outs = [np.empty(shape, ARRAY_DTYPES[dtype]) for _ in made]
    for module, out in zip((quantise, torch_quantise), outs, strict=True):
        module.int4_decode(codes, scales, lows, axis, dtype, out)
    same(*outs)


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x8000, 0xFFFF])
def test_what_is_never_written_is_refused_here_too(scale: int) -> None:
    codes, out = np.zeros((1, 4), np.uint8), np.empty((1, 4), np.float32)
    scales, low = np.full((1, 1), scale, np.uint16), np.zeros((1, 1), np.uint16)
    with pytest.raises(ValueError, match="scale"):
        torch_quantise.int8_decode(codes.view(np.int8), scales, "F32", out)
    with pytest.raises(ValueError, match="scale"):
        torch_quantise.fp8_decode(codes, scales, "F32", out)
    with pytest.raises(ValueError, match="scale"):
        torch_quantise.int4_decode(codes[:, :2], scales, low, -1, "F32", out)
    with pytest.raises(ValueError, match="NaN"):
        torch_quantise.fp8_decode(codes | np.uint8(0x7F), low, "F32", out)
    with pytest.raises(ValueError, match="low"):
        torch_quantise.int4_decode(codes[:, :2], low, low | np.uint16(0x7F80), -1, "F32", out)
    with pytest.raises(ValueError, match="no channel"):
        torch_quantise.int4_decode(codes[:, :2] | np.uint8(0xF0), low, low, -1, "F32", out[:, :3])
