from __future__ import annotations

import base64
import hashlib

import botocore.httpchecksum as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidArgument, UnsupportedOperation
from kvgate.s3 import checksums


@pytest.mark.parametrize("algorithm", checksums.ALGORITHMS)
@given(pieces=st.lists(st.binary(max_size=100), max_size=5))
def test_any_pieces_give_the_digest_of_the_whole(algorithm: str, pieces: list[bytes]) -> None:
    checksum = checksums.new(algorithm)
    for piece in pieces:
        checksum.update(memoryview(bytearray(piece)))
    whole = b"".join(pieces)
    if algorithm == "md5":
        expected = base64.b64encode(hashlib.md5(whole).digest()).decode()
    else:
        expected = oracle._CHECKSUM_CLS[algorithm]().handle(whole)
    assert checksums.encode(checksum.digest()) == expected
    assert checksums.decode("h", algorithm, expected) == checksum.digest()


def test_the_stores_number_is_the_header_value() -> None:
    checksum = checksums.new("crc64nvme")
    checksum.update(memoryview(b"123456789"))
    number = int.from_bytes(checksum.digest(), "big")
    assert number == 0xAE8B14860A799888
    assert checksums.encode_crc64nvme(number) == checksums.encode(checksum.digest())


@pytest.mark.parametrize("value", ["", "AAAA", "AAAAAA==x", "AAAAA===", "ÄÄÄÄÄÄ==", "AAAAAAAAAAA="])
def test_what_is_no_digest_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument):
        checksums.decode("x-amz-checksum-crc32", "crc32", value)


def test_headers_name_their_algorithm() -> None:
    assert checksums.algorithm_of("x-amz-checksum-crc32c") == "crc32c"
    for other in ("content-md5", "x-amz-checksum-mode", "x-amz-checksum-type", "x-amz-checksum-algorithm"):
        assert checksums.algorithm_of(other) is None
    with pytest.raises(UnsupportedOperation, match="xxhash3"):
        checksums.algorithm_of("x-amz-checksum-xxhash3")
