from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.errors import LayoutError
from kvgate.kernels import quantise, rerotate
from kvgate.kernels.paged_copy import scatter_twin
from kvgate.kernels.pages import Table
from kvgate.kernels.rotated_scatter import Moved, RotatedScatters, plan
from tests.kernels.devices import examples, make_device
from tests.kernels.paged import ENGINES, Paged, aligned, make_pages, random_table

NUMBER = {"BF16": 2, "F16": 2, "F32": 4}


def check(
    dtype: str,
    paged: Paged,
    tokens: int,
    chunk_count: int,
    pairs: int,
    first: int,
    interleaved: bool,
    seed: int,
    parts: int = 2,
    holes: bool = False,
    shift: int = 0,
) -> None:
    """Scatter the keys of chunks that have `parts` parts, each by a distance of its own, and compare all memory."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    device = make_device()
    layers, _, blocks, heads, _, units, unit = paged.rows.shape
    row_nbytes = units * unit
    channels = row_nbytes // NUMBER[dtype]
    frequencies = rerotate.frequencies({"rope_theta": 10000.0}, 2 * pairs)
    free = list(range(blocks))
    rng.shuffle(free)
    before = paged.memory.copy()
    chunks, kept = [], []
    for _ in range(chunk_count):
        memory = aligned(layers * parts * heads * tokens * row_nbytes, shift)
        kv = memory.view(quantise.ARRAY_DTYPES[dtype]).reshape(layers, parts, heads, tokens, channels)
        values = (numbers.standard_normal(kv.shape) * np.exp2(numbers.integers(-10, 10, kv.shape))).astype(np.float32)
        quantise.narrow(values, dtype, kv)
        move = rerotate.rotation(frequencies, rng.randrange(-5000, 5000), first=first, interleaved=interleaved)
        table = random_table(rng, paged.pages, tokens, free, holes)
        chunks.append(Moved(memory.ctypes.data, table, move.cosines.tolist(), move.sines.tolist()))
        out = np.empty((layers, heads, tokens, channels), kv.dtype)
        rerotate.rerotate(np.ascontiguousarray(kv[:, 0]), dtype, move, out)
        scatter_twin(paged.rows, table, out.view(np.uint8).reshape(layers, 1, heads, tokens, units, unit))
        kept.append(memory)
    expected = paged.memory.copy()
    paged.memory[:] = before
    head_stride = tokens * row_nbytes
    launch = plan(
        dtype,
        tokens,
        paged.pages,
        chunks,
        layer_stride=parts * heads * head_stride,
        head_stride=head_stride,
        first=first,
        interleaved=interleaved,
    )
    copies = RotatedScatters(device)
    copies.scatter(launch, 0).wait()
    copies.close()
    np.testing.assert_array_equal(paged.memory, expected)
    assert not device.allocations


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize(("pairs", "first"), [(64, 0), (32, 0), (16, 96), (20, 4), (7, 3)])
def test_keys_move_as_the_twin_moves_them(dtype: str, pairs: int, first: int, interleaved: bool) -> None:
    paged = make_pages("LPBTH", {"L": 2, "P": 1, "B": 10, "H": 2, "T": 16}, 128 * NUMBER[dtype])
    check(dtype, paged, 40, 2, pairs, first, interleaved, seed=pairs + first)


@pytest.mark.parametrize("engine", ENGINES)
def test_keys_move_into_every_engine_layout(engine: str) -> None:
    unit = 32 if "U" in ENGINES[engine] else 128
    paged = make_pages(ENGINES[engine], {"L": 2, "P": 1, "B": 9, "H": 2, "T": 8, "U": 4}, unit * 2)
    check("BF16", paged, 24, 2, 64, 0, False, seed=3)


@settings(max_examples=examples(150), deadline=None)
@given(
    dtype=st.sampled_from(list(NUMBER)),
    order=st.permutations("LPBHTU"),
    units=st.sampled_from([1, 1, 2, 4]),
    channels=st.integers(1, 40),
    data=st.data(),
    heads=st.integers(1, 2),
    parts=st.integers(1, 2),
    tokens=st.integers(1, 20),
    block_tokens=st.integers(1, 9),
    padding=st.integers(0, 2),
    misplaced=st.integers(0, 2),
    interleaved=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_keys_of_any_shape_move_as_the_twin_moves_them(
    dtype: str,
    order: list[str],
    units: int,
    channels: int,
    data: st.DataObject,
    heads: int,
    parts: int,
    tokens: int,
    block_tokens: int,
    padding: int,
    misplaced: int,
    interleaved: bool,
    holes: bool,
    seed: int,
) -> None:
    random.seed(seed)
    nbytes = NUMBER[dtype]
    sizes = {"L": 2, "P": 1, "B": 2 * (tokens // block_tokens + 2), "H": heads, "T": block_tokens, "U": units}
    paged = make_pages("".join(order), sizes, 2 * channels * nbytes, padding * nbytes)
    pairs = data.draw(st.integers(1, channels * units))
    first = data.draw(st.integers(0, 2 * channels * units - 2 * pairs))
    check(dtype, paged, tokens, 2, pairs, first, interleaved, seed, parts, holes, misplaced * nbytes)


def test_what_does_not_fit_together_is_refused() -> None:
    pages = make_pages("LPBTH", {"L": 1, "P": 1, "B": 4, "H": 1, "T": 16}, 256).pages

    def refused(words: str, dtype: str = "BF16", address: int = 4096, pairs: Any = (64, 64), first: int = 0) -> None:
        cosines, sines = ([1.0] * count for count in pairs)
        moved = Moved(address, Table([0]), cosines, sines)
        with pytest.raises(LayoutError, match=words):
            plan(dtype, 16, pages, [moved], layer_stride=4096, head_stride=4096, first=first)

    refused("keys of F8_E4M3 are not rotated", dtype="F8_E4M3")
    refused("channels 0 to 130 are rotated, and a head has 128", pairs=(65, 65))
    refused("channels 2 to 130 are rotated", first=2)
    refused("not of the same channels", pairs=(64, 63))
    refused("not multiples of their size", address=4097)
    both = make_pages("LPBTH", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 16}, 256).pages
    with pytest.raises(LayoutError, match="pages of 2 parts"):
        plan("BF16", 16, both, [], layer_stride=4096, head_stride=4096)
