"""Reservations: chunks that arrive in slices, from several writers at a time.

Invariants
1. The slices of one reservation that are being received or have been received do not overlap.
2. A reservation is complete exactly when the slices that have been received cover all layers and heads. That happens
   once; it takes no slice afterwards.
3. An ended reservation (complete, aborted, or past its deadline) cannot be found any more. What it holds is let go
   once, and not before its last slice under way has ended.
4. The bytes that are not let go are at most `limit_nbytes`. A tenant has at most `most` reservations; a second one is
   granted only while its own bytes are not more than it leaves free.
5. Writers that give the same `shared` join one reservation, from its opening until it is aborted, expires or lets go.
"""

from __future__ import annotations

import heapq
import secrets
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvgate.chunk.form import Stored
from kvgate.errors import NoSuchReservation, ObjectTooLarge, Overloaded, SliceConflict

_MAX_SLICES = 4096
"""Each is compared with all the others."""


class Slice(NamedTuple):
    """The layers and heads [first, stop) of a chunk."""

    first_layer: int
    stop_layer: int
    first_head: int
    stop_head: int

    @classmethod
    def of(cls, layers: range, heads: range) -> Slice:
        return cls(layers.start, layers.stop, heads.start, heads.stop)

    @property
    def cells(self) -> int:
        """How many pairs of a layer and a head it has."""
        return (self.stop_layer - self.first_layer) * (self.stop_head - self.first_head)

    def overlaps(self, other: Slice) -> bool:
        return (
            self.first_layer < other.stop_layer
            and other.first_layer < self.stop_layer
            and self.first_head < other.stop_head
            and other.first_head < self.stop_head
        )


