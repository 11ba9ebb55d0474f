from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.errors import LayoutError
from kvgate.kernels import quantise
from kvgate.kernels.paged_copy import gather_twin, scatter_twin
from kvgate.kernels.pages import Table
from kvgate.kernels.quantised_copy import Encoded, Kind, QuantisedCopies, plan
from tests.kernels import devices
from tests.kernels.devices import examples, make_device
from tests.kernels.paged import ENGINES, Paged, aligned, make_pages, random_table

NUMBER = {"BF16": 2, "F16": 2, "F32": 4}


class Tensors:
    """What one part of a chunk becomes: codes, scales, lows, each in memory of its exact size."""

    def __init__(self, kind: Kind, layers: int, heads: int, tokens: int, channels: int, shift: int = 0) -> None:
        self.kind = kind
        wide = -(-channels // 2) if kind.halves else channels
        scale_shape = (layers, heads, tokens, -(-channels // kind.group))
        if kind is Kind.INT4_TOKENS:
            scale_shape = (layers, heads, -(-tokens // kind.group), channels)
        dtype = np.int8 if kind is Kind.INT8 else np.uint8
        self.codes = aligned(layers * heads * tokens * wide, shift).view(dtype).reshape(layers, heads, tokens, wide)
        self.scales = devices.filled(np.full(scale_shape, 0x1234, np.uint16))
        self.lows = devices.filled(np.full(scale_shape if kind.halves else (0,), 0x4321, np.uint16))

    def at(self, table: Table) -> Encoded:
        lows = self.lows.ctypes.data if self.kind.halves else 0
        return Encoded(self.codes.ctypes.data, self.scales.ctypes.data, lows, table)

    def encode(self, numbers: Any, dtype: str) -> None:
        """The twin."""
        if self.kind is Kind.INT8:
            quantise.int8_encode(numbers, dtype, self.codes, self.scales)
        elif self.kind is Kind.FP8:
            quantise.fp8_encode(numbers, dtype, self.codes, self.scales)
        else:
            quantise.int4_encode(numbers, dtype, self.axis, self.codes, self.scales, self.lows)

    def decode(self, dtype: str, out: Any) -> None:
        """The twin."""
        if self.kind is Kind.INT8:
            quantise.int8_decode(self.codes, self.scales, dtype, out)
        elif self.kind is Kind.FP8:
            quantise.fp8_decode(self.codes, self.scales, dtype, out)
        else:
            quantise.int4_decode(self.codes, self.scales, self.lows, self.axis, dtype, out)

    @property
    def axis(self) -> int:
        return -2 if self.kind is Kind.INT4_TOKENS else -1

    def check_equal(self, other: Tensors) -> None:
        np.testing.assert_array_equal(self.scales, other.scales)
        np.testing.assert_array_equal(self.lows, other.lows)
        np.testing.assert_array_equal(self.codes, other.codes)


def numbers_of(paged: Paged, dtype: str, table: Table, tokens: int) -> Any:
    """The rows of the pages as numbers, [layers, heads, tokens, channels]; zeros where a block is left out."""
    layers, _, _, heads, _, units, unit = paged.rows.shape
    chunk = np.zeros((layers, 1, heads, tokens, units, unit), np.uint8)
    gather_twin(paged.rows, table, chunk)
    return chunk.view(quantise.ARRAY_DTYPES[dtype]).reshape(layers, heads, tokens, -1)


def fill(paged: Paged, dtype: str, rng: np.random.Generator, kind: str) -> None:
    """Numbers that are harder than a normal distribution: every magnitude, subnormal ones, zeros of either sign."""
    shape = (*paged.rows.shape[:-1], paged.rows.shape[-1] // NUMBER[dtype])
    if kind == "any bits":
        values = rng.integers(0, 256, (*shape[:-1], paged.rows.shape[-1]), np.uint8)
        paged.rows[...] = values
        return
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "all magnitudes":
        limit = 15 if dtype == "F16" else 126
        values *= np.exp2(rng.integers(-limit - 20, limit, shape)).astype(np.float32)
    elif kind == "whole":
        values = np.rint(values * 4)
    elif kind == "zeros":
        values = np.where(rng.random(shape) < 0.5, np.float32(0), np.float32(-0.0))
    held = np.empty(shape, quantise.ARRAY_DTYPES[dtype])
    quantise.narrow(values, dtype, held)
    paged.rows[...] = held.view(np.uint8).reshape(paged.rows.shape)


def check_both_ways(
    kind: Kind, dtype: str, paged: Paged, tokens: int, chunk_count: int, seed: int, holes: bool = False, shift: int = 0
) -> None:
    """Gather and scatter some chunks, and hold every byte that can be written against the twins."""
    rng = random.Random(seed)
    device = make_device()
    copies = QuantisedCopies(device, blocks=2, threads=32)
    layers, _, blocks, heads, _, units, unit = paged.rows.shape
    channels = units * unit // NUMBER[dtype]
    free = list(range(blocks))
    rng.shuffle(free)
    made, tables, good = [], [], True
    for _ in range(chunk_count):
        table = random_table(rng, paged.pages, tokens, free, holes)
        ours, twins = (Tensors(kind, layers, heads, tokens, channels, shift) for _ in range(2))
        with np.errstate(all="ignore"):
            twins.encode(numbers_of(paged, dtype, table, tokens), dtype)
        made.append((ours, twins))
        tables.append(table)
        good = good and not quantise.is_poisoned(twins.scales)
    launch = plan(kind, dtype, tokens, paged.pages, [m[0].at(t) for m, t in zip(made, tables, strict=True)])
    assert copies.gather(launch, 0).good() == good
    for ours, twins in made:
        ours.check_equal(twins)

    if good:
        before = paged.memory.copy()
        fill(paged, dtype, np.random.default_rng(seed + 1), "any bits")
        other = paged.memory.copy()
        for (_, twins), table in zip(made, tables, strict=True):
            out = np.empty((layers, heads, tokens, channels), quantise.ARRAY_DTYPES[dtype])
            twins.decode(dtype, out)
            scatter_twin(paged.rows, table, out.view(np.uint8).reshape(layers, 1, heads, tokens, units, unit))
        expected = paged.memory.copy()
        paged.memory[:] = other
        assert copies.scatter(launch, 0).good()
        np.testing.assert_array_equal(paged.memory, expected)
        paged.memory[:] = before
    copies.close()
    assert not device.allocations


@pytest.mark.parametrize("fill_kind", ["normal", "all magnitudes", "whole", "zeros"])
@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize("kind", Kind)
def test_numbers_become_the_codes_of_the_twin_and_come_back(kind: Kind, dtype: str, fill_kind: str) -> None:
    paged = make_pages("LPBTH", {"L": 2, "P": 1, "B": 10, "H": 2, "T": 16}, 128 * NUMBER[dtype])
    fill(paged, dtype, np.random.default_rng(7), fill_kind)
    check_both_ways(kind, dtype, paged, 70, 2, 7)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", Kind)
def test_every_engine_layout_is_quantised_alike(kind: Kind, engine: str) -> None:
    unit = 32 if "U" in ENGINES[engine] else 128
    paged = make_pages(ENGINES[engine], {"L": 2, "P": 1, "B": 9, "H": 2, "T": 8, "U": 4}, unit * 2)
    fill(paged, "BF16", np.random.default_rng(3), "normal")
    check_both_ways(kind, "BF16", paged, 24, 2, 3)


@settings(max_examples=examples(120), deadline=None)
@given(
    kind=st.sampled_from(Kind),
    dtype=st.sampled_from(list(NUMBER)),
    order=st.permutations("LPBHTU"),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 128, 132, 192, 257, 576])),
    units=st.sampled_from([1, 1, 1, 2, 4]),
    heads=st.integers(1, 2),
    layers=st.integers(1, 2),
    tokens=st.one_of(st.integers(1, 12), st.sampled_from([63, 64, 65, 130])),
    block_tokens=st.integers(1, 17),
    numbers=st.integers(0, 2),
    shift=st.sampled_from([0, 0, 1, 2]),
    fill_kind=st.sampled_from(["normal", "all magnitudes", "whole", "any bits"]),
    holes=st.booleans(),
    seed=st.integers(0, 2**32 - 2),
)
def test_any_shape_is_quantised_as_the_twin_does(
    kind: Kind,
    dtype: str,
    order: list[str],
    channels: int,
    units: int,
    heads: int,
    layers: int,
    tokens: int,
    block_tokens: int,
    numbers: int,
    shift: int,
    fill_kind: str,
    holes: bool,
    seed: int,
) -> None:
    random.seed(seed)
    blocks = 2 * (-(-tokens // block_tokens) + 1)
    sizes = {"L": layers, "P": 1, "B": blocks, "H": heads, "T": block_tokens, "U": units}
    unit = -(-channels // units) * NUMBER[dtype]
    # Padding of some numbers between rows, so that not every row begins at a multiple of four of them.
    paged = make_pages("".join(order), sizes, unit, padding=numbers * NUMBER[dtype])
    fill(paged, dtype, np.random.default_rng(seed), fill_kind)
    check_both_ways(kind, dtype, paged, tokens, 1 if tokens > 60 else 2, seed, holes, shift)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", Kind)
def test_a_number_that_is_not_finite_poisons_its_group_and_is_told(kind: Kind, bad: float) -> None:
    paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 128 * 4)
    fill(paged, "F32", np.random.default_rng(1), "normal")
    paged.rows.view(np.float32)[0, 0, :, 0, 5, 0, 77] = bad
    check_both_ways(kind, "F32", paged, 16, 1, 1)


@pytest.mark.parametrize("dtype", NUMBER)
def test_a_range_beyond_float32_poisons_int4(dtype: str) -> None:
    paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 64 * NUMBER[dtype])
    fill(paged, dtype, np.random.default_rng(1), "normal")
    held = np.empty(2, quantise.ARRAY_DTYPES[dtype])
    quantise.narrow(np.array([3e38, -3e38], np.float32), dtype, held)
    paged.rows.view(held.dtype)[0, 0, :, 0, 5:7, 0, 7] = held
    paged.rows.view(held.dtype)[0, 0, :, 0, 5, 0, 7:9] = held
    for kind in (Kind.INT4_CHANNELS, Kind.INT4_TOKENS):
        check_both_ways(kind, dtype, paged, 16, 1, 1)


class TestDamage:
    """What no gather writes is told, and what is beside it is written all the same."""

    def check(self, kind: Kind, channels: int, damage: Any) -> None:
        paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, channels * 2)
        fill(paged, "BF16", np.random.default_rng(1), "normal")
        device = make_device()
        copies = QuantisedCopies(device, threads=32)
        tensors = Tensors(kind, 1, 1, 16, channels)
        launch = plan(kind, "BF16", 16, paged.pages, [tensors.at(Table([0]))])
        assert copies.gather(launch, 0).good()
        assert copies.scatter(launch, 0).good()
        damage(tensors)
        with pytest.raises(ValueError):
            tensors.decode("BF16", np.empty((1, 1, 16, channels), np.uint16))
        assert not copies.scatter(launch, 0).good()
        copies.close()

    @pytest.mark.parametrize("scale", [0x7FC0, 0x7F80, 0x8000, 0xFFFF])
    @pytest.mark.parametrize("kind", Kind)
    def test_a_scale_that_is_none(self, kind: Kind, scale: int) -> None:
        self.check(kind, 128, lambda tensors: tensors.scales.fill(scale))

    @pytest.mark.parametrize("low", [0x7FC0, 0x7F80, 0xFF80])
    @pytest.mark.parametrize("kind", [Kind.INT4_CHANNELS, Kind.INT4_TOKENS])
    def test_a_low_that_is_none(self, kind: Kind, low: int) -> None:
        self.check(kind, 128, lambda tensors: tensors.lows.fill(low))

    @pytest.mark.parametrize("code", [0x7F, 0xFF])
    def test_an_fp8_code_that_is_no_number(self, code: int) -> None:
        def damage(tensors: Tensors) -> None:
            tensors.codes[0, 0, 3, 7] = code

        self.check(Kind.FP8, 128, damage)

    @pytest.mark.parametrize("kind", [Kind.INT4_CHANNELS, Kind.INT4_TOKENS])
    def test_a_code_of_no_channel(self, kind: Kind) -> None:
        def damage(tensors: Tensors) -> None:
            tensors.codes[0, 0, 3, -1] |= 0x10

        self.check(kind, 77, damage)


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.FP8])
def test_every_code_becomes_every_scale_times_it(kind: Kind) -> None:
    """All 256 codes under scales of every exponent, in every dtype."""
    tokens = 1 + 0x7F80 // 64
    for dtype, number_nbytes in NUMBER.items():
        paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 1, "H": 1, "T": tokens}, 256 * number_nbytes)
        tensors = Tensors(kind, 1, 1, tokens, 256)
        tensors.codes.view(np.uint8)[...] = np.arange(256, dtype=np.uint8)
        if kind is Kind.FP8:
            tensors.codes[tensors.codes & 0x7F == 0x7F] = 0
        tensors.scales[0, 0, :, 0] = [*range(0, 0x7F80, 64), 0x7F7F]
        tensors.scales[0, 0, :, 1] = tensors.scales[0, 0, :, 0] ^ 1
        device = make_device()
        copies = QuantisedCopies(device, threads=32)
        assert copies.scatter(plan(kind, dtype, tokens, paged.pages, [tensors.at(Table([0]))]), 0).good()
        copies.close()
        out = np.empty((1, 1, tokens, 256), quantise.ARRAY_DTYPES[dtype])
        with np.errstate(all="ignore"):
            tensors.decode(dtype, out)
        np.testing.assert_array_equal(paged.rows.view(out.dtype).reshape(out.shape).view(np.uint8), out.view(np.uint8))


