"""SHA-256 and HMAC in C are those of hashlib, by the processor's instructions and without them."""

from __future__ import annotations

import hashlib
import hmac
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")

BODY = random.Random(0).randbytes(1 << 16)


def test_published_value() -> None:
    """FIPS 180-4's example of one block."""
    digest = bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert native.sha256(b"abc") == native.sha256_portable(b"abc") == digest


def test_every_short_length() -> None:
    for nbytes in range(301):
        piece = BODY[1 : 1 + nbytes]
        digest = hashlib.sha256(piece).digest()
        assert native.sha256(piece) == digest, nbytes
        assert native.sha256_portable(piece) == digest, nbytes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 700), max_size=12), nbytes=st.integers(0, 700))
def test_any_pieces(cuts: list[int], nbytes: int) -> None:
    edges = [0, *sorted(min(cut, nbytes) for cut in cuts), nbytes]
    pieces = [BODY[start:stop] for start, stop in pairwise(edges)]
    assert native.sha256(*pieces) == hashlib.sha256(BODY[:nbytes]).digest()


def test_more_than_a_state_counts_in_32_bits() -> None:
    """The length in bits fills more than four bytes: 600 MB, of one MB over and over."""
    piece = bytes(1 << 20)
    expected = hashlib.sha256()
    for _ in range(600):
        expected.update(piece)
    assert native.sha256(*[piece] * 600) == expected.digest()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(key=st.binary(max_size=200), data=st.binary(max_size=200))
def test_hmac(key: bytes, data: bytes) -> None:
    assert native.hmac_sha256(key, data) == hmac.digest(key, data, "sha256")


@pytest.mark.parametrize("call", [lambda: native.sha256("text"), lambda: native.hmac_sha256(b"key")])
def test_what_is_not_bytes_is_refused(call: object) -> None:
    with pytest.raises(TypeError):
        call()  # type: ignore[operator]
