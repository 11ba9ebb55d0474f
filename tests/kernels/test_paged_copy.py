from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError
from kvgate.kernels.divider import LIMIT, Divider
from kvgate.kernels.paged_copy import (
    PagedCopies,
    Placed,
    Selection,
    gather_twin,
    plan,
    scatter_twin,
)
from kvgate.kernels.pages import Table
from kvgate.kernels.pieces import Extent
from tests.kernels import devices
from tests.kernels.devices import examples, make_device
from tests.kernels.paged import ENGINES, Paged, cut, make_pages, random_table, selected


def check_both_ways(
    rng: random.Random, paged: Paged, layout: Layout, selection: Selection, chunk_count: int, cuts: int, holes: bool
) -> set[str]:
    """Gather and scatter some chunks, and hold every byte of all memory against the twins; the kernels that ran."""
    device = make_device()
    copies = PagedCopies(device)
    free = list(range(paged.pages.blocks))
    rng.shuffle(free)
    chunks: list[Placed] = []
    memories: list[Any] = []
    expected: list[Any] = []
    after = paged.memory.copy()
    for _ in range(chunk_count):
        tensor = np.frombuffer(rng.randbytes(layout.nbytes), np.uint8).copy()
        parts, extents = cut(tensor, [rng.randrange(layout.nbytes) for _ in range(cuts)])
        table = random_table(rng, paged.pages, layout.tokens, None, holes)
        gather_twin(paged.rows, table, selected(tensor, layout, selection, paged))
        chunks.append(Placed(extents, table))
        memories.append(parts)
        expected.append(tensor)
    copies.gather(plan(layout, paged.pages, chunks, selection), 0).wait()
    for parts, tensor in zip(memories, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), tensor)
    np.testing.assert_array_equal(paged.memory, after)

    into = [Placed(c.extents, random_table(rng, paged.pages, layout.tokens, free, holes)) for c in chunks]
    before = paged.memory.copy()
    for chunk, tensor in zip(into, expected, strict=True):
        scatter_twin(paged.rows, chunk.table, selected(tensor, layout, selection, paged))
    after = paged.memory.copy()
    paged.memory[:] = before
    copies.scatter(plan(layout, paged.pages, into, selection), 0).wait()
    np.testing.assert_array_equal(paged.memory, after)
    for parts, tensor in zip(memories, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), tensor)
    copies.close()
    assert not device.allocations
    return set(device.launches)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head_dim", [128, 80, 20, 3])
def test_every_engine_layout_comes_and_goes_bit_for_bit(engine: str, head_dim: int) -> None:
    rng = random.Random(f"{engine} {head_dim}")
    sizes = {"L": 3, "P": 2, "B": 40, "H": 4, "T": 16, "U": 4}
    split = "U" in ENGINES[engine]
    paged = make_pages(ENGINES[engine], sizes, head_dim * 2)
    layout = Layout(3, 2, 4, 40, head_dim * (4 if split else 1), "BF16")
    ran = check_both_ways(rng, paged, layout, Selection.all_of(layout), 3, 0, holes=False)
    width = {128: 16, 80: 16, 20: 8, 3: 2}[head_dim]
    assert ran == {f"gather_{width}", f"scatter_{width}"}


def test_latents_with_padded_rows_come_and_go_bit_for_bit() -> None:
    layout = Layout(2, 1, 1, 50, 576, "BF16")
    paged = make_pages("LPBTH", {"L": 2, "P": 1, "B": 9, "H": 1, "T": 64}, 1152, padding=128)
    check_both_ways(random.Random(1), paged, layout, Selection.all_of(layout), 2, 3, holes=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    split = draw(st.booleans())
    order = "".join(draw(st.permutations("LPBHT" + ("U" if split else ""))))
    parts = draw(st.integers(1, 2))
    chunk_heads = draw(st.integers(1, 5)) if parts == 2 else 1
    chunk_layers = draw(st.integers(1, 4))
    heads = sorted(draw(st.lists(st.integers(0, chunk_heads), min_size=2, max_size=2, unique=True)))
    layers = sorted(draw(st.lists(st.integers(0, chunk_layers), min_size=2, max_size=2, unique=True)))
    selection = Selection(range(*layers), range(*heads))
    tokens = draw(st.integers(1, 40))
    block_tokens = draw(st.integers(1, 24))
    chunk_count = draw(st.integers(1, 4))
    sizes = {
        "L": len(selection.layers),
        "P": parts,
        "H": len(selection.heads),
        "T": block_tokens,
        "B": chunk_count * (tokens // block_tokens + 2) + draw(st.integers(0, 3)),
        "U": draw(st.integers(1, 4)) if split else 1,
    }
    unit = draw(st.one_of(st.integers(1, 40), st.sampled_from([2, 4, 8, 16, 32, 48, 64, 96])))
    padding = draw(st.sampled_from([0, 0, 0, 1, 4, 16]))
    shift = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8]))
    layout = Layout(chunk_layers, parts, chunk_heads, tokens, unit * sizes["U"], "U8")
    return order, sizes, unit, padding, shift, layout, selection, chunk_count


