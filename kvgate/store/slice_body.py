"""A slice of a chunk: some layers and heads of it, gathered from where they lie without a copy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from kvgate.chunk.layout import DATA_START, Runs, Strided
from kvgate.chunk.space import Space
from kvgate.errors import NoSlices
from kvgate.store.bodies import LeasedBody, TierBody
from kvgate.store.read import Read


@dataclass(frozen=True, slots=True)
class ChunkSlice:
    """Which bytes of a chunk object are some layers and heads. object_nbytes: of one whose chunk has slices"""

    runs: Runs
    object_nbytes: int

    @classmethod
    def of(cls, space: Space, layers: range | None, heads: range | None) -> ChunkSlice:
        """None is all of them. Raises LayoutError."""
        layout = space.layout
        runs = space.stored.slices(layers or range(layout.layers), heads or range(layout.kv_heads))
        return cls(runs.in_file(), DATA_START + space.stored.nbytes)

    @property
    def nbytes(self) -> int:
        return self.runs.nbytes

    def check(self, read: Read) -> None:
        """Raises NoSlices for a chunk that a lossless codec has made smaller."""
        if read.record.nbytes != self.object_nbytes:
            raise NoSlices("this chunk is in blocks of a lossless codec, which have no layers and heads: GET it whole")


class SliceBody:
    """See ResponseBody: the slice, in the order of its runs. Takes the body that holds the runs over."""

    def __init__(self, whole: LeasedBody | TierBody, start: int, runs: Runs) -> None:
        """start: of the byte that `whole` begins with; it reaches to the end of the last run"""
        self.nbytes = runs.nbytes
        self._whole = whole
        self._start = start
        self._runs = runs

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody."""
        start = self._start
        async for batch in self._whole.batches():
            yield cut(batch, start, self._runs)
            start += sum(map(len, batch))

    async def digest(self) -> int:
        """The crc64nvme of the slice. Raises CorruptCopy."""
        crc64nvme = 0
        async for batch in self.batches():
            crc64nvme = await self._whole.digest(batch, crc64nvme)
        return crc64nvme

    def close(self) -> None:
        """See ResponseBody."""
        self._whole.close()


async def load_slice(read: Read, part: ChunkSlice) -> SliceBody:
    """The verified bytes of a slice. Raises NoSlices and what `Read.load` raises; takes its lease over as that does."""
    part.check(read)
    runs = part.runs
    return SliceBody(await read.load(runs.start, runs.stop), runs.start, runs)


def cut(views: Sequence[memoryview], start: int, runs: Runs) -> list[memoryview]:
    """What of `views`, which hold a body from byte `start` on, lies in `runs`."""
    pieces: list[memoryview] = []
    for view in views:
        for strided in runs.tensors:
            pieces += _cut(view, start, strided)
        start += len(view)
    return pieces


def _cut(view: memoryview, start: int, runs: Strided) -> Iterator[memoryview]:
    stop = start + len(view)
    index = max(0, (start - runs.start - runs.run_nbytes) // runs.stride + 1)
    while index < runs.count and (begin := runs.start + index * runs.stride) < stop:
        yield view[max(begin - start, 0) : min(begin + runs.run_nbytes, stop) - start]
        index += 1
