"""Chunks that are written in slices: each straight into its place in memory, and visible when the last one is there.

`reservations` decides; this carries it out. The receiving of a slice is a task of its own, so that an abort can end it
and a reservation's memory is given back only when that task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from kvgate.auth.tenants import Tenant
from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.chunk.space import Space
from kvgate.errors import ImmutableConflict, InvalidRequest, NoSuchReservation, SliceConflict
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.copies import Copies
from kvgate.store.index import Index
from kvgate.store.reservations import Reservation, Reservations, Slice
from kvgate.store.write import Write

T = TypeVar("T")

_SCRATCH_NBYTES = 256 << 10

State = Literal["open", "committed", "present"]
"""Of a chunk: slices are missing; all came, and it is visible; it was there before, and what came is dropped."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """A reservation, `nbytes` of KV to come within `expires_s`; no name when the chunk is there already."""

    name: str
    nbytes: int
    expires_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What has become of a chunk with the last slice."""

    state: State
    missing_nbytes: int


class SliceSource(Protocol):
    """A slice on its way in: `nbytes` bytes, in the order of `Stored.slices`."""

    nbytes: int

    async def receive(self, places: Iterable[Sequence[memoryview]]) -> int:
        """Fill the views of each of `places` in turn, verify all bytes, and return their crc64nvme.

        Raises IncompleteBody, BadDigest, PayloadHashMismatch.
        """


