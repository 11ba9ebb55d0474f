"""The bytes of one object as a request gets them: out of memory, or while they come from a lower tier.

Each body holds a lease on its entry until it is closed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence

from kvgate.errors import ArenaFull, CorruptCopy, NotInTier, TierError
from kvgate.memory.digest import block_span, extend_crc64nvme
from kvgate.memory.lease import Lease
from kvgate.metrics import Metrics
from kvgate.store.arrival import Arrival
from kvgate.store.index import Entry
from kvgate.store.placement import Placement
from kvgate.tiers.base import Copy


class LeasedBody:
    """Bytes that lie in the arena."""

    def __init__(self, placement: Placement, entry: Entry, lease: Lease, start: int, stop: int) -> None:
        self.nbytes = stop - start
        self._placement = placement
        self._entry: Entry | None = entry
        self._lease = lease
        self._start, self._stop = start, stop

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody."""
        yield self._lease.slices(self._start, self._stop)

    async def verify(self) -> None:
        """Wait until every byte has been verified. Raises CorruptCopy, NotInTier or another TierError."""

    async def digest(self, views: Sequence[memoryview], crc64nvme: int) -> int:
        """The crc64nvme of what it was taken of so far and then of `views`, which lie in the present batch."""
        return await _digest(self._placement, self._lease, views, crc64nvme)

    def close(self) -> None:
        """See ResponseBody."""
        if self._entry is not None:
            self._placement.copies.unlease(self._entry)
            self._entry = None
            self.release()

    def release(self) -> None:
        """Give the memory back, but not the lease on the object."""
        self._lease.release()


