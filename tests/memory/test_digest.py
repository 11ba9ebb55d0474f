"""The digests of a body: the same however it arrives, and a damaged block is found by those who read it.

In C and in Python alike.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
from array import array
from types import ModuleType
from typing import Any

import pytest
from awscrt import checksums
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.memory import BLOCK_NBYTES, block_span, combine_blocks, crc64nvme, digest, plain_digest

try:
    from kvgate import native
except ImportError:
    native = None  # type: ignore[assignment]

needs_native = pytest.mark.skipif(native is None, reason="needs a C compiler and Python's headers, then `make native`")
each = pytest.mark.parametrize(
    "by", [pytest.param(plain_digest, id="Python"), pytest.param(native, id="C", marks=needs_native)]
)

BODY = memoryview(random.Random(0).randbytes(3 * BLOCK_NBYTES + 12345))
LENGTHS = (0, 1, BLOCK_NBYTES - 1, BLOCK_NBYTES, BLOCK_NBYTES + 1, 3 * BLOCK_NBYTES, len(BODY))


def digest_of(by: ModuleType, *pieces: memoryview) -> Any:
    digest = by.BlockDigest()
    for piece in pieces:
        digest.update(piece)
    return digest


@needs_native
def test_what_is_in_c_is_used_where_it_is_there() -> None:
    assert digest.BlockDigest is native.BlockDigest
    assert digest.verify_blocks is native.verify_blocks
    assert digest.extend_crc64nvme is native.crc64nvme
    assert digest.combine_crc64nvme is native.combine_crc64nvme


def test_without_it_all_is_in_python() -> None:
    code = """
import sys
sys.modules["kvgate.native"] = None
from kvgate.memory import digest, plain_digest
for name in ("BlockDigest", "verify_blocks", "extend_crc64nvme", "combine_crc64nvme"):
    assert getattr(digest, name) is getattr(plain_digest, name), name
assert digest.crc64nvme([memoryview(b"123456789")]) == 0xAE8B14860A799888
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_published_check_value() -> None:
    assert crc64nvme([memoryview(b"1234"), memoryview(b""), memoryview(b"56789")]) == 0xAE8B14860A799888
    assert crc64nvme([]) == 0


@each
@pytest.mark.parametrize("nbytes", LENGTHS)
def test_whole_and_blocks_of_every_length(by: ModuleType, nbytes: int) -> None:
    digest = digest_of(by, BODY[:nbytes])
    assert digest.nbytes == nbytes
    assert digest.value == crc64nvme([BODY[:nbytes]]) == combine_blocks(digest.blocks, nbytes)
    assert digest.blocks.tolist() == [
        checksums.crc64nvme(BODY[start : min(start + BLOCK_NBYTES, nbytes)]) for start in range(0, nbytes, BLOCK_NBYTES)
    ]


@each
@settings(max_examples=100, deadline=None, derandomize=True)
@given(cuts=st.lists(st.one_of(st.integers(0, len(BODY)), st.sampled_from(LENGTHS)), max_size=12))
def test_digests_do_not_depend_on_the_pieces(by: ModuleType, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:stop] for start, stop in itertools.pairwise(edges)]
    digest, whole = digest_of(by, *pieces), digest_of(plain_digest, BODY)
    assert (digest.nbytes, digest.value, digest.blocks) == (len(BODY), whole.value, whole.blocks)


@each
def test_digests_can_be_read_while_the_body_arrives(by: ModuleType) -> None:
    digest = digest_of(by, BODY[:100])
    assert digest.blocks == array("Q", [digest.value])
    digest(BODY[100:])
    assert digest.value == checksums.crc64nvme(BODY)


@each
def test_a_digest_takes_bytes_of_any_kind_and_nothing_else(by: ModuleType) -> None:
    digest = digest_of(by, memoryview(b"1234"), memoryview(array("B", b"567")))
    digest.update(memoryview(bytearray(b"89")))
    assert digest.value == 0xAE8B14860A799888
    with pytest.raises(TypeError):
        digest.update(5)
    assert (digest.nbytes, digest.value) == (9, 0xAE8B14860A799888)


