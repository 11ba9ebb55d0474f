"""Published: the objects in memory that a data plane beside the event loop answers for by itself.

Whatever an answer depends on that the plane does not know keeps an object from being published, and withdraws it.

Invariants
1. What is published is what `Store.open_read` gives a client of its owner, byte for byte: it is withdrawn in the very
   step in which the object is replaced, removed or leaves memory, or its bucket gets settings or ends to watch, or a
   recording begins.
2. Each publication has a share of the object's memory, which is released once: when it is withdrawn, or where the plane
   reads there at that moment, when that has ended.
3. At most `limit` objects are published; the one that was used least recently gives way.

What the plane has read is told in bulk: `note_uses` is called before anything is decided by the order of uses.
Synchronous and pure but for the board.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from kvgate.errors import NoSuchBucket
from kvgate.memory.lease import Lease
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.demotion import Demotion
from kvgate.store.index import Entry, Index
from kvgate.store.prefetch import Prefetch
from kvgate.store.rates import Rates
from kvgate.store.recorder import Recorder
from kvgate.store.retention import Retention
from kvgate.tiers.base import Record

Describe = Callable[[Record], tuple[Mapping[str, str], Mapping[str, str]]]
"""The headers that describe an object, and those that its checksums add."""


class Board(Protocol):
    """What a data plane can do. It may answer from a publication from `publish` to `withdraw`, in other threads."""

    def publish(
        self,
        record: Record,
        headers: Mapping[str, str],
        checksums: Mapping[str, str],
        lease: Lease,
        blocks: array[int],
    ) -> int | None:
        """Answer for an object to its owner; a number that is never used again, or None where it cannot.

        No other object of this name is published.
        lease: of the caller, who keeps it until nobody reads there; blocks: the crc64nvme of each block
        """

    def withdraw(self, number: int) -> bool:
        """Answer nobody from it any more. Whether nobody reads it either; otherwise `released` will name it."""

    def readers(self, number: int) -> int:
        """How many answers are being sent from a publication right now."""

    def used(self) -> Sequence[int]:
        """What has been read since the last call, each once, in the order of the first reads."""

    def released(self) -> Sequence[int]:
        """Those withdrawn ones of which the last reader has gone since the last call."""

    def corrupt(self) -> Sequence[int]:
        """Those whose bytes failed their digest since the last call; they are still to be withdrawn."""


class _Publication(NamedTuple):
    """An entry on the board. `lease` is the share of its memory."""

    entry: Entry
    number: int
    lease: Lease


class Published:
    """See the module. All methods run on the event loop; without a board they do nothing.

    distrust: has the copy of an entry in memory verified, and dropped where it is bad
    """

    def __init__(
        self,
        limit: int,
        *,
        index: Index,
        retention: Retention,
        copies: Copies,
        demotion: Demotion,
        prefetch: Prefetch,
        rates: Rates,
        recorder: Recorder,
        distrust: Callable[[Entry], object],
    ) -> None:
        self._limit = limit
        self._index, self._retention, self._copies = index, retention, copies
        self._demotion, self._prefetch = demotion, prefetch
        self._rates, self._recorder = rates, recorder
        self._distrust = distrust
        self._board: Board | None = None
        self._shown: OrderedDict[Entry, _Publication] = OrderedDict()  # the least recently used first
        self._numbers: dict[int, _Publication] = {}
        self._places: dict[tuple[str, str], set[Entry]] = {}
        self._leaving: dict[int, Lease] = {}  # of what is withdrawn and still read
        index.left = copies.left_memory = self.withdraw
        index.redescribed = retention.begins_to_watch = self.withdraw_bucket
        recorder.begins = self.withdraw_all

    def __len__(self) -> int:
        """How many objects are published."""
        return len(self._shown)

    # --- the board ----------------------------------------------------------------------------------------------------

    def attach(self, board: Board) -> None:
        """Publish on a board from now on."""
        self._board = board

    def detach(self) -> None:
        """Forget a board whose threads have ended, so that it reads nothing any more, and let all memory go."""
        self._board = None
        for lease in [*(each.lease for each in self._shown.values()), *self._leaving.values()]:
            lease.release()
        for table in (self._shown, self._numbers, self._places, self._leaving):
            table.clear()

    def settle(self) -> None:
        """Let go of what is not read any more, and have what was found corrupt verified. When the board has news."""
        if self._board is None:
            return
        for number in self._board.corrupt():
            publication = self._numbers.get(number)
            if publication is not None:  # else its copy has left, or will be verified by the next read
                self.withdraw(publication.entry)
                self._distrust(publication.entry)
        for number in self._board.released():
            self._leaving.pop(number).release()

    # --- what is published --------------------------------------------------------------------------------------------

    def offer(self, record: Record, describe: Describe) -> bool:
        """Publish an object that a client of its owner has just asked for, if the plane would answer as the store.

        Whether it is published now.
        """
        board = self._board
        if board is None or not self._limit:
            return False
        entry = self._publishable(record)
        if entry is None:
            return False
        if entry in self._shown:
            self._shown.move_to_end(entry)
            return True
        copy = entry.copies[MEMORY]
        if copy is None or copy.lease is None:
            return False
        lease = copy.lease.share()
        try:
            number = board.publish(record, *describe(record), lease, copy.blocks)
        except BaseException:
            lease.release()
            raise
        if number is None:
            lease.release()
            return False
        self._shown[entry] = self._numbers[number] = _Publication(entry, number, lease)
        self._places.setdefault(record[:2], set()).add(entry)
        if len(self._shown) > self._limit:
            self.note_uses()
            self.withdraw(next(iter(self._shown)))
        return entry in self._shown

    def _publishable(self, record: Record) -> Entry | None:
        """The entry of a record, if it is the current one and nothing but its bytes and headers makes its answer."""
        tenant, bucket, key = record[:3]
        if not record.nbytes or self._recorder.listening:
            return None
        if self._rates.requests.rate(tenant) is not None or self._rates.read.rate(tenant) is not None:
            return None
        try:
            if self._index.bucket(tenant, bucket).settings or self._retention.watches(tenant, bucket):
                return None
        except NoSuchBucket:
            return None
        entry = self._index.get(tenant, bucket, key)
        if entry is None or entry.record is not record:
            return None
        if entry not in self._shown and self._copies.keys.foreign(bucket, key) is not None:
            return None  # each request for it teaches what to prefetch
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Have nobody answered from an entry any more. Nothing for one that is not published."""
        publication = self._shown.pop(entry, None)
        if publication is None:
            return
        _, number, lease = publication
        del self._numbers[number]
        place = entry.record[:2]
        self._places[place].remove(entry)
        if not self._places[place]:
            del self._places[place]
        assert self._board is not None
        if self._board.withdraw(number):
            lease.release()
        else:
            self._leaving[number] = lease

    def withdraw_bucket(self, tenant: str, bucket: str) -> None:
        """`withdraw` of all in a bucket."""
        if entries := self._places.get((tenant, bucket)):
            self.note_uses()
            for entry in list(entries):
                self.withdraw(entry)

    def withdraw_all(self) -> None:
        """`withdraw` of everything."""
        self.note_uses()
        for entry in list(self._shown):
            self.withdraw(entry)

    # --- what is read -------------------------------------------------------------------------------------------------

    def is_read(self, entry: Entry) -> bool:
        """Whether the plane reads an entry right now, so that its memory would not come back."""
        publication = self._shown.get(entry)
        return publication is not None and self._board is not None and self._board.readers(publication.number) > 0

    def note_uses(self) -> None:
        """Note what the plane has read since the last call, as `Store.open_read` would have.

        The last one read counts as used first: so the links of a chain, read head first, go on going tail first.
        """
        if self._board is None:
            return
        for number in reversed(self._board.used()):
            publication = self._numbers.get(number)
            if publication is None:
                continue
            entry = publication.entry
            self._shown.move_to_end(entry)
            self._prefetch.note_read(entry)
            self._copies.touch(entry)
            if self._copies.selective:
                self._demotion.offer([entry])