class ArrivingBody(LeasedBody):
    """Bytes that are on their way to memory: what has come and is verified is sent while the rest is read."""

    def __init__(self, placement: Placement, entry: Entry, arrival: Arrival, start: int, stop: int) -> None:
        super().__init__(placement, entry, arrival.lease.share(), start, stop)
        self._arrival = arrival
        self._left: list[Lease] = []  # on memory that the arrival does not fill any more, and which may be in use
        arrival.followers.add(self._follow)

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody. Raises CorruptCopy or another TierError where no more comes."""
        done = self._start
        while done < self._stop:
            await self._arrival.reach(done + 1)
            upto = min(self._arrival.nbytes, self._stop)
            yield self._lease.slices(done, upto)
            done = upto

    async def verify(self) -> None:
        """See LeasedBody."""
        await self._arrival.reach(self._stop)

    def release(self) -> None:
        """See LeasedBody."""
        self._arrival.followers.discard(self._follow)
        super().release()
        for lease in self._left:
            lease.release()

    def _follow(self, lease: Lease) -> None:
        """Read on in the memory that is filled from now on."""
        self._left.append(self._lease)
        self._lease = lease


class TierBody:
    """Bytes that stream from a lower tier through one or two windows of memory: while one is sent, the next is read.

    Every block is verified before it is sent. `open` does that for the first window, so that a copy which is bad there
    is a miss; where a later one is bad `batches` raises CorruptCopy, and the connection has to be broken off.
    """

    def __init__(
        self,
        placement: Placement,
        entry: Entry,
        rank: int,
        copy: Copy,
        start: int,
        stop: int,
        windows: list[Lease],
        metrics: Metrics,
    ) -> None:
        """windows: of one length, a multiple of BLOCK_NBYTES if they do not hold everything"""
        self.nbytes = stop - start
        self._placement = placement
        self._entry: Entry | None = entry
        self._rank, self._copy = rank, copy
        self._failed: set[int] = set()
        self._metrics = metrics
        self._start, self._stop = start, stop
        self._first, self._last = block_span(start, stop, entry.record.nbytes)
        self._windows = windows
        self._window_nbytes = windows[0].nbytes
        self._reader = placement.copies.tiers[rank].open(entry.record, copy)
        self._fills: dict[int, asyncio.Task[array[int] | Exception]] = {}  # by the first byte of what a window gets

    async def open(self) -> None:
        """Read and verify the first window. Raises NotInTier, CorruptCopy or another TierError."""
        await self._filled(self._first)

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """See ResponseBody. Raises CorruptCopy or another TierError where no more comes."""
        assert self._entry is not None, "the body is closed"
        window_nbytes = self._window_nbytes
        for begin in range(self._first, self._last, window_nbytes):
            await self._filled(begin)
            del self._fills[begin]
            end = min(begin + window_nbytes, self._last)
            if len(self._windows) > 1 and end < self._last:
                self._fill(end)
            start, stop = max(begin, self._start), min(end, self._stop)
            yield self._window(begin).slices(start - begin, stop - begin)

    async def verify(self) -> None:
        """See LeasedBody: everything is read once, and again to be sent."""
        async for _ in self.batches():
            pass

    async def digest(self, views: Sequence[memoryview], crc64nvme: int) -> int:
        """See LeasedBody."""
        return await _digest(self._placement, self._windows, views, crc64nvme)

    def close(self) -> None:
        """See ResponseBody."""
        if self._entry is not None:
            self._placement.copies.unlease(self._entry)
            self._entry = None
            self.close_streams()

    def close_streams(self) -> None:
        """Give back the windows and the reader, but not the lease on the object. A read under way keeps its window."""
        for window in self._windows:
            window.release()
        self._placement.copies.spawn(self._reader.close())

    async def _filled(self, begin: int) -> None:
        """Wait until a window holds what begins there."""
        if begin not in self._fills:
            self._fill(begin)
        filled = await asyncio.shield(self._fills[begin])
        if isinstance(filled, Exception):
            raise filled

    def _fill(self, begin: int) -> None:
        self._fills[begin] = self._placement.copies.spawn(self._read(begin, self._window(begin).share()))

    async def _read(self, begin: int, window: Lease) -> array[int]:
        while True:
            rank, copy, reader = self._rank, self._copy, self._reader
            try:
                with window:
                    return await reader.read_into(begin, window, min(window.nbytes, self._last - begin))
            except TierError as error:
                entry = self._entry
                if entry is None:
                    raise
                if isinstance(error, CorruptCopy | NotInTier):
                    self._placement.copies.drop_bad_copy(entry, rank, copy, error)
                if self._rank == rank and not self._change_tier(entry):
                    raise
                try:
                    window = self._renew_window(begin)
                except ArenaFull:
                    raise error from None

    def _renew_window(self, begin: int) -> Lease:
        """Other memory for what begins at `begin`: an operation that was given up may still write to the last one."""
        at = self._window_index(begin)
        fresh = self._placement.room.reserve(self._windows[at].owner, self._windows[at].nbytes)
        self._windows[at].release()
        self._windows[at] = fresh
        return fresh.share()

    def _change_tier(self, entry: Entry) -> bool:
        """Read on from the next tier that holds the object; False when none is left."""
        copies = self._placement.copies
        self._failed.add(self._rank)
        following = next((r for r in copies.lower_ranks if r not in self._failed and entry.has_copy(r)), None)
        if following is None:
            return False
        copies.spawn(self._reader.close())
        self._rank, self._copy = following, entry.copies[following]
        self._reader = copies.tiers[following].open(entry.record, self._copy)
        self._metrics.hedged.labels(copies.tiers[following].name, "failed").inc()
        return True

    def _window(self, begin: int) -> Lease:
        return self._windows[self._window_index(begin)]

    def _window_index(self, begin: int) -> int:
        return (begin - self._first) // self._window_nbytes % len(self._windows)


async def _digest(
    placement: Placement, leases: Lease | Sequence[Lease], views: Sequence[memoryview], crc64nvme: int
) -> int:
    values = [crc64nvme]

    def update() -> None:
        for view in views:
            values[0] = extend_crc64nvme(view, values[0])

    held = leases if isinstance(leases, Lease) else tuple(leases)
    await placement.copies.memory.run(held, sum(map(len, views)), update)
    return values[0]
