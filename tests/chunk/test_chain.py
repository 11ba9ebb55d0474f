from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.chain import Tokens, chain_hashes, root
from kvgate.chunk.space import Space

# ROOT   = $( printf %s%s $SPACE_ID $(printf salt | xxd -p)                    | xxd -r -p | sha256sum )
# FIRST  = $( printf %s%s $ROOT     01000000020000000300000000f40100           | xxd -r -p | sha256sum )
# SECOND = $( printf %s%s $FIRST    00000000ffffffff0000008004030201           | xxd -r -p | sha256sum )
# IMAGE  = $( printf %s%s $FIRST    00000000ffffffff0000008004030201696d616765 | xxd -r -p | sha256sum )
SHARED_ROOT = "0ccbddb8745cb2d83d4067269ded19ba62e856b3ded6f3fb677efc5f6726b2f4"
ROOT = "06a121a14b3358ea60d22dc872c9e844906a55212fb814df39f6dd11f85e40e9"
FIRST = "530105de21b993d10ce2cc3c936993cb92a21bb6b1c36cc6df9899155ac1ed88"
SECOND = "1b489ec175d95a7308575a31c9c35668ba724ac92de372b3b1f19de3179c8962"
IMAGE = "94e765193e8c3c7de7df90f225392759ea22f8e4da5c26ad8fe827efaafd1a4e"
TOKENS = [1, 2, 3, 128_000, 0, 2**32 - 1, 2**31, 0x01020304, 99]

START = bytes.fromhex(ROOT)


def test_roots_are_the_golden_ones(space: Space) -> None:
    assert root(space.digest, b"salt").hex() == ROOT
    assert root(space.digest, b"").hex() == SHARED_ROOT


def test_chain_hashes_are_the_golden_ones() -> None:
    assert [digest.hex() for digest in chain_hashes(START, TOKENS, 4)] == [FIRST, SECOND]


def test_an_extra_changes_its_chunk_and_an_empty_one_does_not() -> None:
    hashes = chain_hashes(START, TOKENS, 4, extras=[b"", b"image"])
    assert [digest.hex() for digest in hashes] == [FIRST, IMAGE]


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        lambda tokens: array("I", tokens),
        lambda tokens: array("Q", tokens),
        lambda tokens: memoryview(array("I", tokens)),
        lambda tokens: memoryview(array("I", [7, *tokens]))[1:],
        lambda tokens: memoryview(array("I", [t for token in tokens for t in (token, 5)]))[::2],
        lambda tokens: struct.pack(f"<{len(tokens)}I", *tokens),
        lambda tokens: bytearray(struct.pack(f"<{len(tokens)}I", *tokens)),
        lambda tokens: memoryview(np.array(tokens, "<u4").view(np.uint8).repeat(2))[::2],
        lambda tokens: np.array(tokens, np.uint32),
        lambda tokens: np.array(tokens, np.int64),
        lambda tokens: np.array([tokens, tokens], np.uint32).T[:, 1],
    ],
)
def test_every_form_of_the_same_tokens_has_the_same_hashes(form: Callable[[list[int]], Tokens]) -> None:
    assert [digest.hex() for digest in chain_hashes(START, form(TOKENS), 4)] == [FIRST, SECOND]


def test_a_big_endian_host_computes_the_same_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "big" if sys.byteorder == "little" else "little"
    as_it_lies_there = array("I", TOKENS)
    as_it_lies_there.byteswap()
    monkeypatch.setattr(sys, "byteorder", other)
    if other == "big":
        assert [digest.hex() for digest in chain_hashes(START, as_it_lies_there, 4)] == [FIRST, SECOND]
    assert chain_hashes(START, struct.pack("<9I", *TOKENS), 4)[1].hex() == SECOND


@given(tokens=st.lists(st.integers(0, 2**32 - 1), max_size=40), chunk_tokens=st.integers(1, 9), data=st.data())
def test_chain_hashes_follow_the_definition(tokens: list[int], chunk_tokens: int, data: st.DataObject) -> None:
    chunks = len(tokens) // chunk_tokens
    extras = data.draw(st.lists(st.binary(max_size=32), min_size=chunks, max_size=chunks))
    expected, previous = [], START
    for index, extra in enumerate(extras):
        of_chunk = tokens[index * chunk_tokens : (index + 1) * chunk_tokens]
        previous = sha256(previous + struct.pack(f"<{chunk_tokens}I", *of_chunk) + extra).digest()
        expected.append(previous)
    assert chain_hashes(START, tokens, chunk_tokens, extras) == expected


@given(tokens=st.lists(st.integers(0, 2**32 - 1), max_size=40), cut=st.integers(0, 10))
def test_extending_from_a_hash_equals_hashing_at_once(tokens: list[int], cut: int) -> None:
    whole = chain_hashes(START, tokens, 4)
    cut = min(cut, len(whole))
    parent = whole[cut - 1] if cut else START
    assert whole[:cut] + chain_hashes(parent, tokens[cut * 4 :], 4) == whole


def test_no_full_chunk_means_no_hash() -> None:
    assert chain_hashes(START, [1, 2, 3], 4) == []
    assert chain_hashes(START, [], 4) == []
    assert chain_hashes(START, b"", 4, extras=[]) == []


@pytest.mark.parametrize("bad", [-1, 2**32, 2**70])
def test_a_token_outside_u32_is_named_by_its_position(bad: int) -> None:
    with pytest.raises(ValueError, match="token 2 is outside u32"):
        chain_hashes(START, [1, 2, bad, 4], 4)


def test_a_negative_token_of_a_signed_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="token 3 is outside u32"):
        chain_hashes(START, np.array([1, 2, 3, -1], np.int32), 4)


@pytest.mark.parametrize(
    ("tokens", "cause"),
    [
        (b"12345", "fours"),
        (np.zeros((2, 4), np.uint32), "one-dimensional"),
        (np.zeros((), np.uint32), "one-dimensional"),
        (np.zeros(4, np.float32), "native integers"),
        (np.zeros(4, bool), "native integers"),
        (np.zeros(4, ">u4" if sys.byteorder == "little" else "<u4"), "native integers"),
    ],
)
def test_a_buffer_that_is_not_tokens_is_refused(tokens: Tokens, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        chain_hashes(START, tokens, 4)


@pytest.mark.parametrize("tokens", ["abcd", [1.0, 2.0, 3.0, 4.0], [None] * 4, 7])
def test_tokens_that_are_no_integers_are_a_type_error(tokens: Tokens) -> None:
    with pytest.raises(TypeError):
        chain_hashes(START, tokens, 4)


def test_hashes_and_extras_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="parent must be 32 bytes, got 16"):
        chain_hashes(START[:16], TOKENS, 4)
    with pytest.raises(ValueError, match="space must be 32 bytes, got 64"):
        root(ROOT.encode(), b"")
    with pytest.raises(ValueError, match="1 extras for 2 full chunks"):
        chain_hashes(START, TOKENS, 4, extras=[b""])
    with pytest.raises(ValueError, match="chunk_tokens"):
        chain_hashes(START, TOKENS, 0)
