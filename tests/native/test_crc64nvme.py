"""Each way in which C takes a crc64nvme gives what awscrt gives."""

from __future__ import annotations

import random

import pytest
from awscrt import checksums
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")

BODY = memoryview(random.Random(0).randbytes(1 << 20))
VALUES = st.integers(0, 2**64 - 1)
each_path = pytest.mark.parametrize("path", range(len(native.CRC64NVME_PATHS)), ids=native.CRC64NVME_PATHS)


def test_the_ways_are_named_and_every_processor_has_a_table() -> None:
    assert native.CRC64NVME_PATHS[-1] == "table"
    assert len(set(native.CRC64NVME_PATHS)) == len(native.CRC64NVME_PATHS)


@each_path
def test_published_check_value(path: int) -> None:
    assert native.crc64nvme(b"123456789", 0, path) == 0xAE8B14860A799888
    assert native.crc64nvme(b"", 0, path) == 0


@each_path
def test_every_short_length(path: int) -> None:
    for nbytes in range(1100):
        assert native.crc64nvme(BODY[1 : 1 + nbytes], 5, path) == checksums.crc64nvme(BODY[1 : 1 + nbytes], 5), nbytes


@each_path
@settings(max_examples=100, deadline=None, derandomize=True)
@given(start=st.integers(0, 4096), nbytes=st.integers(0, len(BODY)), value=VALUES)
def test_any_bytes_at_any_place(path: int, start: int, nbytes: int, value: int) -> None:
    view = BODY[start : start + nbytes]
    assert native.crc64nvme(view, value, path) == checksums.crc64nvme(view, value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(first=VALUES, second=VALUES, second_nbytes=st.integers(0, 2**63 - 1))
def test_combination(first: int, second: int, second_nbytes: int) -> None:
    expected = checksums.combine_crc64nvme(first, second, second_nbytes)
    assert native.combine_crc64nvme(first, second, second_nbytes) == expected


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cut=st.integers(0, len(BODY)))
def test_two_parts_combine_to_the_whole(cut: int) -> None:
    parts = native.crc64nvme(BODY[:cut]), native.crc64nvme(BODY[cut:])
    assert native.combine_crc64nvme(*parts, len(BODY) - cut) == native.crc64nvme(BODY)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((b"", 0, 0, 0), TypeError),
        (("text",), TypeError),
        ((b"", -1), OverflowError),
        ((b"", 1 << 64), OverflowError),
        ((b"", 0, len(native.CRC64NVME_PATHS)), ValueError),
        ((memoryview(bytes(8))[::2],), BufferError),
    ],
)
def test_what_is_not_bytes_or_a_value_is_refused(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        native.crc64nvme(*arguments)


@pytest.mark.parametrize("arguments", [(), (1, 2), (1, 2, 3, 4), ("1", 2, 3), (1, -2, 3), (1, 2, 1 << 64)])
def test_what_cannot_be_combined_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        native.combine_crc64nvme(*arguments)
