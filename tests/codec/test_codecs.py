"""Every installed codec: what it is given comes back, and what it is not given is an error."""

from __future__ import annotations

import os
import random
import struct

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvgate.codec.installed import codec_named, installed_names
from kvgate.errors import ConfigError

BLOCK = 1 << 20
each_codec = pytest.mark.parametrize("name", installed_names())


def numbers(nbytes: int, seed: int = 1) -> bytes:
    """bfloat16 values around zero: the high halves of 32-bit floats."""
    generator = random.Random(seed)
    floats = struct.pack(f"<{nbytes // 2}f", *[generator.gauss(0, 1) for _ in range(nbytes // 2)])
    return bytes(byte for at in range(0, len(floats), 4) for byte in floats[at + 2 : at + 4])


def test_the_built_in_ones_are_installed() -> None:
    assert {"zstd", "zstd-split"} <= set(installed_names())
    assert [codec_named(name).name for name in installed_names()] == installed_names()
    with pytest.raises(ConfigError, match="zstd"):
        codec_named("nothing")


@each_codec
@given(st.binary(max_size=5000))
@example(b"")
@example(b"x")
@settings(deadline=None)
def test_a_block_comes_back(name: str, block: bytes) -> None:
    codec = codec_named(name)
    assert codec.decode(codec.encode(block), len(block)) == block


@each_codec
@pytest.mark.parametrize("nbytes", [1, 2, BLOCK - 1, BLOCK])
def test_blocks_of_every_length_come_back(name: str, nbytes: int) -> None:
    codec = codec_named(name)
    for block in (os.urandom(nbytes), bytes(nbytes)):
        assert codec.decode(codec.encode(block), nbytes) == block


@each_codec
@given(encoded=st.binary(max_size=300), nbytes=st.integers(0, 2000))
@settings(deadline=None)
def test_any_bytes_at_all_are_a_block_of_that_length_or_an_error(name: str, encoded: bytes, nbytes: int) -> None:
    try:
        block = codec_named(name).decode(encoded, nbytes)
    except ValueError:
        return
    assert len(block) == nbytes


@each_codec
def test_a_flipped_bit_gives_a_block_of_that_length_or_an_error(name: str) -> None:
    codec, block = codec_named(name), numbers(2000) + b"text " * 100
    encoded = codec.encode(block)
    for at in range(len(encoded)):
        for bit in (1, 128):
            broken = bytearray(encoded)
            broken[at] ^= bit
            try:
                assert len(codec.decode(bytes(broken), len(block))) == len(block)
            except ValueError:
                continue


@each_codec
def test_what_says_that_it_is_longer_is_refused_before_it_is_made(name: str) -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    unsaid = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20))
    for encoded in (bomb, unsaid, bomb + bytes(50), unsaid + bytes(50), bomb + bomb):
        with pytest.raises(ValueError, match=r"frame|block"):
            codec_named(name).decode(encoded, 100)


def test_numbers_of_16_bits_take_less_with_their_bytes_apart() -> None:
    block = numbers(200_000)
    apart, together = (len(codec_named(name).encode(block)) for name in ("zstd-split", "zstd"))
    assert apart < 0.75 * len(block)
    assert apart < together
