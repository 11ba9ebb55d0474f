"""Keys into paged KV at other positions than they were rotated for. Kernel: csrc/rotated_scatter.cu; twin: rerotate."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from kvgate.errors import LayoutError
from kvgate.kernels.argument_ring import ArgumentRing
from kvgate.kernels.device import Device, Event, Kernel
from kvgate.kernels.divider import LIMIT, Divider
from kvgate.kernels.pages import ChunkShape, Pages, PagesArgument, Table, packed_tables, widest_access
from kvgate.kernels.quantised_copy import NUMBER_NBYTES

SOURCE = "rotated_scatter.cu"
THREADS = 128
EACH = 4
"""As in the source: pairs, or channels, that a thread moves at a time where it can."""


class MovedArgument(ctypes.Structure):
    """`struct Moved`."""

    _fields_ = (("address", ctypes.c_uint64), ("table", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class RotatedScatterArgument(ctypes.Structure):
    """`struct RotatedScatter`."""

    _fields_ = (
        ("pages", PagesArgument),
        ("chunk", ChunkShape),
        ("rows", Divider),
        ("slots", Divider),
        ("layer_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("row_nbytes", ctypes.c_uint32),
        ("pairs", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("interleaved", ctypes.c_uint32),
        ("together", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("chunks", ctypes.c_uint64),
        ("cosines", ctypes.c_uint64),
        ("sines", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """The keys of one chunk, and where they go.

    address: of the first key, in the GPU's memory
    cosines, sines: of the distance, a float a pair: see kvgate.kernels.rerotate
    """

    address: int
    table: Table
    cosines: Sequence[float]
    sines: Sequence[float]


@dataclass(frozen=True, slots=True)
class RotatedLaunch:
    """A launch but for its addresses on the GPU, which follow from that of `data`."""

    function: str
    argument: RotatedScatterArgument
    data: bytes
    tables_at: int
    chunks_at: int
    cosines_at: int
    sines_at: int


def plan(
    dtype: str,
    tokens: int,
    pages: Pages,
    chunks: Sequence[Moved],
    *,
    layer_stride: int,
    head_stride: int,
    first: int = 0,
    interleaved: bool = False,
) -> RotatedLaunch:
    """One launch that writes the keys of all chunks: every layer and head that `pages` hold, which hold keys only.

    layer_stride, head_stride: bytes between the keys of two layers, and of two heads, in a chunk
    first, interleaved: see kvgate.kernels.rerotate
    Raises LayoutError where they do not fit together.
    """
    number_nbytes = NUMBER_NBYTES.get(dtype, 0)
    if not number_nbytes:
        raise LayoutError(f"keys of {dtype} are not rotated; known: {', '.join(NUMBER_NBYTES)}")
    if pages.parts != 1:
        raise LayoutError(f"pages of {pages.parts} parts, where there shall be keys only")
    pairs = len(chunks[0].cosines) if chunks else 1
    if any(not len(chunk.cosines) == len(chunk.sines) == pairs for chunk in chunks):
        raise LayoutError("chunks whose rotations are not of the same channels")
    channels = pages.row_nbytes // number_nbytes
    if pages.row_nbytes % number_nbytes or not pairs or not 0 <= first <= channels - 2 * pairs:
        raise LayoutError(f"channels {first} to {first + 2 * pairs} are rotated, and a head has {channels}")
    aligned = widest_access(
        (*(chunk.address for chunk in chunks), layer_stride, head_stride, pages.row_nbytes, pages.access_nbytes())
    )
    if aligned < number_nbytes:
        raise LayoutError(f"keys of {dtype} at addresses that are not multiples of their size")
    together = (
        aligned >= EACH * number_nbytes
        and pages.unit_nbytes % (EACH * number_nbytes) == 0
        and not any(count % EACH for count in (pairs, first, channels))
    )
    each = EACH if together else 1
    rows = pages.layers * pages.heads * tokens
    slots = (channels - pairs) // each
    count = len(chunks) * rows * slots
    if count + (1 << 24) >= LIMIT:
        raise LayoutError(f"{count} pairs and channels are more than one launch can count")
    tables, width = packed_tables([chunk.table for chunk in chunks], pages, tokens)
    argument = RotatedScatterArgument(
        pages=pages.argument(number_nbytes * each, width, 0, 0),
        chunk=ChunkShape(Divider.by(1), Divider.by(tokens), Divider.by(pages.heads), Divider.by(1)),
        rows=Divider.by(rows),
        slots=Divider.by(slots),
        layer_stride=layer_stride,
        head_stride=head_stride,
        row_nbytes=pages.row_nbytes,
        pairs=pairs,
        first=first,
        interleaved=interleaved,
        together=together,
        count=count,
    )
    listed = (MovedArgument * len(chunks))(
        *(MovedArgument(chunk.address, number, chunk.table.offset) for number, chunk in enumerate(chunks))
    )
    lines = tables.tobytes()
    parts = [
        array("Q", pages.bases).tobytes(),
        lines + bytes(-len(lines) % 8),
        bytes(listed),
        b"".join(array("f", chunk.cosines).tobytes() for chunk in chunks),
        b"".join(array("f", chunk.sines).tobytes() for chunk in chunks),
    ]
    starts = [sum(len(part) for part in parts[:index]) for index in range(1, len(parts))]
    return RotatedLaunch(f"rotated_scatter_{dtype.lower()}", argument, b"".join(parts), *starts)


class RotatedScatters:
    """Moves keys on one GPU, for one thread at a time. Everything is asynchronous on the stream given.

    blocks: as of PagedCopies
    """

    def __init__(self, device: Device, blocks: int = 0) -> None:
        self._device = device
        self._blocks = blocks or device.multiprocessors * (2048 // THREADS)
        self._ring = ArgumentRing(device)

    def scatter(self, launch: RotatedLaunch, stream: int) -> Event:
        """Write the keys into the pages, which are valid after the event; less what is left out."""
        if not launch.argument.count:
            return self._device.record(stream)
        address = self._ring.upload(launch.data, stream)
        argument = RotatedScatterArgument.from_buffer_copy(launch.argument)
        argument.pages.bases = address
        argument.pages.tables = address + launch.tables_at
        argument.chunks = address + launch.chunks_at
        argument.cosines = address + launch.cosines_at
        argument.sines = address + launch.sines_at
        blocks = min(-(-argument.count // THREADS), self._blocks)
        self._device.launch(Kernel(SOURCE, launch.function), blocks, THREADS, argument, stream)
        return self._ring.launched(stream)

    def close(self) -> None:
        """Wait for what is under way, and give all memory back."""
        self._ring.close()