class ChunkWrites:
    """All methods run on the event loop."""

    def __init__(
        self,
        *,
        index: Index,
        copies: Copies,
        metrics: Metrics,
        config: StoreConfig,
        clock: Callable[[], float],
        find_space: Callable[[str, str, str], Awaitable[Space]],
        open_write: Callable[[Tenant, str, ChunkKey, Space], Awaitable[Write]],
    ) -> None:
        """open_write: a Write whose whole body is one slot in memory"""
        self._index = index
        self._copies = copies
        self._metrics = metrics
        self._max_lease_s = config.max_lease
        self._find_space = find_space
        self._open_write = open_write
        self._writes: dict[Reservation, tuple[Write, str, ChunkKey]] = {}
        self._unsettled: dict[Reservation, asyncio.Event] = {}  # being opened, or committed
        limit_nbytes = int(config.reserved_share * copies.memory.limit())
        self._reservations = Reservations(config.max_reservations, limit_nbytes, clock, self._let_go)

    async def reserve(
        self,
        tenant: Tenant,
        bucket: str,
        space_id: str,
        chunk_hash: bytes,
        parent: bytes,
        first_token: int,
        lease_s: float,
        writer: str = "",
    ) -> Reserved:
        """Memory for a chunk, with its header in place.

        parent, first_token: as in the chunk's header
        writer:              those that give the same share the reservation of a chunk, for the longest of their leases
        Raises SliceConflict when that writer has given the chunk another header, NoSuchBucket, UnknownSpace,
        InvalidChunk, QuotaExceeded, ObjectTooLarge, StoreFull, Overloaded.
        """
        assert len(chunk_hash) == len(parent) == HASH_NBYTES
        space = await self._find_space(tenant.name, bucket, space_id)
        key = ChunkKey(space_id, chunk_hash.hex())
        header = ChunkHeader.encode(space, chunk_hash, parent, first_token)
        lease_s = min(lease_s, self._max_lease_s)
        shared = (tenant.name, bucket, key, writer) if writer else None
        while True:
            if self._index.get(tenant.name, bucket, str(key)) is not None:
                # The other ranks are told the same, and would not bring the rest.
                if shared and self._reservations.give_up(shared):
                    self._metrics.reservations.labels("present").inc()
                return Reserved("", space.stored.nbytes, 0.0)
            joined = self._reservations.join(shared, lease_s) if shared else None
            if joined is None:
                break
            if joined in self._unsettled:
                await self._unsettled[joined].wait()
                continue
            if b"".join(self._writes[joined][0].slot.slices(0, DATA_START)) != header:
                raise SliceConflict("this writer has reserved the chunk with another parent or first token")
            return Reserved(joined.name, space.stored.nbytes, self._reservations.left_s(joined))
        nbytes = DATA_START + space.stored.nbytes
        reservation = self._reservations.open(tenant.name, space.stored, nbytes, lease_s, shared)
        opened = self._unsettled[reservation] = asyncio.Event()
        try:
            write = await self._open_write(tenant, bucket, key, space)
        except BaseException:
            if not reservation.ended:
                self._reservations.abort(reservation)
            self._reservations.let_go(reservation)
            raise
        finally:
            del self._unsettled[reservation]
            opened.set()
        self._writes[reservation] = write, bucket, key
        at = 0
        for view in write.slot.slices(0, DATA_START):
            view[:] = header[at : at + len(view)]
            at += len(view)
        self._reservations.let_go(reservation)
        return Reserved(reservation.name, space.stored.nbytes, lease_s)

    async def receive(
        self, tenant: str, name: str, select: Callable[[Layout], tuple[range, range]], source: SliceSource
    ) -> Progress:
        """Take one slice in; with the last one the chunk becomes visible.

        A slice that has come before is compared with what came, and is no error when it is the same.
        Raises what `select` raises, NoSuchReservation, InvalidRequest for another length, SliceConflict, what
        `SliceSource.receive` names, and with the last slice what `Write.commit` names.
        """
        reservation = self._reservations.find(tenant, name)
        layers, heads = select(reservation.stored.layout)
        runs = reservation.stored.slices(layers, heads).in_file()
        if source.nbytes != runs.nbytes:
            raise InvalidRequest(
                f"layers {layers.start}-{layers.stop - 1} of heads {heads.start}-{heads.stop - 1} have {runs.nbytes} "
                f"bytes, and the body {source.nbytes}"
            )
        part = Slice.of(layers, heads)

        def cut() -> None:
            receiving.cancel()

        before = self._reservations.begin(reservation, part, cut)
        if before is not None:
            if await source.receive(_scratch(runs.nbytes)) != before:
                raise SliceConflict("another slice has been received for these layers and heads")
            return Progress("open", reservation.missing_nbytes)
        slot = self._writes[reservation][0].slot
        views = [view for run in runs.runs() for view in slot.slices(run.start, run.stop)]
        receiving = self._copies.spawn(source.receive([views]))
        outcome: list[Progress | asyncio.Task[Progress | Exception]] = []

        def ended(task: asyncio.Task[int | Exception]) -> None:
            crc64nvme = None if task.cancelled() else task.result()
            if self._reservations.end(reservation, part, None if isinstance(crc64nvme, Exception) else crc64nvme):
                self._unsettled[reservation] = asyncio.Event()
                outcome.append(self._copies.spawn(self._commit(reservation)))
            elif part in reservation.received:
                outcome.append(Progress("open", reservation.missing_nbytes))

        receiving.add_done_callback(ended)  # not in this coroutine, which may be cancelled
        await _end_of(receiving)
        if outcome:
            return outcome[0] if isinstance(outcome[0], Progress) else _result(await asyncio.shield(outcome[0]))
        if not receiving.cancelled():
            _result(receiving.result())
        raise NoSuchReservation("the reservation ended while the slice was received")

    def abort(self, tenant: str, name: str) -> None:
        """End a reservation; what came of it is dropped. Raises NoSuchReservation."""
        self._reservations.abort(self._reservations.find(tenant, name))
        self._metrics.reservations.labels("aborted").inc()

    def expire(self) -> None:
        """End the reservations whose lease is over."""
        self._metrics.reservations.labels("expired").inc(self._reservations.expire())

    def stop(self) -> None:
        """End every reservation."""
        self._reservations.abort_all()

    def collect(self) -> None:
        """Bring the gauge of the metrics up to date."""
        self._metrics.reserved_bytes.set(self._reservations.nbytes)

    async def _commit(self, reservation: Reservation) -> Progress:
        write, bucket, key = self._writes[reservation]
        state: State = "present"
        try:
            if self._index.get(reservation.tenant, bucket, str(key)) is None:
                await write.seal()
                try:
                    await write.commit({})
                    state = "committed"
                except ImmutableConflict:  # another writer was first; KV of the same tokens is as good as any
                    pass
        except BaseException:
            self._metrics.reservations.labels("failed").inc()
            raise
        finally:
            self._reservations.let_go(reservation)
            self._unsettled.pop(reservation).set()
        self._metrics.reservations.labels(state).inc()
        return Progress(state, 0)

    def _let_go(self, reservation: Reservation) -> None:
        if reservation in self._writes:
            write, _, _ = self._writes.pop(reservation)
            self._copies.spawn(write.abort())


async def _end_of(task: asyncio.Task[int | Exception]) -> None:
    """Wait for a task; when this is cancelled, end the task first: it uses the connection, which is closed next."""
    try:
        await asyncio.wait([task])
    except BaseException:
        task.cancel()
        await asyncio.wait([task])
        raise


def _result(result: T | Exception) -> T:
    if isinstance(result, Exception):
        raise result
    return result


def _scratch(nbytes: int) -> Iterable[Sequence[memoryview]]:
    """Places for bytes that are only looked at."""
    scratch = memoryview(bytearray(min(nbytes, _SCRATCH_NBYTES)))
    for start in range(0, nbytes, _SCRATCH_NBYTES):
        yield [scratch[: nbytes - start]]
