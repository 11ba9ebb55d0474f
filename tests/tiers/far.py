"""A shared tier of the tests' own: a place in this process that several tiers use, and that can be slow or broken."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvgate.errors import NotAdmitted, NotInTier
from kvgate.memory.digest import BLOCK_NBYTES, span_of_blocks
from kvgate.memory.lease import Lease
from kvgate.tiers.base import HERE, Arrived, Copy, Name, Record, Usage


@dataclass
class Place:
    """Where the objects lie, and what becomes of the next operations.

    errors:  one for each of the next calls of an operation, by its name; None lets that call through
    open:    operations wait here before they do anything
    stubborn: they wait on even when they are cancelled
    calls:   how often each operation was begun
    now, most: how many are under way, and were at most
    """

    objects: dict[Name, tuple[Record, bytes, array[int]]] = field(default_factory=dict)
    errors: dict[str, list[Exception | None]] = field(default_factory=dict)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    stubborn: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        self.open.set()

    async def enter(self, operation: str) -> None:
        self.calls[operation] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            while not self.open.is_set():
                try:
                    await self.open.wait()
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
            errors = self.errors.get(operation)
            if errors and (error := errors.pop(0)) is not None:
                raise error
        finally:
            self.now -= 1


class FarTier:
    name = "far"
    shared = True
    read_only = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.used_nbytes = 0
        self.closed = False

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        await self.place.enter("start")

    async def close(self) -> None:
        self.closed = True

    def usage(self) -> Usage:
        return Usage(self.used_nbytes, None)

    def room(self, tenant: str) -> int:
        return 1 << 40

    def limit(self) -> int:
        return 1 << 40

    async def begin(self, tenant: str, nbytes: int | None) -> FarUpload:
        await self.place.enter("begin")
        return FarUpload(self)

    async def publish(self, record: Record, copy: Copy) -> None:
        await self.place.enter("publish")

    def open(self, record: Record, copy: Copy) -> FarReader:
        return FarReader(self, record)

    async def delete(self, record: Record, copy: Copy) -> None:
        await self.place.enter("delete")
        found = self.place.objects.get(name_of(record))
        if found is not None and found[0].same_body(record):
            del self.place.objects[name_of(record)]
            self.used_nbytes -= record.nbytes

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        await self.place.enter("lookup")
        found = [self.place.objects.get(name) for name in names]
        return [None if each is None else each[0] for each in found]


class FarUpload:
    def __init__(self, tier: FarTier) -> None:
        self._tier = tier
        self._body = bytearray()
        self._taken_nbytes = 0
        self.aborted = False

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        with lease.share() as share:
            await self._tier.place.enter("write")
            for view in share.slices(start, stop):
                self._body += view
        self._take(stop - start)

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        place = self._tier.place
        await place.enter("finish")
        held = place.objects.setdefault(name_of(record), (record, bytes(self._body), blocks))[0]
        if not held.same_body(record):
            await self.abort()
            raise NotAdmitted("the key has another body")
        if held is record:
            self._taken_nbytes = 0
        await self.abort()
        return HERE

    async def abort(self) -> None:
        self._tier.place.calls["abort"] += 1
        self.aborted = True
        self._take(-self._taken_nbytes)

    def _take(self, nbytes: int) -> None:
        self._taken_nbytes += nbytes
        self._tier.used_nbytes += nbytes


class FarReader:
    def __init__(self, tier: FarTier, record: Record) -> None:
        self._tier = tier
        self._record = record

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        with lease.share() as share:
            await self._tier.place.enter("read")
            held, body, blocks = self._tier.place.objects.get(name_of(self._record), (None, b"", array("Q")))
            if held is None or not held.same_body(self._record):
                raise NotInTier("it is not there")
            for at in range(0, nbytes, BLOCK_NBYTES):
                done = min(at + BLOCK_NBYTES, nbytes)
                for view in share.slices(at, done):
                    view[:] = body[start : start + len(view)]
                    start += len(view)
                if arrived is not None and done < nbytes:
                    arrived(done)
                await self._tier.place.enter("read-on")
        return blocks[span_of_blocks(start - nbytes, start)]

    async def close(self) -> None:
        self._tier.place.calls["close"] += 1


def name_of(record: Record) -> Name:
    return Name(record.tenant, record.bucket, record.key)
