from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidRange
from kvgate.s3.ranges import parse_range


@pytest.mark.parametrize(
    ("header", "nbytes", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=2-5", 10, (2, 6)),
        ("bytes=2-", 10, (2, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-30", 10, (0, 10)),
        ("bytes=0-99", 10, (0, 10)),
        ("bytes=9-9", 10, (9, 10)),
        ("Bytes = 1 - 2", 10, (1, 3)),
        ("bytes=0-9999999999999999999", 10, (0, 10)),
    ],
)
def test_one_range_selects_bytes(header: str, nbytes: int, expected: tuple[int, int]) -> None:
    byte_range = parse_range(header)
    assert byte_range is not None
    assert byte_range.resolve(nbytes) == expected


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-2", "bytes=0-1,3-4", "items=0-1", "bytes=1", "bytes=--1",
     "bytes=0x1-2", "bytes=1.0-2", "bytes=\u0660-\u0661", "bytes=" + "1" * 30 + "-"],
)  # fmt: skip
def test_what_is_not_one_range_of_bytes_means_the_whole_object(header: str) -> None:
    assert parse_range(header) is None


@pytest.mark.parametrize(("header", "nbytes"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10),
                                               ("bytes=0-", 0), ("bytes=-5", 0), ("bytes=0-0", 0)])  # fmt: skip
def test_a_range_without_a_byte_of_the_object_is_refused(header: str, nbytes: int) -> None:
    byte_range = parse_range(header)
    assert byte_range is not None
    with pytest.raises(InvalidRange) as caught:
        byte_range.resolve(nbytes)
    assert caught.value.nbytes == nbytes


@given(st.text(max_size=40).map(lambda text: "bytes=" + text), st.integers(min_value=0, max_value=100))
def test_a_range_never_leaves_the_object(header: str, nbytes: int) -> None:
    byte_range = parse_range(header)
    if byte_range is not None:
        try:
            start, stop = byte_range.resolve(nbytes)
        except InvalidRange:
            return
        assert 0 <= start < stop <= nbytes