@needs_native
def test_a_second_thread_at_the_same_time_is_refused_and_one_that_reads_sees_whole_pieces() -> None:
    body = memoryview(bytes(64 * BLOCK_NBYTES))
    digest = native.BlockDigest()
    values = {digest_of(plain_digest, body[: n * len(body)]).value for n in range(2)}
    refused = done = False

    def add() -> None:
        nonlocal done
        try:
            digest.update(body)
        finally:
            done = True

    thread = threading.Thread(target=add)
    thread.start()
    while not done and not refused:
        assert digest.nbytes in (0, len(body))
        assert digest.value in values
        assert len(digest.blocks) in (0, 64)
        try:
            digest.update(body[:0])
        except RuntimeError as error:
            refused = "one thread at a time" in str(error)
    thread.join()
    assert (digest.nbytes, len(digest.blocks)) == (len(body), 64)


@each
def test_range_read_verifies_only_the_blocks_that_cover_it(by: ModuleType) -> None:
    blocks = digest_of(plain_digest, BODY).blocks
    damaged = bytearray(BODY)
    damaged[BLOCK_NBYTES + 77] ^= 1
    for start, stop, intact in (
        (0, 1, True),
        (0, BLOCK_NBYTES + 1, False),
        (BLOCK_NBYTES, BLOCK_NBYTES + 1, False),
        (2 * BLOCK_NBYTES + 5, 2 * BLOCK_NBYTES + 6, True),
        (3 * BLOCK_NBYTES, len(BODY), True),
        (0, len(BODY), False),
    ):
        first, last = block_span(start, stop, len(BODY))
        assert first <= start < stop <= last
        middle = (first + last) // 2
        views = [memoryview(damaged)[first:middle], memoryview(damaged)[middle:last]]
        assert by.verify_blocks(views, first, last, len(BODY), blocks) is intact
        assert by.verify_blocks([BODY[first:last]], first, last, len(BODY), blocks.tolist())


@each
def test_views_of_any_number_and_length_are_verified(by: ModuleType) -> None:
    blocks = digest_of(plain_digest, BODY).blocks
    pieces = [BODY[start : start + 7777] for start in range(0, len(BODY), 7777)]
    pieces.insert(70, BODY[:0])
    assert by.verify_blocks(iter(pieces), 0, len(BODY), len(BODY), blocks)
    pieces[-1] = memoryview(bytes(len(pieces[-1])))
    assert not by.verify_blocks(pieces, 0, len(BODY), len(BODY), blocks)


@each
def test_lengths_that_disagree_are_a_mismatch(by: ModuleType) -> None:
    verify_blocks = by.verify_blocks
    blocks = digest_of(plain_digest, BODY).blocks
    nbytes = len(BODY)
    assert not verify_blocks([BODY[:-1]], 0, nbytes, nbytes, blocks)
    assert not verify_blocks([BODY, BODY[:1]], 0, nbytes, nbytes, blocks)
    assert not verify_blocks([BODY], 0, nbytes, nbytes, blocks[:-1])
    assert not verify_blocks([BODY[:BLOCK_NBYTES]], 0, BLOCK_NBYTES, nbytes, [*blocks, 0])
    assert verify_blocks([], 0, 0, 0, [])


@pytest.mark.parametrize(("start", "stop"), [(1, BLOCK_NBYTES), (0, 5), (0, len(BODY) + 1), (BLOCK_NBYTES, 0)])
@each
def test_span_that_cuts_a_block_is_refused(by: ModuleType, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{start}, {stop}\) are not whole blocks of a body of {len(BODY)} bytes"):
        by.verify_blocks([], start, stop, len(BODY), [0] * 4)


@each
def test_what_is_no_digest_or_no_view_is_refused(by: ModuleType) -> None:
    with pytest.raises((OverflowError, TypeError)):
        by.verify_blocks([BODY[:5]], 0, 5, 5, [-1])
    with pytest.raises((TypeError, ValueError)):
        by.verify_blocks([BODY[:5]], 0, 5, 5, ["0"])
    with pytest.raises(TypeError):
        by.verify_blocks([5], 0, 5, 5, [0])
    with pytest.raises(TypeError):
        by.verify_blocks(None, 0, 5, 5, [0])
