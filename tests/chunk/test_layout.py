from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.layout import DATA_START, ByteRange, Layout, Strided, parse_range
from kvgate.errors import LayoutError

LAYOUT = Layout(layers=3, parts=2, kv_heads=4, tokens=5, head_dim=7, dtype="BF16")

layouts = st.builds(
    Layout,
    layers=st.integers(1, 5),
    parts=st.just(2),
    kv_heads=st.integers(1, 5),
    tokens=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    dtype=st.sampled_from(["U8", "BF16", "F32"]),
) | st.builds(
    Layout,
    layers=st.integers(1, 5),
    parts=st.just(1),
    kv_heads=st.just(1),
    tokens=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    dtype=st.sampled_from(["U8", "BF16", "F32"]),
)


def chunk_of(layout: Layout) -> np.ndarray:
    """Bytes of a chunk as (*layout.shape, itemsize), each element different from its neighbours."""
    stream = np.random.default_rng(0).integers(0, 256, layout.nbytes, np.uint8)
    return stream.reshape(*layout.shape, layout.itemsize)


def sub_range(data: st.DataObject, limit: int) -> range:
    first = data.draw(st.integers(0, limit - 1))
    return range(first, data.draw(st.integers(first + 1, limit)))


@given(layout=layouts, data=st.data())
def test_a_layer_range_is_the_bytes_of_these_layers(layout: Layout, data: st.DataObject) -> None:
    chunk, layers = chunk_of(layout), sub_range(data, layout.layers)
    found = layout.layer_range(layers.start, layers.stop)
    assert chunk.tobytes()[found.start : found.stop] == chunk[layers.start : layers.stop].tobytes()
    assert found.nbytes == found.stop - found.start


@given(layout=layouts, data=st.data())
def test_head_slices_in_order_are_the_strided_slice(layout: Layout, data: st.DataObject) -> None:
    chunk = chunk_of(layout)
    layers, heads = sub_range(data, layout.layers), sub_range(data, layout.kv_heads)
    found = layout.head_slices(layers, heads)
    body = chunk.tobytes()
    gathered = b"".join(body[run.start : run.stop] for run in found.runs())
    assert gathered == chunk[layers.start : layers.stop, :, heads.start : heads.stop].tobytes()
    assert found.nbytes == len(gathered)
    if len(heads) == layout.kv_heads:
        assert list(found.runs()) == [layout.layer_range(layers.start, layers.stop)]


def test_head_slices_have_one_run_a_layer_and_part() -> None:
    head_nbytes = 5 * 7 * 2
    assert LAYOUT.head_slices(range(1, 3), range(2, 3)) == Strided(
        start=(1 * 2 * 4 + 2) * head_nbytes, run_nbytes=head_nbytes, stride=4 * head_nbytes, count=4
    )


def test_offsets_in_the_file_lie_behind_the_header() -> None:
    assert DATA_START == 4096
    assert LAYOUT.layer_range(0, 1).in_file() == ByteRange(4096, 4096 + LAYOUT.nbytes // 3)
    tensor, file = (
        form(LAYOUT.head_slices(range(3), range(1))) for form in (Strided.runs, lambda s: s.in_file().runs())
    )
    assert [run.in_file() for run in tensor] == list(file)


def test_llama_8b_chunk_is_32_mib() -> None:
    assert Layout(32, 2, 8, 256, 128, "BF16").nbytes == 32 << 20


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 1), (2, 1), (-1, 2), (0, 4), (3, 4)])
def test_layers_outside_the_layout_are_refused(first: int, last: int) -> None:
    with pytest.raises(LayoutError, match="layers"):
        LAYOUT.layer_range(first, last)
    with pytest.raises(LayoutError, match="layers"):
        LAYOUT.head_slices(range(first, last), range(4))


@pytest.mark.parametrize("heads", [range(0), range(-1, 2), range(2, 5), range(3, 1), range(0, 4, 2), range(3, -1, -1)])
def test_heads_outside_the_layout_are_refused(heads: range) -> None:
    with pytest.raises(LayoutError, match="heads"):
        LAYOUT.head_slices(range(3), heads)


@pytest.mark.parametrize(
    "shape",
    [(0, 2, 4, 5, 7), (3, 3, 4, 5, 7), (3, 1, 4, 5, 7), (3, 2, -4, 5, 7), (3, 2, 4, True, 7), (2**40, 2, 2**20, 1, 8)],
)
def test_a_layout_that_no_chunk_can_have_is_refused(shape: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(LayoutError):
        Layout(*shape, "BF16")
    with pytest.raises(LayoutError, match="dtype"):
        Layout(3, 2, 4, 5, 7, "bf16")


@given(st.data())
def test_parse_range_reads_inclusive_ranges(data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 10_000))
    expected = sub_range(data, limit)
    assert parse_range(f"{expected.start}-{expected.stop - 1}", limit) == expected
    assert parse_range(str(expected.start), limit) == range(expected.start, expected.start + 1)


@pytest.mark.parametrize(
    "text",
    ["", "-", "0-", "-3", "3-1", "0-8", "8", "1-2-3", "0x1", "1 -2", "0-1\n", "٣", pytest.param("9" * 5000, id="long")],
)
def test_parse_range_refuses_everything_else(text: str) -> None:
    with pytest.raises(LayoutError, match=r"0-7"):
        parse_range(text, 8)


def test_itemsizes_are_those_of_numpy() -> None:
    kinds = {"U": "u", "I": "i", "F": "f"}
    for name, itemsize in ITEMSIZE.items():
        if name[0] in kinds and name[1:].isdigit():
            assert np.dtype(f"{kinds[name[0]]}{int(name[1:]) // 8}").itemsize == itemsize
