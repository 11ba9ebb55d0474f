"""Blocks made with NumPy are the codec's own, to the byte and to the error."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvgate.codec.blocks import decode_block, encode_block
from kvgate.codec.installed import codec_named, installed_names
from tests.codec.test_codecs import BLOCK, numbers

each_codec = pytest.mark.parametrize("name", installed_names())


def decoded(name: str, encoded: bytes, nbytes: int) -> bytes:
    out = np.full(nbytes, 0xEE, np.uint8)
    decode_block(codec_named(name), encoded, out)
    return out.tobytes()


@each_codec
@given(st.binary(max_size=5000))
@example(b"")
@example(b"x")
@settings(deadline=None)
def test_they_are_the_codecs_own(name: str, block: bytes) -> None:
    encoded = encode_block(codec_named(name), np.frombuffer(block, np.uint8))
    assert encoded == codec_named(name).encode(block)
    assert decoded(name, encoded, len(block)) == block


@each_codec
@pytest.mark.parametrize("block", [numbers(BLOCK), numbers(BLOCK) + b"x", os.urandom(BLOCK - 1)])
def test_they_are_so_for_a_layer_that_lies_anywhere(name: str, block: bytes) -> None:
    memory = np.frombuffer(b"\xee" + block, np.uint8)
    encoded = encode_block(codec_named(name), memory[1:])
    assert encoded == codec_named(name).encode(block)
    out = np.full(len(block) + 2, 0xEE, np.uint8)
    decode_block(codec_named(name), encoded, out[1:-1])
    assert out.tobytes() == b"\xee" + block + b"\xee"


@each_codec
@given(encoded=st.binary(max_size=300), nbytes=st.integers(0, 2000))
@settings(deadline=None)
def test_any_bytes_at_all_are_what_the_codec_says(name: str, encoded: bytes, nbytes: int) -> None:
    try:
        expected = codec_named(name).decode(encoded, nbytes)
    except ValueError:
        with pytest.raises(ValueError):
            decoded(name, encoded, nbytes)
        return
    assert decoded(name, encoded, nbytes) == expected
