"""Slices gathered from views, against NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.form import stored_form
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.store.slice_body import cut


@st.composite
def slices(draw: st.DrawFn) -> tuple[Layout, range, range]:
    layout = Layout(draw(st.integers(1, 4)), 2, draw(st.integers(1, 4)), draw(st.integers(1, 3)), 2, "BF16")
    picked = []
    for limit in (layout.layers, layout.kv_heads):
        first = draw(st.integers(0, limit - 1))
        picked.append(range(first, draw(st.integers(first + 1, limit))))
    return layout, picked[0], picked[1]


@given(slices(), st.lists(st.integers(1, 40)), st.data())
def test_pieces_are_the_slice_however_the_body_is_divided(case, divisions, data) -> None:
    layout, layers, heads = case
    body = np.random.default_rng(0).integers(0, 256, DATA_START + layout.nbytes, dtype=np.uint8).tobytes()
    tensor = np.frombuffer(body[DATA_START:], dtype=np.uint16).reshape(layout.shape)
    runs = stored_form("raw", layout).slices(layers, heads).in_file()
    start = data.draw(st.integers(0, runs.start))
    views, at = [], start
    for nbytes in [*divisions, len(body)]:
        views.append(memoryview(body)[at : at + nbytes])
        at += len(views[-1])
    pieces = cut(views, start, runs)
    expected = tensor[layers.start : layers.stop, :, heads.start : heads.stop].tobytes()
    assert b"".join(pieces) == expected
    assert runs.nbytes == len(expected)


def test_pieces_are_views_of_the_body_itself() -> None:
    layout = Layout(2, 2, 4, 3, 2, "BF16")
    body = bytearray(DATA_START + layout.nbytes)
    pieces = cut([memoryview(body)], 0, stored_form("raw", layout).slices(range(2), range(1, 2)).in_file())
    assert len(pieces) == 4
    body[:] = b"\xff" * len(body)
    assert set(b"".join(pieces)) == {255}
