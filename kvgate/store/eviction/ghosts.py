"""Ghosts: what was seen lately and is not there, in about twenty bytes each.

What is forgotten is exactly what is older than the number of ghosts that are wanted. That matters for chains: if their
links were forgotten here and there, what comes back would have holes, and nothing behind a hole can be hit.

A table has rows of _WAYS places, used in turn, and twice as many places as ghosts, so that hardly a row loses one that
is young enough. It is never rebuilt, as that would take seconds at a million objects: where another size is wanted, a
new table takes its place, and the old one is asked as well until all that it holds is too old.
"""

from __future__ import annotations

import mmap

_WAYS = 16
_ROW_NBYTES = 4 * _WAYS
_NOTHING = bytes(4)
_LEAST = 64
_SPARE = 2
_SLACK = 1.25
_MOST_TIME = 0x7FFFFFFF
_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd: spreads neighbours over the rows."""


def spread(identity: int) -> int:
    """64 bits of an identity in which each of the upper bits depends on all of its own."""
    mixed = (identity & _MASK) * _SPREAD & _MASK
    return (mixed ^ mixed >> 32) * _SPREAD & _MASK


class _Table:
    """Places for marks: 0 for none, and otherwise 31 bits of an identity.

    stamps: of each place, twice the time when it was put in, and 1 more where it was seen again
    Two identities of one row have the same mark once in a billion times; then one is taken for the other. The memory
    is mapped and not touched before it is used, so that a large table takes no time to make.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows = -(-limit * _SPARE // _WAYS)
        nbytes = self._rows * _ROW_NBYTES
        self._marks = mmap.mmap(-1, nbytes)
        self.stamps = memoryview(mmap.mmap(-1, nbytes)).cast("I")
        self._turns = bytearray(self._rows)

    @property
    def nbytes(self) -> int:
        return len(self._marks) + self.stamps.nbytes + len(self._turns)

    def find(self, mixed: int) -> int:
        """The place of an identity, -1 for none."""
        start = ((mixed >> 32) * self._rows >> 32) * _ROW_NBYTES
        mark = (mixed & 0xFFFFFFFF | 1).to_bytes(4, "little")
        at = self._marks.find(mark, start, start + _ROW_NBYTES)
        while at & 3 and at > 0:  # where two marks meet
            at = self._marks.find(mark, at + 1, start + _ROW_NBYTES)
        return at >> 2

    def put(self, mixed: int, time: int) -> None:
        """Put an identity into the place of its row whose turn it is."""
        row = (mixed >> 32) * self._rows >> 32
        turn = self._turns[row]
        self._turns[row] = (turn + 1) % _WAYS
        place = row * _WAYS + turn
        self._marks[4 * place : 4 * place + 4] = (mixed & 0xFFFFFFFF | 1).to_bytes(4, "little")
        self.stamps[place] = 2 * time

    def clear(self, place: int) -> None:
        """Leave nothing in a place."""
        self._marks[4 * place : 4 * place + 4] = _NOTHING


class Ghosts:
    """Identities that were seen once, or again, since they were last forgotten."""

    def __init__(self) -> None:
        self._table = _Table(_LEAST)
        self._old: _Table | None = None
        self._old_until = 0
        self._time = 0  # how many were put in

    @property
    def limit(self) -> int:
        """How many are remembered at most."""
        return self._table.limit

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return sum(table.nbytes for table in (self._table, self._old) if table is not None)

    def fit(self, wanted: int) -> None:
        """Remember as many as are wanted, or somewhat more."""
        limit = self._table.limit
        if wanted > limit or (limit > _LEAST and wanted * 4 < limit):
            self._old = self._table
            self._table = _Table(max(_LEAST, int(wanted * _SLACK)))
            self._old_until = self._time + self._table.limit

    def seen(self, identity: int) -> int:
        """0 for what is not remembered, 1 for what was seen once, 2 for what was seen again since."""
        table, place = self._find(spread(identity))
        return 0 if table is None else 1 + (table.stamps[place] & 1)

    def see(self, identity: int) -> None:
        """Note that an identity was seen. One that is seen again is not remembered longer."""
        mixed = spread(identity)
        table, place = self._find(mixed)
        if table is not None:
            table.stamps[place] |= 1
            return
        self._time = self._time + 1 & _MOST_TIME
        self._table.put(mixed, self._time)

    def forget(self, identity: int) -> int:
        """Take an identity out; what `seen` said of it."""
        table, place = self._find(spread(identity))
        if table is None:
            return 0
        table.clear(place)
        return 1 + (table.stamps[place] & 1)

    def _find(self, mixed: int) -> tuple[_Table | None, int]:
        table = self._table
        place = table.find(mixed)
        if place < 0:
            if self._old is None:
                return None, 0
            if self._time >= self._old_until:
                self._old = None
                return None, 0
            table = self._old
            place = table.find(mixed)
            if place < 0:
                return None, 0
        if self._time - (table.stamps[place] >> 1) & _MOST_TIME >= self._table.limit:
            table.clear(place)
            return None, 0
        return table, place
