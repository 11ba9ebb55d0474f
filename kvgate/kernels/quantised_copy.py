"""Chunks out of paged KV in fewer bytes, and back into it. Kernels: csrc/quantised_copy.cu, and where the twins are."""

from __future__ import annotations

import ctypes
import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from kvgate.errors import LayoutError
from kvgate.kernels.argument_ring import ArgumentRing
from kvgate.kernels.device import Device, Event, Kernel
from kvgate.kernels.divider import LIMIT, Divider
from kvgate.kernels.pages import ChunkShape, Pages, PagesArgument, Table, packed_tables, widest_access

SOURCE = "quantised_copy.cu"
THREADS = 128
EACH = 4
"""As in the source: channels of a group that a thread has."""

NUMBER_NBYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""The dtypes of KV that can be quantised."""


class Kind(enum.Enum):
    """How a part's numbers become codes. The value is the kernels' name."""

    INT8 = "int8"
    """A code a byte; a scale for each token and 128 channels."""
    FP8 = "fp8"
    """The same in e4m3."""
    INT4_CHANNELS = "int4_channels"
    """Two codes a byte; a scale and a low for each token and 64 channels."""
    INT4_TOKENS = "int4_tokens"
    """Two codes a byte; a scale and a low for each channel and 64 tokens."""

    @property
    def group(self) -> int:
        """Channels, or tokens, that share a scale; the last group of an axis may be shorter."""
        return 128 if self in (Kind.INT8, Kind.FP8) else 64

    @property
    def halves(self) -> bool:
        """Whether two codes share a byte."""
        return self in (Kind.INT4_CHANNELS, Kind.INT4_TOKENS)


class EncodedArgument(ctypes.Structure):
    """`struct Encoded`."""

    _fields_ = (
        ("codes", ctypes.c_uint64),
        ("scales", ctypes.c_uint64),
        ("lows", ctypes.c_uint64),
        ("table", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    )


class QuantisedCopyArgument(ctypes.Structure):
    """`struct QuantisedCopy`."""

    _fields_ = (
        ("pages", PagesArgument),
        ("chunk", ChunkShape),
        ("groups", Divider),
        ("channels", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("lanes", ctypes.c_uint32),
        ("together", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("rows", Divider),
        ("pairs", Divider),
        ("chunks", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Encoded:
    """One part of one chunk: the addresses of its tensors, each in one run of memory, and its blocks.

    codes:  [layers, heads, tokens, channels], or half as many, rounded up, where two share a byte
    scales: BF16 [layers, heads, tokens, groups], or [layers, heads, groups, channels] of groups of tokens
    lows:   as scales, for int4; else 0
    """

    codes: int
    scales: int
    lows: int
    table: Table


@dataclass(frozen=True, slots=True)
class QuantisedLaunch:
    """A launch but for its addresses on the GPU, which follow from that of `data`: bases, block tables, chunks."""

    function: str
    argument: QuantisedCopyArgument
    data: bytes
    tables_at: int
    chunks_at: int
    threads: int


def plan(kind: Kind, dtype: str, tokens: int, pages: Pages, chunks: Sequence[Encoded]) -> QuantisedLaunch:
    """One launch for all chunks, of one part: every layer and head that `pages` hold, which hold that part only.

    Tokens whose block is left out are gathered as zeros, and not scattered.
    Raises LayoutError where dtype, pages, tables and chunks do not fit together.
    """
    number_nbytes = NUMBER_NBYTES.get(dtype, 0)
    if not number_nbytes:
        raise LayoutError(f"KV of {dtype} is not quantised; known: {', '.join(NUMBER_NBYTES)}")
    if pages.parts != 1:
        raise LayoutError(f"pages of {pages.parts} parts, where one is quantised at a time")
    aligned = pages.access_nbytes()
    odd = widest_access(number for chunk in chunks for number in (chunk.scales, chunk.lows))
    if pages.row_nbytes % number_nbytes or aligned < number_nbytes or odd < 2:
        raise LayoutError(f"numbers of {dtype} or scales at addresses that are not multiples of their size")
    channels = pages.row_nbytes // number_nbytes
    tables, width = packed_tables([chunk.table for chunk in chunks], pages, tokens)
    by_token = kind is Kind.INT4_TOKENS
    groups = -(-(tokens if by_token else channels) // kind.group)
    rows = pages.layers * pages.heads * tokens
    pairs = -(-channels // 2)
    count = len(chunks) * pages.layers * pages.heads * groups * (pairs if by_token else tokens)
    lanes = 1 << (-(-min(channels, kind.group) // EACH) - 1).bit_length()
    # Room for what the last blocks of threads count beyond the end.
    if max(count + (1 << 24), rows, tokens * 2) >= LIMIT:
        raise LayoutError(f"{count} groups are more than one launch can count")
    codes_width = EACH // 2 if kind.halves else EACH
    together = (
        not by_token
        and channels % EACH == 0
        and pages.unit_nbytes % (EACH * number_nbytes) == 0
        and aligned >= EACH * number_nbytes
        and widest_access(chunk.codes for chunk in chunks) >= codes_width
    )
    argument = QuantisedCopyArgument(
        pages=pages.argument(number_nbytes * (EACH if together else 1), width, 0, 0),
        chunk=ChunkShape(Divider.by(1), Divider.by(tokens), Divider.by(pages.heads), Divider.by(1)),
        groups=Divider.by(groups),
        channels=channels,
        group=kind.group,
        lanes=lanes,
        together=together,
        count=count,
        rows=Divider.by(pages.layers if by_token else rows),
        pairs=Divider.by(pairs),
    )
    listed = (EncodedArgument * len(chunks))(
        *(
            EncodedArgument(chunk.codes, chunk.scales, chunk.lows, number, chunk.table.offset)
            for number, chunk in enumerate(chunks)
        )
    )
    bases = array("Q", pages.bases).tobytes()
    lines = tables.tobytes()
    lines += bytes(-len(lines) % 8)
    threads = count if by_token else count * lanes
    function = f"{kind.value}_{dtype.lower()}"
    return QuantisedLaunch(
        function, argument, bases + lines + bytes(listed), len(bases), len(bases) + len(lines), threads
    )


class Outcome:
    """What has become of a launch. To be asked once, in any thread; until then it takes a word of host memory."""

    def __init__(self, event: Event, words: list[int], word: int) -> None:
        self.event = event
        self._words = words
        self._word = word

    def good(self) -> bool:
        """Wait for the launch, and say whether all of it was done.

        False after a gather of KV with a NaN or an infinity, or a range beyond float32, and after a scatter of what no
        gather writes: then some tokens were not written.
        """
        self.event.wait()
        good = ctypes.c_uint32.from_address(self._word).value == 0
        self._words.append(self._word)
        return good


class QuantisedCopies:
    """Quantises on one GPU, for one thread at a time. Everything is asynchronous on the stream given.

    blocks: as of PagedCopies
    """

    def __init__(self, device: Device, blocks: int = 0, threads: int = THREADS) -> None:
        self._device = device
        self._blocks = blocks or device.multiprocessors * (2048 // threads)
        self._threads = threads
        self._ring = ArgumentRing(device)
        self._pages: list[int] = []
        self._words: list[int] = []

    def gather(self, launch: QuantisedLaunch, stream: int) -> Outcome:
        """Write the chunks' tensors from the pages."""
        return self._run("gather", launch, stream)

    def scatter(self, launch: QuantisedLaunch, stream: int) -> Outcome:
        """Write the pages from the chunks' tensors; a group that no gather writes is left alone."""
        return self._run("scatter", launch, stream)

    def close(self) -> None:
        """Wait for what is under way, and give all memory back, that of outcomes too."""
        self._ring.close()
        for page in self._pages:
            self._device.free_host(page)
        self._pages.clear()
        self._words.clear()

    def _run(self, verb: str, launch: QuantisedLaunch, stream: int) -> Outcome:
        word = self._clear_word()
        if not launch.threads:
            return Outcome(self._device.record(stream), self._words, word)
        address = self._ring.upload(launch.data, stream)
        argument = QuantisedCopyArgument.from_buffer_copy(launch.argument)
        argument.pages.bases = address
        argument.pages.tables = address + launch.tables_at
        argument.chunks = address + launch.chunks_at
        argument.faults = word
        blocks = min(-(-launch.threads // self._threads), self._blocks)
        self._device.launch(Kernel(SOURCE, f"{verb}_{launch.function}"), blocks, self._threads, argument, stream)
        return Outcome(self._ring.launched(stream), self._words, word)

    def _clear_word(self) -> int:
        if not self._words:
            page = self._device.allocate_host(4096)
            self._pages.append(page)
            self._words.extend(range(page, page + 4096, 4))
        word = self._words.pop()
        ctypes.c_uint32.from_address(word).value = 0
        return word
