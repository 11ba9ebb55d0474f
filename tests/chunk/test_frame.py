"""The headers of frames, against the layout that a client in another language reads."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.frame import FRAME_NBYTES, Frame, Status, decode_frame
from kvgate.errors import InvalidFrame

HEADER = Frame(7, Status.PRESENT, 1 << 33, 0xFEDCBA9876543210).encode()


def test_header_lies_as_documented() -> None:
    assert b"KVF1\0\0\0\0" + struct.pack("<IIQQ", 7, 0, 1 << 33, 0xFEDCBA9876543210) == HEADER


@given(
    index=st.integers(0, 2**32 - 1),
    status=st.sampled_from(Status),
    nbytes=st.integers(0, 2**64 - 1),
    crc64nvme=st.integers(0, 2**64 - 1),
)
def test_header_survives_its_encoding(index, status, nbytes, crc64nvme) -> None:
    frame = Frame(index, status, *((nbytes, crc64nvme) if status == Status.PRESENT else (0, 0)))
    assert decode_frame(frame.encode()) == frame


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (HEADER[:-1], "32 bytes"),
        (HEADER + b"\0", "32 bytes"),
        (b"KVF2" + HEADER[4:], "begins with"),
        (HEADER[:4] + b"\6" + HEADER[5:], "status 6"),
        (HEADER[:5] + b"\1" + HEADER[6:], "reserved"),
        (HEADER[:12] + b"\1" + HEADER[13:], "reserved"),
        (HEADER[:4] + b"\1" + HEADER[5:], "no payload"),
    ],
)
def test_header_of_another_form_is_refused(header, named) -> None:
    with pytest.raises(InvalidFrame, match=named):
        decode_frame(header)


@given(st.binary(min_size=FRAME_NBYTES, max_size=FRAME_NBYTES))
def test_any_bytes_are_a_header_or_refused(header) -> None:
    try:
        frame = decode_frame(header)
    except InvalidFrame:
        return
    assert frame.encode() == header