@pytest.mark.parametrize("kind", Kind)
def test_every_number_of_sixteen_bits_is_read_as_what_it_is(kind: Kind) -> None:
    for dtype in ("F16", "BF16"):
        tokens = 65536 // 128
        paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 2, "H": 1, "T": tokens}, 256)
        paged.rows[0, 0] = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(paged.rows.shape[3:])
        check_both_ways(kind, dtype, paged, tokens, 1, 0)


def test_dtypes_and_places_that_cannot_be_are_refused() -> None:
    paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 256)
    tensors = Tensors(Kind.INT8, 1, 1, 16, 128)
    with pytest.raises(LayoutError, match="KV of F8_E4M3 is not quantised; known: BF16, F16, F32"):
        plan(Kind.INT8, "F8_E4M3", 16, paged.pages, [tensors.at(Table([0]))])
    odd = Encoded(tensors.codes.ctypes.data, tensors.scales.ctypes.data + 1, 0, Table([0]))
    with pytest.raises(LayoutError, match="not multiples of their size"):
        plan(Kind.INT8, "BF16", 16, paged.pages, [odd])
    with pytest.raises(LayoutError, match="not multiples of their size"):
        plan(
            Kind.INT8,
            "BF16",
            16,
            make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 256, shift=1).pages,
            [],
        )
    both = make_pages("LPBTH", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 16}, 256).pages
    with pytest.raises(LayoutError, match="pages of 2 parts"):
        plan(Kind.INT8, "BF16", 16, both, [tensors.at(Table([0]))])


def test_words_for_outcomes_are_used_again() -> None:
    paged = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 256)
    device = make_device()
    copies = QuantisedCopies(device, threads=32)
    tensors = Tensors(Kind.INT8, 1, 1, 16, 128)
    paged.rows[...] = 0
    launch = plan(Kind.INT8, "BF16", 16, paged.pages, [tensors.at(Table([0]))])
    assert copies.gather(launch, 0).good()
    before = len(device.allocations)
    for _ in range(2000):
        assert copies.gather(plan(Kind.INT8, "BF16", 16, paged.pages, []), 0).good()
    assert len(device.allocations) == before
    copies.close()
    assert not device.allocations
