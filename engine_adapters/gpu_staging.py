"""Chunks out of an engine's pages on a GPU and into them, in one launch where torch makes many copies.

A GpuPlan moves the same bytes as `engine_adapters.staging.Plan`, which checks the pages for it. It also goes straight
to and from page-locked host memory, and through the lossy codecs: `encode` and `decode`. Needs the extra `gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine_adapters.layouts import Pages
from engine_adapters.staging import plan as torch_plan
from kvgate.chunk.form import stored_form
from kvgate.chunk.layout import Layout
from kvgate.codec.lossy import lossy_codec
from kvgate.errors import LayoutError
from kvgate.kernels import paged_copy, quantised_copy
from kvgate.kernels.device import Device, Event
from kvgate.kernels.paged_copy import PagedCopies, Placed, Selection
from kvgate.kernels.pages import Pages as DevicePages
from kvgate.kernels.pages import Rows, Table
from kvgate.kernels.pieces import Extent
from kvgate.kernels.quantised_copy import Encoded, Kind, Outcome, QuantisedCopies

Blocks = Sequence[Sequence[int]]
"""Block ids of each chunk, in the order of its tokens."""

Places = Sequence[int | Sequence[Extent]]
"""Of each chunk the address of all its bytes, or where they lie in order; on the GPU, or in registered host memory."""

_INT4 = {-1: Kind.INT4_CHANNELS, -2: Kind.INT4_TOKENS}


def device_pages(pages: Sequence[Pages]) -> DevicePages:
    """The same pages as addresses and strides. Raises LayoutError where layers have different strides."""
    first = pages[0].views[0]
    strides = _strides(first)
    for each in pages:
        for view in each.views:
            if _strides(view) != strides:
                raise LayoutError(f"layers of strides {strides} and {_strides(view)} are not moved in one launch")
    block, head, token = strides
    return DevicePages(
        bases=tuple(view.data_ptr() for each in pages for view in each.views),
        parts=pages[0].parts,
        heads=pages[0].kv_heads,
        blocks=min(int(each.views[0].shape[0]) for each in pages),
        block_tokens=pages[0].page_tokens,
        row_nbytes=pages[0].head_dim * first.element_size(),
        block_stride=block,
        head_stride=head,
        token_stride=token,
    )


def _strides(view: Any) -> tuple[int, ...]:
    """In bytes, of pages, heads and tokens; 0 where there is one, whose stride says nothing."""
    return tuple(
        stride * view.element_size() if size > 1 else 0
        for stride, size in zip(view.stride()[:3], view.shape[:3], strict=True)
    )


class GpuPlan:
    """How chunks of one layout, or a rank's slice of them, lie in one engine's pages on a GPU.

    For one thread at a time. Everything is asynchronous on `stream`, the handle of a CUDA stream.
    layout, pages, heads: see `engine_adapters.staging.plan`, which raises LayoutMismatch

    slice: the layout of kv[layers, :, heads], what a chunk is for this rank
    """

    def __init__(
        self, device: Device, layout: Layout, pages: Sequence[Pages], heads: range | None = None, threads: int = 128
    ) -> None:
        self._blocks_per_chunk = torch_plan(layout, pages, heads).blocks_per_chunk
        first = pages[0]
        self.slice = Layout(len(pages), first.parts, first.kv_heads, layout.tokens, layout.head_dim, layout.dtype)
        self.packing = first.packing
        self._pages = device_pages(pages)
        self._pages_per_block = first.pages_per_block
        self._copies = PagedCopies(device)
        self._quantised = QuantisedCopies(device, threads=threads)

    def gather(self, blocks: Blocks, out: Places, stream: int, layers: range | None = None) -> Event:
        """Copy chunks out of the pages.

        out:    for each chunk the place of slice.nbytes bytes
        layers: indices into the plan's pages; only their bytes are written. All of them by default.
        Raises LayoutError.
        """
        _check_whole(blocks)
        return self._copies.gather(self._launch(blocks, out, layers), stream)

    def scatter(self, blocks: Blocks, source: Places, stream: int, layers: range | None = None) -> Event:
        """Copy chunks into the pages, as `gather` out of them; a block of -1 is left out. Raises LayoutError."""
        _check_unique(blocks)
        return self._copies.scatter(self._launch(blocks, source, layers), stream)

    def encode(self, codec: str, blocks: Blocks, out: Sequence[int], stream: int) -> list[Event | Outcome]:
        """Write chunks as a lossy codec keeps them, all of the plan's layers.

        out: for each chunk the address, on the GPU, of what the codec's form of `slice` has after the header
        What comes back is to be waited for, and the outcomes asked: one that is not good means that the KV has a NaN or
        an infinity, which the codec does not keep. Raises LayoutError.
        """
        _check_whole(blocks)
        return self._coded("encode", codec, blocks, out, stream)

    def decode(self, codec: str, blocks: Blocks, source: Sequence[int], stream: int) -> list[Event | Outcome]:
        """Write the pages from chunks as a lossy codec keeps them; see `encode`. A block of -1 is left out.

        An outcome that is not good means that the codec never writes such bytes. Some tokens were not written then.
        """
        _check_unique(blocks)
        return self._coded("decode", codec, blocks, source, stream)

    def close(self) -> None:
        """Wait for what is under way, and give all memory of the GPU back."""
        self._copies.close()
        self._quantised.close()

    def _launch(self, blocks: Blocks, places: Places, layers: range | None) -> paged_copy.Launch:
        wanted = range(self.slice.layers) if layers is None else layers
        if wanted.step != 1 or not 0 <= wanted.start < wanted.stop <= self.slice.layers:
            raise LayoutError(f"layers {wanted.start}:{wanted.stop} are not a range within 0:{self.slice.layers}")
        chunks = [
            Placed([Extent(place, self.slice.nbytes)] if isinstance(place, int) else place, table)
            for place, table in zip(places, self._tables(blocks), strict=True)
        ]
        selection = Selection(wanted, range(self.slice.kv_heads))
        return paged_copy.plan(self.slice, self._pages.of_layers(wanted), chunks, selection)

    def _coded(
        self, verb: str, codec: str, blocks: Blocks, places: Sequence[int], stream: int
    ) -> list[Event | Outcome]:
        if self.packing != "none":
            raise LayoutError(f"pages packed as {self.packing} hold no numbers that a codec could read")
        stored = stored_form(codec, self.slice)
        tensors = {name: [place + info.start for place in places] for name, info in stored.tensors.items()}
        made = _Quantisers(self, self._tables(blocks), stream)
        parts = [self._pages.of_part(part) for part in range(self._pages.parts)]
        if verb == "encode":
            lossy_codec(codec).encode(parts, self.slice.dtype, tensors, made)
        else:
            lossy_codec(codec).decode(tensors, self.slice.dtype, parts, made)
        return made.begun

    def _tables(self, blocks: Blocks) -> list[Table]:
        count = self._pages_per_block
        for chunk in blocks:
            if len(chunk) != self._blocks_per_chunk:
                raise LayoutError(f"a chunk lies in {self._blocks_per_chunk} blocks, got {len(chunk)}")
        return [
            Table([block * count + page if block >= 0 else -1 for block in chunk for page in range(count)])
            for chunk in blocks
        ]


@dataclass
class _Quantisers:
    """See kvgate.codec.lossy.Quantisers. Numbers are the pages of one part, and tensors the address for each chunk."""

    plan: GpuPlan
    tables: list[Table]
    stream: int

    def __post_init__(self) -> None:
        self.begun: list[Event | Outcome] = []
        self.int8_encode = partial(self._run, "gather", Kind.INT8)
        self.fp8_encode = partial(self._run, "gather", Kind.FP8)

    def int8_decode(self, codes: list[int], scales: list[int], dtype: str, out: DevicePages) -> None:
        self._run("scatter", Kind.INT8, out, dtype, codes, scales)

    def fp8_decode(self, codes: list[int], scales: list[int], dtype: str, out: DevicePages) -> None:
        self._run("scatter", Kind.FP8, out, dtype, codes, scales)

    def int4_encode(
        self, numbers: DevicePages, dtype: str, axis: int, codes: list[int], scales: list[int], lows: list[int]
    ) -> None:
        self._run("gather", _INT4[axis], numbers, dtype, codes, scales, lows)

    def int4_decode(
        self, codes: list[int], scales: list[int], lows: list[int], axis: int, dtype: str, out: DevicePages
    ) -> None:
        self._run("scatter", _INT4[axis], out, dtype, codes, scales, lows)

    def copy(self, numbers: Any, out: Any) -> None:
        into_pages = isinstance(out, DevicePages)
        pages, places = (out, numbers) if into_pages else (numbers, out)
        rows = Rows(pages.layers, 1, pages.heads, self.plan.slice.tokens, pages.row_nbytes)
        chunks = [Placed([Extent(place, rows.nbytes)], table) for place, table in zip(places, self.tables, strict=True)]
        launch = paged_copy.plan(rows, pages, chunks, Selection(range(rows.layers), range(rows.heads)))
        copies = self.plan._copies
        self.begun.append((copies.scatter if into_pages else copies.gather)(launch, self.stream))

    def _run(
        self,
        verb: str,
        kind: Kind,
        pages: DevicePages,
        dtype: str,
        codes: list[int],
        scales: list[int],
        lows: list[int] | None = None,
    ) -> None:
        chunks = [Encoded(*places) for places in zip(codes, scales, lows or [0] * len(codes), self.tables, strict=True)]
        launch = quantised_copy.plan(kind, dtype, self.plan.slice.tokens, pages, chunks)
        copies = self.plan._quantised
        self.begun.append((copies.scatter if verb == "scatter" else copies.gather)(launch, self.stream))


def _check_whole(blocks: Blocks) -> None:
    if any(block < 0 for chunk in blocks for block in chunk):
        raise LayoutError("a chunk that is taken out of the pages has all of its blocks")


def _check_unique(blocks: Blocks) -> None:
    kept = [block for chunk in blocks for block in chunk if block >= 0]
    if len(set(kept)) != len(kept):
        raise LayoutError("a block is to be written twice")