@settings(max_examples=examples(300), deadline=None)
@given(cases(), st.integers(0, 4), st.booleans(), st.integers(0, 2**32))
def test_any_affine_layout_comes_and_goes_bit_for_bit(case: tuple[Any, ...], cuts: int, holes: bool, seed: int) -> None:
    order, sizes, unit, padding, shift, layout, selection, chunk_count = case
    random.seed(seed)
    paged = make_pages(order, sizes, unit, padding, shift)
    check_both_ways(random.Random(seed), paged, layout, selection, chunk_count, cuts, holes)


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
@pytest.mark.parametrize("where", ["pages", "chunk", "cut", "row"])
def test_the_width_of_an_access_follows_from_what_is_least_aligned(where: str, shift: int) -> None:
    sizes = {"L": 1, "P": 2, "B": 4, "H": 2, "T": 8}
    layout = Layout(1, 2, 2, 16, 64 + (shift if where == "row" else 0), "U8")
    paged = make_pages("LPBHT", sizes, layout.head_dim, shift=shift if where == "pages" else 0)
    tensor = np.zeros(layout.nbytes + 64, np.uint8)
    base = tensor.ctypes.data + -tensor.ctypes.data % 64
    first = 64 + shift if where == "cut" else 64
    extents = [Extent(base + (shift if where == "chunk" else 0), first), Extent(base + 4096, layout.nbytes - first)]
    launch = plan(layout, paged.pages, [Placed(extents, Table([0, 1]))], Selection.all_of(layout))
    assert launch.access_nbytes == shift


def test_a_launch_of_few_blocks_of_threads_does_all_of_the_work() -> None:
    layout = Layout(2, 2, 2, 64, 64, "BF16")
    paged = make_pages("LPBHT", {"L": 2, "P": 2, "B": 9, "H": 2, "T": 16}, 128)
    device = make_device()
    tensor = devices.filled(np.zeros(layout.nbytes, np.uint8))
    chunk = Placed([Extent(tensor.ctypes.data, layout.nbytes)], Table([3, 1, 4, 8]))
    launch = plan(layout, paged.pages, [chunk], Selection.all_of(layout))
    assert launch.work > 3
    copies = PagedCopies(device, blocks=1)
    copies.gather(launch, 0).wait()
    copies.close()
    expected = np.zeros_like(tensor)
    gather_twin(paged.rows, chunk.table, selected(expected, layout, Selection.all_of(layout), paged))
    np.testing.assert_array_equal(tensor, expected)


def test_nothing_to_move_launches_nothing() -> None:
    layout = Layout(1, 2, 1, 8, 8, "BF16")
    paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 2, "H": 1, "T": 8}, 16)
    device = make_device()
    PagedCopies(device).gather(plan(layout, paged.pages, [], Selection.all_of(layout)), 0).wait()
    assert not device.launches


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (Table([0]), "1 blocks for 16 tokens, expected 2"),
        (Table([0, 1, 1]), "3 blocks"),
        (Table([0, 4]), "block 4 of pages that have 4"),
        (Table([0, 1, 2], offset=8), "token 8 of a block that has 8"),
        (Table([0, 1], offset=1), "2 blocks for 16 tokens, expected 3"),
    ],
)
def test_a_table_that_is_not_of_the_pages_is_refused(table: Table, words: str) -> None:
    layout = Layout(1, 2, 1, 16, 8, "BF16")
    paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 8}, 16)
    tensor = np.zeros(layout.nbytes, np.uint8)
    chunk = Placed([Extent(tensor.ctypes.data, layout.nbytes)], table)
    with pytest.raises(LayoutError, match=words):
        plan(layout, paged.pages, [chunk], Selection.all_of(layout))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(2, 2, 1, 16, 8, "BF16"), "2 layers, the pages have 1"),
        (Layout(1, 2, 2, 16, 8, "BF16"), "2 heads, the pages have 1"),
        (Layout(1, 2, 1, 16, 9, "BF16"), "18 bytes a row, the pages have 16"),
        (Layout(1, 1, 1, 16, 8, "BF16"), "1 parts, the pages have 2"),
    ],
)
def test_a_chunk_that_is_not_of_the_pages_is_refused(layout: Layout, words: str) -> None:
    paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 8}, 16)
    tensor = np.zeros(layout.nbytes, np.uint8)
    chunk = Placed([Extent(tensor.ctypes.data, layout.nbytes)], Table([0, 1]))
    with pytest.raises(LayoutError, match=words):
        plan(layout, paged.pages, [chunk], Selection.all_of(layout))


def test_memory_that_ends_before_the_chunk_is_refused() -> None:
    layout = Layout(1, 2, 1, 16, 8, "BF16")
    paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 8}, 16)
    chunk = Placed([Extent(4096, layout.nbytes - 16)], Table([0, 1]))
    with pytest.raises(LayoutError, match=f"memory of {layout.nbytes - 16} bytes"):
        plan(layout, paged.pages, [chunk], Selection.all_of(layout))


@given(st.integers(1, LIMIT - 1), st.integers(0, LIMIT - 1))
def test_a_divider_divides_exactly(divisor: int, dividend: int) -> None:
    for n in (dividend, dividend - dividend % divisor, max(0, dividend - dividend % divisor - 1), LIMIT - 1):
        by = Divider.by(divisor)
        assert ((n * by.multiplier >> 32) + n) >> by.shift == n // divisor
        assert (n * by.multiplier >> 32) + n < 1 << 32
        assert by.multiplier < 1 << 32


@pytest.mark.parametrize("divisor", [0, -1, LIMIT])
def test_a_divider_by_what_it_cannot_divide_by_is_refused(divisor: int) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        Divider.by(divisor)
