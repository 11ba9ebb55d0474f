"""The digests of a body: the same however it arrives, and a damaged block is found by those who read it."""

from __future__ import annotations

import itertools
import random

import pytest
from awscrt import checksums
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.memory import BLOCK_NBYTES, BlockDigest, block_span, combine_blocks, crc64nvme, verify_blocks

BODY = memoryview(random.Random(0).randbytes(3 * BLOCK_NBYTES + 12345))
LENGTHS = (0, 1, BLOCK_NBYTES - 1, BLOCK_NBYTES, BLOCK_NBYTES + 1, 3 * BLOCK_NBYTES, len(BODY))


def digest_of(*pieces: memoryview) -> BlockDigest:
    digest = BlockDigest()
    for piece in pieces:
        digest.update(piece)
    return digest


def test_published_check_value() -> None:
    assert crc64nvme([memoryview(b"1234"), memoryview(b""), memoryview(b"56789")]) == 0xAE8B14860A799888
    assert crc64nvme([]) == 0


@pytest.mark.parametrize("nbytes", LENGTHS)
def test_whole_and_blocks_of_every_length(nbytes: int) -> None:
    digest = digest_of(BODY[:nbytes])
    assert digest.nbytes == nbytes
    assert digest.value == crc64nvme([BODY[:nbytes]]) == combine_blocks(digest.blocks, nbytes)
    assert digest.blocks.tolist() == [
        checksums.crc64nvme(BODY[start : min(start + BLOCK_NBYTES, nbytes)]) for start in range(0, nbytes, BLOCK_NBYTES)
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cuts=st.lists(st.one_of(st.integers(0, len(BODY)), st.sampled_from(LENGTHS)), max_size=12))
def test_digests_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:stop] for start, stop in itertools.pairwise(edges)]
    digest, whole = digest_of(*pieces), digest_of(BODY)
    assert (digest.nbytes, digest.value, digest.blocks) == (len(BODY), whole.value, whole.blocks)


def test_digests_can_be_read_while_the_body_arrives() -> None:
    digest = digest_of(BODY[:100])
    assert digest.blocks.tolist() == [digest.value]
    digest.update(BODY[100:])
    assert digest.value == crc64nvme([BODY])


def test_range_read_verifies_only_the_blocks_that_cover_it() -> None:
    blocks = digest_of(BODY).blocks
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
        assert verify_blocks(views, first, last, len(BODY), blocks) is intact
        assert verify_blocks([BODY[first:last]], first, last, len(BODY), blocks.tolist())


def test_lengths_that_disagree_are_a_mismatch() -> None:
    blocks = digest_of(BODY).blocks
    nbytes = len(BODY)
    assert not verify_blocks([BODY[:-1]], 0, nbytes, nbytes, blocks)
    assert not verify_blocks([BODY, BODY[:1]], 0, nbytes, nbytes, blocks)
    assert not verify_blocks([BODY], 0, nbytes, nbytes, blocks[:-1])
    assert not verify_blocks([BODY[:BLOCK_NBYTES]], 0, BLOCK_NBYTES, nbytes, [*blocks, 0])
    assert verify_blocks([], 0, 0, 0, [])


@pytest.mark.parametrize(("start", "stop"), [(1, BLOCK_NBYTES), (0, 5), (0, len(BODY) + 1), (BLOCK_NBYTES, 0)])
def test_span_that_cuts_a_block_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not whole blocks"):
        verify_blocks([], start, stop, len(BODY), [0] * 4)
