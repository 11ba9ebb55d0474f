"""The slots that one engine fills, from RESERVE to COMMIT or ABORT.

Invariants
1. The memory of a slot comes from segments that only this connection may write, and is reserved only by it: pages that
   it can write are never those of anybody else's chunk.
2. A reservation ends once: by COMMIT, by ABORT, or with the connection, which ends when a deadline has passed.
3. A committed object is what its digest says, or a miss: the digest is taken by the gateway, and whoever reads the
   bytes holds them against it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from kvgate.auth.tenants import Tenant
from kvgate.errors import InvalidArgument, NoSuchKey, NoSuchLease, Overloaded, PreconditionFailed
from kvgate.store.store import Store
from kvgate.store.write import Write
from kvgate.tiers.base import Record

MAX_RESERVATIONS = 64
_ATTRIBUTES = {"content-type": "application/octet-stream"}


@dataclass(slots=True)
class Reservation:
    """`write` is None until memory has been found. first: there must be no such object when it becomes visible"""

    deadline: float
    first: bool = False
    write: Write | None = None


class Reservations:
    """See the module. `owner` names the connection's segments in the arena."""

    def __init__(self, store: Store, tenant: Tenant, owner: str) -> None:
        self._store = store
        self._tenant = tenant
        self.owner = owner
        self._open: dict[int, Reservation] = {}
        self._next = 0
        self._closed = False

    async def reserve(
        self, bucket: str, key: str, nbytes: int, deadline: float, *, first: bool = False
    ) -> tuple[int, Write]:
        """A slot for an object, under a number of its own.

        first: only where there is no such object, now and when it is to be visible: else PreconditionFailed
        Raises Overloaded, and what `Store.open_write` names.
        """
        if nbytes < 1:
            raise InvalidArgument("an empty object needs no memory; PUT it")
        if len(self._open) >= MAX_RESERVATIONS:
            raise Overloaded(f"{MAX_RESERVATIONS} reservations of this connection are open; commit or abort some")
        if first:
            with suppress(NoSuchKey):
                _must_be_absent(self._store.stat(self._tenant.name, bucket, key))
        self._next += 1
        number, reservation = self._next, Reservation(deadline, first)
        self._open[number] = reservation
        try:
            write = await self._store.open_write(self._tenant, bucket, key, nbytes, owner=self.owner)
        except BaseException:
            self._open.pop(number, None)
            raise
        if self._closed:
            await write.abort()
            raise Overloaded("the connection has ended")
        reservation.write = write
        return number, write

    async def commit(self, number: int) -> str:
        """Make an object visible; its entity tag. Raises NoSuchLease, and what `Write.commit` names."""
        first = number in self._open and self._open[number].first
        async with self._take(number) as write:
            await write.take_in_place()
            record = await write.commit(_ATTRIBUTES, _must_be_absent if first else None)
        return record.etag

    async def abort(self, number: int) -> None:
        """Give a slot back. Raises NoSuchLease."""
        await self._take(number).abort()

    def overdue(self, now: float) -> int:
        """How many reservations have passed their deadline."""
        return sum(reservation.deadline <= now for reservation in self._open.values())

    async def close(self) -> None:
        """Give every slot back; for when the connection has ended."""
        self._closed = True
        while self._open:
            _, reservation = self._open.popitem()
            if reservation.write is not None:
                await reservation.write.abort()

    def _take(self, number: int) -> Write:
        reservation = self._open.get(number)
        if reservation is None or reservation.write is None:
            raise NoSuchLease("there is no such reservation; it may have ended")
        del self._open[number]
        return reservation.write


def _must_be_absent(record: Record | None) -> None:
    if record is not None:
        raise PreconditionFailed("If-None-Match")
