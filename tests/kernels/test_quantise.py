"""The quantisers: golden bits, which other implementations and later versions give too."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kvgate.kernels import quantise

torch = pytest.importorskip("torch")


def e4m3(numbers: np.ndarray) -> np.ndarray:
    """What torch makes of them."""
    tensor = torch.from_numpy(numbers).clamp(-448, 448).to(torch.float8_e4m3fn)
    return tensor.view(torch.uint8).numpy()


def with_unit_scale(numbers: np.ndarray) -> np.ndarray:
    """Rows of one number and 448, whose scale is therefore 1."""
    rows = np.stack([numbers, np.full_like(numbers, 448)], -1)
    codes, scales = np.empty(rows.shape, np.uint8), np.empty((len(rows), 1), np.uint16)
    quantise.fp8_encode(rows, "F32", codes, scales)
    assert set(scales.ravel().tolist()) == {0x3F80}
    return codes[:, 0]


def test_fp8_codes_are_those_of_torch_for_every_half_precision_number_in_range() -> None:
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    numbers = numbers[np.abs(numbers) <= 448]
    np.testing.assert_array_equal(with_unit_scale(numbers), e4m3(numbers))


def test_fp8_codes_are_those_of_torch_around_every_tie() -> None:
    exact = np.sort(torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy())
    ties = (exact[1:] + exact[:-1]) / 2
    numbers = np.concatenate(
        [side(ties) for side in (np.array, lambda t: np.nextafter(t, 0), lambda t: np.nextafter(t, 449))]
    )
    numbers = np.concatenate([numbers, -numbers, exact, -exact]).astype(np.float32)
    np.testing.assert_array_equal(with_unit_scale(numbers), e4m3(numbers))


def test_fp8_numbers_are_those_of_torch() -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)[:, None]
    out = np.empty(codes.shape, np.float32)
    quantise.fp8_decode(codes, np.full((254, 1), 0x3F80, np.uint16), "F32", out)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_narrowing_is_that_of_torch(dtype: str) -> None:
    kind = {"BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    largest = torch.finfo(kind).max
    expected = torch.from_numpy(numbers).clamp(-largest, largest).to(kind)
    out = np.empty(numbers.shape, quantise.ARRAY_DTYPES[dtype])
    quantise.narrow(numbers.copy(), dtype, out)
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(quantise.widen(out, dtype), expected.float().numpy())


def test_scales_are_the_least_bf16_that_is_not_too_small() -> None:
    generator = np.random.default_rng(0)
    largest = np.exp(generator.uniform(-60, 60, (5000, 1))).astype(np.float32)
    codes, scales = np.empty(largest.shape, np.int8), np.empty(largest.shape, np.uint16)
    quantise.int8_encode(largest, "F32", codes, scales)
    assert (quantise.widen(scales, "BF16") >= largest / np.float32(127)).all()
    assert (quantise.widen(scales - np.uint16(1), "BF16") < largest / np.float32(127)).all()
    assert set(codes.ravel().tolist()) <= {126, 127}


def test_ties_go_to_the_even_code() -> None:
    row = np.array([[127, 0.5, 1.5, -0.5, -1.5, 2.5, -127]], np.float32)
    codes, scales = np.empty(row.shape, np.int8), np.empty((1, 1), np.uint16)
    quantise.int8_encode(row, "F32", codes, scales)
    assert codes.tolist() == [[127, 0, 2, 0, -2, 2, -127]]
    packed, lows = np.empty((1, 4), np.uint8), np.empty((1, 1), np.uint16)
    row = np.array([[0, 15, 0.5, 1.5, 2.5, 3.5, 14.5]], np.float32)
    quantise.int4_encode(row, "F32", -1, packed, scales, lows)
    assert packed.tolist() == [[0xF0, 0x20, 0x42, 0x0E]]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_poisons_its_group_and_no_other(odd: float) -> None:
    numbers = np.ones((2, 3, 256), np.float32)
    numbers[1, 2, 130] = odd
    codes, scales = np.empty(numbers.shape, np.int8), np.empty((2, 3, 2), np.uint16)
    quantise.int8_encode(numbers, "F32", codes, scales)
    assert quantise.is_poisoned(scales)
    assert np.argwhere(scales == 0x7FC0).tolist() == [[1, 2, 1]]
    assert not codes[1, 2, 128:].any()
    assert (codes.reshape(-1)[:-128] == 127 - (scales[0, 0, 0] > 0x3C01)).all()
    with pytest.raises(ValueError, match="scale"):
        quantise.int8_decode(codes, scales, "F32", np.empty_like(numbers))
    packed, lows = np.empty((2, 3, 128), np.uint8), np.empty((2, 1, 256), np.uint16)
    scales = np.empty((2, 1, 256), np.uint16)
    quantise.int4_encode(numbers, "F32", -2, packed, scales, lows)
    assert np.argwhere(scales == 0x7FC0).tolist() == [[1, 0, 130]]
    assert lows[1, 0, 130] == 0


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x8000, 0xBF80, 0xFFFF])
def test_scales_that_are_never_written_are_refused(scale: int) -> None:
    codes, scales, out = np.zeros((1, 4), np.int8), np.full((1, 1), scale, np.uint16), np.empty((1, 4), np.float32)
    with pytest.raises(ValueError, match="scale"):
        quantise.int8_decode(codes, scales, "F32", out)
    with pytest.raises(ValueError, match="scale"):
        quantise.fp8_decode(codes.view(np.uint8), scales, "F32", out)
    with pytest.raises(ValueError, match="scale"):
        quantise.int4_decode(codes[:, :2].view(np.uint8), scales, np.zeros((1, 1), np.uint16), -1, "F32", out)


@pytest.mark.parametrize("axis", [-1, -2])
def test_zeros_of_either_sign_are_kept_as_zeros_in_int4(axis: int) -> None:
    numbers = np.full((4, 4), -0.0, np.float32)
    shape = (4, 1) if axis == -1 else (1, 4)
    codes, scales, lows = np.empty((4, 2), np.uint8), np.empty(shape, np.uint16), np.empty(shape, np.uint16)
    quantise.int4_encode(numbers, "F32", axis, codes, scales, lows)
    out = np.empty_like(numbers)
    quantise.int4_decode(codes, scales, lows, axis, "F32", out)
    assert not out.view(np.uint32).any()


def test_golden_bits() -> None:
    generator = np.random.default_rng(35)
    numbers = (generator.integers(0, 2**16, (2, 70, 136), dtype=np.uint16) & np.uint16(0xBFFF)) % np.uint16(0xFF80)
    digest = hashlib.sha256()
    for encode, kind in ((quantise.int8_encode, np.int8), (quantise.fp8_encode, np.uint8)):
        codes, scales = np.empty(numbers.shape, kind), np.empty((2, 70, 2), np.uint16)
        encode(numbers, "BF16", codes, scales)
        digest.update(codes.tobytes() + scales.tobytes())
    for axis, groups in ((-1, (2, 70, 3)), (-2, (2, 2, 136))):
        codes, scales, lows = np.empty((2, 70, 68), np.uint8), np.empty(groups, np.uint16), np.empty(groups, np.uint16)
        quantise.int4_encode(numbers, "BF16", axis, codes, scales, lows)
        digest.update(codes.tobytes() + scales.tobytes() + lows.tobytes())
    assert digest.hexdigest() == GOLDEN


GOLDEN = "86c59c40a10308e197adb3a07d7fe9013e97d3976c61b63bd122bdeae7b83131"
"""Of what the quantisers have made since they were first released."""
