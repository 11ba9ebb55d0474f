"""Many chunks in one answer: loaded in order, a few ahead of the one that is being sent.

Invariants
1. Chunks come in the order asked for, each with its own verdict: what is wrong with one says nothing of the others.
2. At most `ahead` chunks are loaded and not sent yet. Each is leased from when its load begins until it has been sent.
3. After the deadline no load is begun or waited for: what is left is late.
4. When the batch is closed, nothing of it is leased any more, or will be when the loads that are under way have ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from kvgate.chunk.frame import Status
from kvgate.errors import CorruptCopy, NoSlices, NoSuchBucket, NoSuchKey, NotInTier, Overloaded, StoreFull, TierError
from kvgate.messages import ResponseBody
from kvgate.metrics import Metrics
from kvgate.store.bodies import LeasedBody, TierBody
from kvgate.store.read import Read
from kvgate.store.slice_body import ChunkSlice, SliceBody, load_slice


@dataclass(frozen=True, slots=True)
class LoadedChunk:
    """One chunk of a batch. `body` is there exactly when the status is present; the batch closes it."""

    status: Status
    crc64nvme: int = 0
    body: ResponseBody | None = None

    def close(self) -> None:
        """End the lease. Idempotent."""
        if self.body is not None:
            self.body.close()


_Load = asyncio.Task[LoadedChunk | Exception]


class BatchRead:
    """See the module. Used once; to be closed."""

    def __init__(
        self,
        keys: Sequence[str],
        part: ChunkSlice | None,
        *,
        open_read: Callable[[str], Read],
        spawn: Callable[[Coroutine[Any, Any, LoadedChunk]], _Load],
        metrics: Metrics,
        ahead: int,
        deadline_s: float | None,
    ) -> None:
        """
        part:      the slice of each chunk that is wanted; None for whole objects
        open_read: raises NoSuchKey
        spawn:     runs a load to its end whatever becomes of the request
        """
        self._keys = keys
        self._part = part
        self._open_read = open_read
        self._spawn = spawn
        self._metrics = metrics
        self._ahead = ahead
        self._end_s = None if deadline_s is None else time.monotonic() + deadline_s
        self._begun = 0
        self._loads: deque[_Load] = deque()
        self._sent = LoadedChunk(Status.MISSING)

    async def chunks(self) -> AsyncIterator[LoadedChunk]:
        """One for each key, in order. The last one is closed when the next is asked for."""
        for _ in self._keys:
            chunk = await self._next()
            self._metrics.batch_chunks.labels(chunk.status.name.lower()).inc()
            self._sent = chunk
            yield chunk
            chunk.close()

    def close(self) -> None:
        """End every lease and load. May be called twice."""
        self._begun = len(self._keys)
        self._sent.close()
        for load in self._loads:
            _drop(load)
        self._loads.clear()

    async def _next(self) -> LoadedChunk:
        if self._is_late():
            self._skip()
            return LoadedChunk(Status.LATE)
        while self._begun < len(self._keys) and len(self._loads) < self._ahead:
            self._loads.append(self._spawn(self._load(self._keys[self._begun])))
            self._begun += 1
        load = self._loads[0]  # in the queue while it is waited for, so that `close` finds it
        left_s = None if self._end_s is None else max(0.0, self._end_s - time.monotonic())
        await asyncio.wait([load], timeout=left_s)
        self._loads.popleft()
        if not load.done():
            _drop(load)
            return LoadedChunk(Status.LATE)
        chunk = load.result()
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def _is_late(self) -> bool:
        return self._end_s is not None and time.monotonic() >= self._end_s

    def _skip(self) -> None:
        """The next chunk is not wanted any more."""
        if self._loads:
            _drop(self._loads.popleft())
        else:
            self._begun += 1

    async def _load(self, key: str) -> LoadedChunk:
        missing = Status.MISSING
        while True:  # each bad copy is dropped, so that the next try takes the next tier's
            try:
                return await self._load_from_a_tier(key)
            except (NoSuchKey, NoSuchBucket):
                return LoadedChunk(missing)
            except (CorruptCopy, NotInTier):
                missing = Status.CORRUPT
            except NoSlices:
                return LoadedChunk(Status.NO_SLICES)
            except (TierError, StoreFull, Overloaded):
                return LoadedChunk(Status.UNAVAILABLE)

    async def _load_from_a_tier(self, key: str) -> LoadedChunk:
        """A chunk of which every byte has been verified."""
        with self._open_read(key) as read:
            try:
                if self._part is None:
                    body: LeasedBody | TierBody | SliceBody = await read.load(0, read.record.nbytes)
                else:
                    body = await load_slice(read, self._part)
            except NoSuchKey:
                return LoadedChunk(Status.CORRUPT)
            try:
                if isinstance(body, SliceBody):
                    return LoadedChunk(Status.PRESENT, await body.digest(), body)
                await body.verify()
                return LoadedChunk(Status.PRESENT, read.record.crc64nvme, body)
            except BaseException:
                body.close()
                raise


def _drop(load: _Load) -> None:
    """End a load, and the lease on what it has brought."""
    load.cancel()
    load.add_done_callback(_close_loaded)


def _close_loaded(load: _Load) -> None:
    if not load.cancelled() and isinstance(chunk := load.result(), LoadedChunk):
        chunk.close()
