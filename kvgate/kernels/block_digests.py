"""The crc64nvme of each MiB of chunks on a GPU, so that who copied one there can hold it against its digests.

Kernel: csrc/block_digests.cu. Its twin is `kvgate.memory.digest.BlockDigest`.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from kvgate.chunk.layout import ByteRange
from kvgate.errors import LayoutError
from kvgate.kernels.argument_ring import ArgumentRing
from kvgate.kernels.device import Copy, Device, Event, Kernel
from kvgate.kernels.divider import LIMIT, Divider
from kvgate.kernels.pieces import Extent, pieces
from kvgate.memory.digest import BLOCK_NBYTES

SOURCE = "block_digests.cu"
THREADS = 256
BLOCKS_A_MULTIPROCESSOR = 4
"""Each has tables of 16 KiB in shared memory."""

_UNIT_NBYTES = 1024
_POLYNOMIAL = 0x9A6C9329AC4BC9B5
_WORD_NBYTES = 8


class Lying(NamedTuple):
    """Where an object lies on the GPU: the extents from its first byte on, which may be longer than it is."""

    extents: Sequence[Extent]
    nbytes: int


class RunArgument(ctypes.Structure):
    """`struct Run`."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("after", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class BlockDigestsArgument(ctypes.Structure):
    """`struct BlockDigests`."""

    _fields_ = (
        ("tiles", Divider),
        ("run_count", ctypes.c_uint32),
        ("powers", ctypes.c_uint64),
        ("runs", ctypes.c_uint64),
        ("digests", ctypes.c_uint64),
    )


class BlockDigests:
    """Takes digests on one GPU, for one thread at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ring = ArgumentRing(device)
        self._room = 0
        self._there = self._here = 0

    def take(self, objects: Sequence[Lying], stream: int) -> list[array[int]]:
        """The crc64nvme of each block of each object, in the order of the stream; waits for it. Raises DeviceError."""
        counts = [-(-each.nbytes // BLOCK_NBYTES) for each in objects]
        if not sum(counts):
            return [array("Q") for _ in objects]
        nbytes = sum(counts) * _WORD_NBYTES
        self._make_room(nbytes)
        self._device.clear(self._there, nbytes, stream)
        self._launch(_runs(objects), stream).wait()
        self._device.copy([Copy(self._here, self._there, nbytes)], stream)
        self._device.record(stream).wait()
        found = array("Q", ctypes.string_at(self._here, nbytes))
        ends = [sum(counts[: index + 1]) for index in range(len(counts))]
        return [found[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def close(self) -> None:
        """Give all memory back."""
        self._ring.close()
        self._free()

    def _launch(self, runs: list[RunArgument], stream: int) -> Event:
        powers = _powers()
        address = self._ring.upload(powers + bytes((RunArgument * len(runs))(*runs)), stream)
        tiles = -(-max(run.nbytes for run in runs) // (_UNIT_NBYTES * THREADS))
        work = tiles * len(runs)
        if work >= LIMIT:
            raise LayoutError(f"{len(runs)} runs of up to {tiles} tiles are more than one launch can count")
        argument = BlockDigestsArgument(Divider.by(tiles), len(runs), address, address + len(powers), self._there)
        blocks = min(work, self._device.multiprocessors * BLOCKS_A_MULTIPROCESSOR)
        self._device.launch(Kernel(SOURCE, "digest_blocks"), blocks, THREADS, argument, stream)
        return self._ring.launched(stream)

    def _make_room(self, nbytes: int) -> None:
        if nbytes > self._room:
            self._free()
            room = max(4096, 1 << (nbytes - 1).bit_length())
            self._there, self._here = self._device.allocate(room), self._device.allocate_host(room)
            self._room = room

    def _free(self) -> None:
        there, here, self._there, self._here, self._room = self._there, self._here, 0, 0, 0
        if there:
            self._device.free(there)
        if here:
            self._device.free_host(here)


def _runs(objects: Sequence[Lying]) -> list[RunArgument]:
    """Every run of bytes that lies in one block of an object and in one of its extents."""
    runs, first = [], 0
    for extents, nbytes in objects:
        blocks = [ByteRange(at, min(at + BLOCK_NBYTES, nbytes)) for at in range(0, nbytes, BLOCK_NBYTES)]
        for piece in pieces(extents, blocks):
            index = piece.start // BLOCK_NBYTES
            after = blocks[index].stop - piece.start - piece.nbytes
            runs.append(RunArgument(piece.address, piece.nbytes, first + index, after, 0))
        first += len(blocks)
    return runs


@functools.cache
def _powers() -> bytes:
    """x^8 to the i-th power and to the (_UNIT_NBYTES * i)-th, modulo the polynomial, for i below _UNIT_NBYTES."""
    small = array("Q", [1 << 63])
    while len(small) <= _UNIT_NBYTES:
        small.append(_times(small[-1], 1 << 55))
    large = array("Q", [1 << 63])
    while len(large) < _UNIT_NBYTES:
        large.append(_times(large[-1], small[_UNIT_NBYTES]))
    return small[:_UNIT_NBYTES].tobytes() + large.tobytes()


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo the CRC's. Bits are reflected: the highest one is x^0."""
    result = 0
    while a:
        if a >> 63:
            result ^= b
        a = a << 1 & 0xFFFF_FFFF_FFFF_FFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
