"""Digests of what lies on a GPU are those that the CPU takes of the same bytes."""

from __future__ import annotations

import ctypes
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.errors import LayoutError
from kvgate.kernels.block_digests import BlockDigests, Lying
from kvgate.kernels.pieces import Extent
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest
from tests.kernels.devices import examples, make_device, memory

MiB = 1 << 20


def digests_of(body: bytes) -> list[int]:
    digest = BlockDigest()
    digest.update(memoryview(body))
    return list(digest.blocks)


def lying(body: bytes, cuts: list[int], offset: int, kept: list[object]) -> Lying:
    """The body in memory that the device reaches, in pieces that lie apart; the last extent longer than its bytes."""
    extents = []
    bounds = [0, *sorted({min(cut, len(body)) for cut in cuts}), len(body)]
    for start, stop in pairwise(bounds):
        place = memory(offset + stop - start + 64)
        place[offset : offset + stop - start] = np.frombuffer(body[start:stop], np.uint8)
        kept.append(place)
        extents.append(Extent(place.ctypes.data + offset, stop - start + (64 if stop == len(body) else 0)))
    return Lying(extents, len(body))


def check(bodies: list[bytes], cuts: list[int], offset: int) -> None:
    device, kept = make_device(), []
    digests = BlockDigests(device)
    stream = device.open_stream()
    objects = [lying(body, cuts, offset, kept) for body in bodies]
    for _ in range(2):  # what the first one leaves behind is not added to
        assert [list(each) for each in digests.take(objects, stream)] == [digests_of(body) for body in bodies]
    digests.close()
    assert not device.allocations


SIZES = [0, 1, 7, 8, 9, 1023, 1024, 1025, 4096, 70_001, MiB - 1, MiB, MiB + 1, 3 * MiB + 77]


@pytest.mark.parametrize("nbytes", SIZES)
def test_any_length(nbytes: int) -> None:
    check([random.Random(nbytes).randbytes(nbytes)], [], 0)


@settings(max_examples=examples(60), deadline=None)
@given(
    sizes=st.lists(st.sampled_from(SIZES) | st.integers(0, 2 * MiB), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 2 * MiB) | st.integers(1, 100).map(lambda page: 4096 * page), max_size=4),
    offset=st.integers(0, 16),
    seed=st.integers(0, 2**32),
)
def test_any_place(sizes: list[int], cuts: list[int], offset: int, seed: int) -> None:
    generator = random.Random(seed)
    check([generator.randbytes(nbytes) for nbytes in sizes], cuts, offset)


def test_every_bit_counts() -> None:
    device, kept = make_device(), []
    digests = BlockDigests(device)
    stream = device.open_stream()
    body = random.Random(1).randbytes(2 * MiB + 4096)
    place = lying(body, [], 0, kept)
    (right,) = digests.take([place], stream)
    for at in [0, 1, 1023, 1024, MiB - 1, MiB, 2 * MiB + 4095]:
        byte = ctypes.c_uint8.from_address(place.extents[0].address + at)
        byte.value ^= 1 << at % 8
        (found,) = digests.take([place], stream)
        assert [index for index in range(3) if found[index] != right[index]] == [at // BLOCK_NBYTES]
        byte.value ^= 1 << at % 8
    digests.close()


def test_memory_that_ends_before_the_object_is_refused() -> None:
    device = make_device()
    digests = BlockDigests(device)
    with pytest.raises(LayoutError):
        digests.take([Lying([Extent(4096, 100)], 101)], device.open_stream())
    digests.close()
    assert not device.allocations