@dataclass(slots=True, eq=False)
class Reservation:
    """One chunk on its way in. Only `Reservations` changes it.

    deadline:      when it expires, by the clock
    shared:        by what others join it; None for nobody
    receiving:     the slices under way, each with what ends it
    received:      the crc64nvme of each slice that has arrived
    missing_cells: pairs of a layer and a head that have not
    holds:         who uses what it holds: its opener, slices under way, the completion
    """

    name: str
    tenant: str
    stored: Stored
    nbytes: int
    deadline: float
    shared: Hashable = None
    ended: bool = False
    receiving: dict[Slice, Callable[[], object]] = field(default_factory=dict)
    received: dict[Slice, int] = field(default_factory=dict)
    missing_cells: int = 0
    holds: int = 1

    @property
    def missing_nbytes(self) -> int:
        """How many bytes of KV have not arrived."""
        return self.missing_cells * (self.stored.nbytes // _cells(self.stored))


class Reservations:
    """Reservations by a name that cannot be guessed. Synchronous and pure.

    let_go: called once for each reservation, when nobody uses what it holds any more
    """

    def __init__(
        self, most: int, limit_nbytes: int, clock: Callable[[], float], let_go: Callable[[Reservation], None]
    ) -> None:
        self._most = most
        self._limit_nbytes = limit_nbytes
        self._clock = clock
        self._let_go = let_go
        self._open: dict[str, Reservation] = {}
        self._shared: dict[Hashable, Reservation] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._counts: Counter[str] = Counter()
        self._nbytes: Counter[str] = Counter()

    @property
    def nbytes(self) -> int:
        """What all reservations hold that have not let go."""
        return self._nbytes.total()

    def count(self, tenant: str) -> int:
        """How many reservations of a tenant have not let go."""
        return self._counts[tenant]

    def open(self, tenant: str, stored: Stored, nbytes: int, lease_s: float, shared: Hashable = None) -> Reservation:
        """A reservation of `nbytes` for `lease_s` seconds, held until `let_go`. Raises Overloaded, ObjectTooLarge.

        shared: by what others may `join` it; it must be nobody else's
        """
        self.expire()
        assert shared is None or shared not in self._shared
        if nbytes > self._limit_nbytes:
            raise ObjectTooLarge(
                f"a chunk of {nbytes} bytes cannot be reserved: all reservations together have {self._limit_nbytes} "
                "bytes of memory (store.reserved_share); PUT it instead"
            )
        if self._counts[tenant] >= self._most:
            raise Overloaded(f"{self._most} chunks are reserved (store.max_reservations); complete or abort some")
        own_nbytes, left_nbytes = self._nbytes[tenant] + nbytes, self._limit_nbytes - self.nbytes - nbytes
        if left_nbytes < 0 or (self._counts[tenant] and own_nbytes > left_nbytes):
            raise Overloaded("the memory for reserved chunks is taken; complete or abort some, and try again")
        reservation = Reservation(secrets.token_hex(16), tenant, stored, nbytes, self._clock() + lease_s, shared)
        reservation.missing_cells = _cells(stored)
        self._open[reservation.name] = reservation
        self._counts[tenant] += 1
        self._nbytes[tenant] += nbytes
        heapq.heappush(self._deadlines, (reservation.deadline, reservation.name))
        if shared is not None:
            self._shared[shared] = reservation
        return reservation

    def join(self, shared: Hashable, lease_s: float) -> Reservation | None:
        """The reservation that was opened with `shared`, for at least `lease_s` from now; None when there is none.

        It may be complete (`ended`): then its chunk is about to be there.
        """
        self.expire()
        reservation = self._shared.get(shared)
        if reservation is not None:
            reservation.deadline = max(reservation.deadline, self._clock() + lease_s)
        return reservation

    def give_up(self, shared: Hashable) -> bool:
        """Abort the open reservation of `shared`, unless a slice of it is under way; whether that was done."""
        reservation = self._shared.get(shared)
        if reservation is None or reservation.ended or reservation.receiving:
            return False
        self.abort(reservation)
        return True

    def left_s(self, reservation: Reservation) -> float:
        """How long until a reservation expires."""
        return max(0.0, reservation.deadline - self._clock())

    def find(self, tenant: str, name: str) -> Reservation:
        """An open reservation. Raises NoSuchReservation, also when it is another tenant's."""
        self.expire()
        reservation = self._open.get(name)
        if reservation is None or reservation.tenant != tenant:
            raise NoSuchReservation("there is no such reservation; it may be complete, aborted, or over its lease")
        return reservation

    def begin(self, reservation: Reservation, part: Slice, cut: Callable[[], object]) -> int | None:
        """Take a slice for receiving, to be ended with `end`; its crc64nvme instead when it has been received already.

        cut: ends the receiving early, because the reservation has ended
        Raises NoSuchReservation, and SliceConflict when it overlaps another slice or is being received already.
        """
        if reservation.ended:
            raise NoSuchReservation("the reservation has ended")
        if (crc64nvme := reservation.received.get(part)) is not None:
            return crc64nvme
        for other in (*reservation.receiving, *reservation.received):
            if part.overlaps(other):
                state = "is being received" if other in reservation.receiving else "has been received"
                raise SliceConflict(
                    f"layers {other.first_layer}-{other.stop_layer - 1} of heads {other.first_head}-"
                    f"{other.stop_head - 1} overlap this slice, and that one {state}"
                )
        if len(reservation.receiving) + len(reservation.received) >= _MAX_SLICES:
            raise SliceConflict(f"a chunk has at most {_MAX_SLICES} slices; send larger ones")
        reservation.receiving[part] = cut
        reservation.holds += 1
        return None

    def end(self, reservation: Reservation, part: Slice, crc64nvme: int | None) -> bool:
        """Note how the receiving of a slice went: None is that it failed. Whether the reservation is now complete.

        Then it has ended, and holds what it has until `let_go`.
        """
        del reservation.receiving[part]
        if crc64nvme is not None and not reservation.ended:
            reservation.received[part] = crc64nvme
            reservation.missing_cells -= part.cells
            if not reservation.missing_cells:
                self._end(reservation)
                return True
        self.let_go(reservation)
        return False

    def let_go(self, reservation: Reservation) -> None:
        """Give up one hold: that of `open`, or of the completion."""
        reservation.holds -= 1
        if reservation.ended and not reservation.holds:
            self._forget(reservation)

    def abort(self, reservation: Reservation) -> None:
        """End an open reservation, and the slices of it that are under way."""
        self._end(reservation)
        self._shared.pop(reservation.shared, None)
        for cut in list(reservation.receiving.values()):
            cut()
        if not reservation.holds:
            self._forget(reservation)

    def expire(self) -> int:
        """Abort the reservations whose deadline has passed; how many those are."""
        now, count = self._clock(), 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, name = heapq.heappop(self._deadlines)
            reservation = self._open.get(name)
            if reservation is not None and reservation.deadline > now:  # somebody has joined it since
                heapq.heappush(self._deadlines, (reservation.deadline, name))
            elif reservation is not None:
                self.abort(reservation)
                count += 1
        return count

    def abort_all(self) -> None:
        """Abort every open reservation."""
        for reservation in list(self._open.values()):
            self.abort(reservation)

    def _end(self, reservation: Reservation) -> None:
        reservation.ended = True
        del self._open[reservation.name]
        if len(self._deadlines) > 2 * len(self._open) + 64:
            self._deadlines = [item for item in self._deadlines if item[1] in self._open]
            heapq.heapify(self._deadlines)

    def _forget(self, reservation: Reservation) -> None:
        if self._shared.get(reservation.shared) is reservation:
            del self._shared[reservation.shared]
        self._counts[reservation.tenant] -= 1
        self._nbytes[reservation.tenant] -= reservation.nbytes
        self._let_go(reservation)


def _cells(stored: Stored) -> int:
    """How many pairs of a layer and a head a chunk has."""
    return stored.layout.layers * stored.layout.kv_heads
