from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidPartNumber
from kvgate.s3.part_sizes import PARTS, PartSizes

SIZES = st.lists(st.sampled_from([0, 1, 5, 8 << 20, 5 << 40]), min_size=1, max_size=30)


@given(SIZES)
def test_sizes_come_back_with_their_places(sizes: list[int]) -> None:
    parts = PartSizes.read(PartSizes.of(sizes).attributes)
    assert parts is not None
    assert parts.count == len(sizes)
    assert [size for _, size in parts.sizes()] == sizes
    assert [parts.span(number) for number in range(1, len(sizes) + 1)] == [
        (sum(sizes[:at]), sum(sizes[: at + 1])) for at in range(len(sizes))
    ]
    for number in (len(sizes) + 1, 10_000):
        with pytest.raises(InvalidPartNumber):
            parts.span(number)


@given(SIZES, st.integers(0, 35))
def test_sizes_go_on_behind_a_part(sizes: list[int], after: int) -> None:
    expected = list(enumerate(sizes, 1))[after:]
    assert list(PartSizes.of(sizes).sizes(after)) == expected


def test_equal_parts_take_little_room() -> None:
    assert PartSizes.of([8 << 20] * 9999 + [1234]).attributes == {PARTS: "8388608*9999,1234"}
    assert PartSizes.read({"content-type": "a/b"}) is None
