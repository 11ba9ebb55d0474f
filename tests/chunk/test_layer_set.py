from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.layer_set import ALL_LAYERS, MAX_LAYERS, parse_layer_set, spell_layer_set
from kvgate.errors import LayoutError


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([0], "0"),
        ([3, 2], "2-3"),
        ([0, 1, 2, 3, 4, 6, 8, 9, 10, 11], "0-4,6,8-11"),
        (range(0, 12, 2), "0,2,4,6,8,10"),
        (range(12), ALL_LAYERS),
        (range(11), "0-10"),
    ],
)
def test_spelling_is_the_golden_one(layers: list[int], text: str) -> None:
    assert spell_layer_set(layers, 12) == text


@given(layers=st.sets(st.integers(0, MAX_LAYERS - 1), min_size=1, max_size=60))
def test_what_is_spelled_is_read_again(layers: set[int]) -> None:
    text = spell_layer_set(layers, MAX_LAYERS)
    assert [index for each in parse_layer_set(text) for index in each] == sorted(layers)


@given(text=st.text("0123456789-, ", min_size=1, max_size=12))
def test_what_is_read_has_one_spelling(text: str) -> None:
    try:
        ranges = parse_layer_set(text)
    except LayoutError:
        return
    assert spell_layer_set([index for each in ranges for index in each], MAX_LAYERS + 1) == text


OTHER_SPELLINGS = ["", "all", "0-0", "4-2", "0,1", "0-3,4", "0-3,3", "5,2", "01", "0,", ",0", "0-", "-1", "0 ", "+1"]
OTHER_SPELLINGS += ["4096", "0-4096", "1-2-3", "٣", "1" * 5000]


@pytest.mark.parametrize("text", OTHER_SPELLINGS)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(LayoutError):
        parse_layer_set(text)


@pytest.mark.parametrize("layers", [[], [12], [-1], [1, 1], [True, 1]])
def test_layers_that_a_model_does_not_have_are_refused(layers: list[int]) -> None:
    with pytest.raises(LayoutError, match="different layers of 0-11"):
        spell_layer_set(layers, 12)
