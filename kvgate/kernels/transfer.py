"""Chunks between host memory and an engine's pages, layer after layer, beside what the engine computes.

Invariants
1. The engine's streams are waited for by no thread, and wait themselves only for the events that they are given.
2. A half of the staging buffer is written again only after what read it last, in the order of the streams.
3. Events come in the order of the layers: while one layer is scattered, the next one is on the link.
4. All of a transfer is checked before any of it is begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError
from kvgate.kernels.device import Copy, Device, Event
from kvgate.kernels.paged_copy import Launch, PagedCopies, Placed, Selection, plan
from kvgate.kernels.pages import Pages, Rows
from kvgate.kernels.pieces import Extent, pieces
from kvgate.kernels.routes import Routes

DIRECT_BLOCKS = 16
"""Blocks of threads of a launch that reaches over the link: more would wait for the link, in the model's way."""


class Moved(NamedTuple):
    """Some layers of all chunks, counted as the chunk counts them, and the event that they have been moved."""

    layers: range
    event: Event


class Step(NamedTuple):
    """What goes through one half of the staging buffer at a time."""

    layers: range
    chunks: range


class Staged(NamedTuple):
    """A step as it is carried out: copies on the link, and a launch between the buffer and the pages."""

    layers: range
    half: int
    copies: list[Copy]
    launch: Launch


class Transfers:
    """Loads and stores on one GPU, for one thread at a time.

    staging_nbytes: of the GPU's memory, in two halves; each must hold one layer of one chunk
    """

    def __init__(self, device: Device, routes: Routes, staging_nbytes: int) -> None:
        self._device = device
        self._routes = routes
        self._half_nbytes = staging_nbytes // 512 * 256
        self._staging = device.allocate(2 * self._half_nbytes)
        self._read: list[Event | None] = [None, None]  # of each half, the end of what read it last
        self._turn = 0
        self._link = device.open_stream()
        self._kernels = device.open_stream()
        self._wide = PagedCopies(device)
        self._narrow = PagedCopies(device, DIRECT_BLOCKS)

    def load(
        self,
        layout: Layout,
        pages: Pages,
        chunks: Sequence[Placed],
        selection: Selection,
        after: Event | None = None,
        layers_at_once: int = 0,
    ) -> list[Moved]:
        """Fill the pages from chunks in registered host memory, in the order of the layers. Returns before it has.

        after:          what the engine has submitted that still uses the pages
        layers_at_once: the most layers to an event; 0 for as many as are best moved together
        The chunks' memory is read until the last event. Raises LayoutError.
        """
        if self._is_direct(self._routes.load, layout, chunks, selection):
            return self._direct("scatter", layout, pages, chunks, selection, after, layers_at_once)
        moved: list[Moved] = []
        staged = self._staged(layout, pages, chunks, selection, layers_at_once, into_buffer=True)
        if after is not None:
            self._device.wait(self._kernels, after)
        for step in staged:
            if (read := self._read[step.half]) is not None:
                self._device.wait(self._link, read)
            self._device.copy(step.copies, self._link)
            self._device.wait(self._kernels, self._device.record(self._link))
            self._read[step.half] = event = self._wide.scatter(step.launch, self._kernels)
            _add(moved, step.layers, event)
        return moved

    def store(
        self,
        layout: Layout,
        pages: Pages,
        chunks: Sequence[Placed],
        selection: Selection,
        after: Event | None = None,
        layers_at_once: int = 0,
    ) -> list[Moved]:
        """Fill chunks in registered host memory from the pages, in the order of the layers. Returns before it has.

        after: what the engine has submitted that writes the pages; see `load` for the rest
        The pages are read until the last event; what is in host memory is valid after the event of its layer.
        Raises LayoutError, also where a block is to be left out: a chunk that is stored is whole.
        """
        if any(min(chunk.table.blocks, default=0) < 0 for chunk in chunks):
            raise LayoutError("a chunk that is stored has all of its blocks")
        if self._is_direct(self._routes.store, layout, chunks, selection):
            return self._direct("gather", layout, pages, chunks, selection, after, layers_at_once)
        moved: list[Moved] = []
        staged = self._staged(layout, pages, chunks, selection, layers_at_once, into_buffer=False)
        if after is not None:
            self._device.wait(self._kernels, after)
        for step in staged:
            if (read := self._read[step.half]) is not None:
                self._device.wait(self._kernels, read)
            self._device.wait(self._link, self._wide.gather(step.launch, self._kernels))
            self._device.copy(step.copies, self._link)
            self._read[step.half] = event = self._device.record(self._link)
            _add(moved, step.layers, event)
        return moved

    def close(self) -> None:
        """Wait for what is under way, and give everything back."""
        for stream in (self._link, self._kernels):
            self._device.record(stream).wait()
            self._device.close_stream(stream)
        self._wide.close()
        self._narrow.close()
        self._device.free(self._staging)

    @staticmethod
    def _is_direct(limit_nbytes: int, layout: Layout, chunks: Sequence[Placed], selection: Selection) -> bool:
        return len(chunks) * layout.head_slices(selection.layers, selection.heads).nbytes <= limit_nbytes

    def _direct(
        self,
        verb: str,
        layout: Layout,
        pages: Pages,
        chunks: Sequence[Placed],
        selection: Selection,
        after: Event | None,
        layers_at_once: int,
    ) -> list[Moved]:
        launches = [
            (layers, plan(layout, _of(pages, layers, selection), chunks, Selection(layers, selection.heads)))
            for layers in _parts(selection.layers, layers_at_once or len(selection.layers))
        ]
        if after is not None:
            self._device.wait(self._kernels, after)
        run = self._narrow.scatter if verb == "scatter" else self._narrow.gather
        return [Moved(layers, run(launch, self._kernels)) for layers, launch in launches]

    def _staged(
        self,
        layout: Layout,
        pages: Pages,
        chunks: Sequence[Placed],
        selection: Selection,
        layers_at_once: int,
        *,
        into_buffer: bool,
    ) -> list[Staged]:
        found = []
        layer_nbytes = layout.nbytes // layout.layers
        for step in steps(layer_nbytes, selection.layers, len(chunks), self._half_nbytes, layers_at_once):
            self._turn = 1 - self._turn
            part = Selection(step.layers, selection.heads)
            span = layout.layer_range(step.layers.start, step.layers.stop)
            begin = self._staging + self._turn * self._half_nbytes
            copies: list[Copy] = []
            placed = []
            for index, chunk in enumerate(chunks[step.chunks.start : step.chunks.stop]):
                # The tensor as if all of it lay in the buffer: no other byte of it than those of the step is touched.
                tensor = begin + index * span.nbytes - span.start
                placed.append(Placed([Extent(tensor, layout.nbytes)], chunk.table))
                for piece in pieces(chunk.extents, Rows.of(layout).runs(part.layers, part.heads)):
                    there, here = tensor + piece.start, piece.address
                    copies.append(Copy(there, here, piece.nbytes) if into_buffer else Copy(here, there, piece.nbytes))
            launch = plan(layout, _of(pages, step.layers, selection), placed, part)
            found.append(Staged(step.layers, self._turn, copies, launch))
        return found


