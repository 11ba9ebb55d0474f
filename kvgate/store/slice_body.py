"""A slice of a chunk: some layers and heads of it, gathered from where they lie without a copy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from kvgate.chunk.layout import Layout, Strided
from kvgate.store.bodies import LeasedBody, TierBody
from kvgate.store.read import Read


def slice_runs(layout: Layout, layers: range | None, heads: range | None) -> Strided:
    """The bytes of a chunk object that are these layers and heads; None is all of them. Raises LayoutError."""
    return layout.head_slices(layers or range(layout.layers), heads or range(layout.kv_heads)).in_file()


class SliceBody:
    """See ResponseBody: `kv[layers, :, heads]` in C order. Takes the body that holds the runs over."""

    def __init__(self, whole: LeasedBody | TierBody, start: int, runs: Strided) -> None:
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


async def load_slice(read: Read, runs: Strided) -> SliceBody:
    """The verified bytes of `runs`. Raises what `Read.load` raises; takes its lease over as that does."""
    stop = runs.start + (runs.count - 1) * runs.stride + runs.run_nbytes
    return SliceBody(await read.load(runs.start, stop), runs.start, runs)


def cut(views: Sequence[memoryview], start: int, runs: Strided) -> list[memoryview]:
    """What of `views`, which hold a body from byte `start` on, lies in `runs`."""
    pieces: list[memoryview] = []
    for view in views:
        stop = start + len(view)
        index = max(0, (start - runs.start - runs.run_nbytes) // runs.stride + 1)
        while index < runs.count and (begin := runs.start + index * runs.stride) < stop:
            pieces.append(view[max(begin - start, 0) : min(begin + runs.run_nbytes, stop) - start])
            index += 1
        start = stop
    return pieces
