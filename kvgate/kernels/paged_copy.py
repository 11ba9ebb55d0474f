"""Chunks out of paged KV (gather), and back into it (scatter): bytes as they are. Kernels: csrc/paged_copy.cu."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError
from kvgate.kernels.argument_ring import ArgumentRing
from kvgate.kernels.device import Device, Event, Kernel
from kvgate.kernels.divider import LIMIT, Divider
from kvgate.kernels.pages import (
    ChunkShape,
    Pages,
    PagesArgument,
    Rows,
    Table,
    check_chunk,
    chunk_shape,
    packed_tables,
    widest_access,
)
from kvgate.kernels.pieces import Extent, pieces

SOURCE = "paged_copy.cu"
THREADS = 256
IN_FLIGHT = 4
"""As in the source: accesses that a thread has under way at a time."""

BLOCKS_A_MULTIPROCESSOR = 8
"""Enough blocks of threads to keep a multiprocessor's loads under way; more would only wait for their turn."""


class PieceArgument(ctypes.Structure):
    """`struct Piece`."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("table", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    )


class PagedCopyArgument(ctypes.Structure):
    """`struct PagedCopy`."""

    _fields_ = (
        ("pages", PagesArgument),
        ("chunk", ChunkShape),
        ("tiles", Divider),
        ("piece_count", ctypes.c_uint32),
        ("pieces", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """One chunk: where its tensor lies, from the first byte on, and in which blocks its tokens are."""

    extents: Sequence[Extent]
    table: Table


@dataclass(frozen=True, slots=True)
class Selection:
    """The layers and heads of a chunk that the pages hold, counted as the chunk counts them."""

    layers: range
    heads: range

    @classmethod
    def all_of(cls, layout: Layout) -> Selection:
        return cls(range(layout.layers), range(layout.kv_heads))


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch but for its addresses on the GPU, which follow from that of `data`.

    access_nbytes: what one access moves: 16, or as much less as an address or a stride makes it
    data:          base addresses, block tables, pieces
    """

    access_nbytes: int
    argument: PagedCopyArgument
    data: bytes
    tables_at: int
    pieces_at: int
    work: int


def plan(layout: Layout | Rows, pages: Pages, chunks: Sequence[Placed], selection: Selection) -> Launch:
    """One launch that moves `selection` of all chunks, which `pages` hold and nothing else.

    layout: of whole chunks, or of whatever tensor their extents hold
    Raises LayoutError where the chunks, the tables and the pages do not fit together.
    """
    rows = layout if isinstance(layout, Rows) else Rows.of(layout)
    check_chunk(rows, pages, selection.layers, selection.heads)
    tables, width = packed_tables([chunk.table for chunk in chunks], pages, rows.tokens)
    runs = list(rows.runs(selection.layers, selection.heads))
    cut = [(number, piece) for number, chunk in enumerate(chunks) for piece in pieces(chunk.extents, runs)]
    access = widest_access(number for _, piece in cut for number in piece)
    access = min(access, pages.access_nbytes())
    shape = chunk_shape(rows, access)
    tile = THREADS * IN_FLIGHT
    tiles = max((-(-piece.nbytes // (access * tile)) for _, piece in cut), default=1)
    if tiles * len(cut) >= LIMIT:
        raise LayoutError(f"{len(cut)} pieces of up to {tiles} tiles are more than one launch can count")
    argument = PagedCopyArgument(
        pages=pages.argument(access, width, selection.layers.start, selection.heads.start),
        chunk=shape,
        tiles=Divider.by(tiles),
        piece_count=len(cut),
    )
    listed = (PieceArgument * len(cut))(
        *(
            PieceArgument(
                piece.address, piece.start // access, piece.nbytes // access, number, chunks[number].table.offset
            )
            for number, piece in cut
        )
    )
    bases = array("Q", pages.bases).tobytes()
    lines = tables.tobytes()
    lines += bytes(-len(lines) % 8)
    return Launch(
        access, argument, bases + lines + bytes(listed), len(bases), len(bases) + len(lines), tiles * len(cut)
    )


class PagedCopies:
    """Gathers and scatters on one GPU, for one thread at a time. Everything is asynchronous on the stream given.

    blocks: the most blocks of threads of a launch; few leave the GPU's multiprocessors to the engine where the link,
            and not they, sets the pace. 0: as many as the GPU runs at the same time
    """

    def __init__(self, device: Device, blocks: int = 0) -> None:
        self._device = device
        self._blocks = blocks or device.multiprocessors * BLOCKS_A_MULTIPROCESSOR
        self._ring = ArgumentRing(device)

    def gather(self, launch: Launch, stream: int) -> Event:
        """Copy out of the pages into the chunks, which are valid after the event; less what is left out."""
        return self._run("gather", launch, stream)

    def scatter(self, launch: Launch, stream: int) -> Event:
        """Copy out of the chunks into the pages, which are valid after the event; less what is left out."""
        return self._run("scatter", launch, stream)

    def close(self) -> None:
        """Wait for what is under way, and give all memory back."""
        self._ring.close()

    def _run(self, verb: str, launch: Launch, stream: int) -> Event:
        if not launch.work:
            return self._device.record(stream)
        address = self._ring.upload(launch.data, stream)
        argument = PagedCopyArgument.from_buffer_copy(launch.argument)
        argument.pages.bases = address
        argument.pages.tables = address + launch.tables_at
        argument.pieces = address + launch.pieces_at
        kernel = Kernel(SOURCE, f"{verb}_{launch.access_nbytes}")
        self._device.launch(kernel, min(launch.work, self._blocks), THREADS, argument, stream)
        return self._ring.launched(stream)


# --- the twin --------------------------------------------------------------------------------------------------------


def gather_twin(rows: Any, table: Table, chunk: Any) -> None:
    """What `gather` does to one chunk, in NumPy.

    rows:  uint8 [layers, parts, blocks, heads, block_tokens, row bytes]: the pages
    chunk: uint8 [layers, parts, heads, tokens, row bytes]: the selection of it that the pages hold, written
    """
    for token, block, place in _places(rows.shape[4], table, chunk.shape[3]):
        chunk[:, :, :, token] = rows[:, :, block, :, place]


def scatter_twin(rows: Any, table: Table, chunk: Any) -> None:
    """What `scatter` does to the pages, in NumPy; as `gather_twin`, with the pages written."""
    for token, block, place in _places(rows.shape[4], table, chunk.shape[3]):
        rows[:, :, block, :, place] = chunk[:, :, :, token]


def _places(block_tokens: int, table: Table, tokens: int) -> list[tuple[int, int, int]]:
    places = [(token, *divmod(token + table.offset, block_tokens)) for token in range(tokens)]
    return [(token, table.blocks[line], place) for token, line, place in places if table.blocks[line] >= 0]