def steps(
    layer_nbytes: int, layers: range, chunk_count: int, room_nbytes: int, layers_at_once: int = 0
) -> Iterator[Step]:
    """What to move at a time, in the order of the layers: layers of all chunks, or of some where not all have room.

    layer_nbytes: of one chunk. Raises LayoutError where not even one has room.
    """
    if layer_nbytes > room_nbytes:
        raise LayoutError(f"half of a staging buffer has {room_nbytes} bytes, a layer of a chunk has {layer_nbytes}")
    if not chunk_count:
        return
    count = room_nbytes // (layer_nbytes * chunk_count)
    for part in _parts(layers, max(1, min(count, layers_at_once or count))):
        for some in _parts(range(chunk_count), chunk_count if count else room_nbytes // layer_nbytes):
            yield Step(part, some)


def _parts(whole: range, count: int) -> Iterator[range]:
    for first in range(whole.start, whole.stop, count):
        yield range(first, min(first + count, whole.stop))


def _of(pages: Pages, layers: range, selection: Selection) -> Pages:
    first = selection.layers.start
    return pages.of_layers(range(layers.start - first, layers.stop - first))


def _add(moved: list[Moved], layers: range, event: Event) -> None:
    """Add a step; one event does for the steps of the same layers, because they end in their order."""
    if moved and moved[-1].layers == layers:
        moved.pop()
    moved.append(Moved(layers, event))
