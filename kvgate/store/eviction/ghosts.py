"""Ghosts: what was seen lately and is not there, in about twenty bytes each.

What is forgotten is exactly what is older than the number of ghosts that are wanted. That matters for chains: if their
links were forgotten here and there, what comes back would have holes, and nothing behind a hole can be hit.

A table has rows of _WAYS places, used in turn, and twice as many places as ghosts, so that hardly a row loses one that
is young enough. It is never rebuilt, as that would take seconds at a million objects: where another size is wanted, a
new table takes its place, and the old one is asked as well until all that it holds is too old.
"""

from __future__ import annotations

from array import array

_WAYS = 16
_LEAST = 64
_SPARE = 2
_SLACK = 1.25
_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd: spreads neighbours over the rows."""


def spread(identity: int) -> int:
    """64 bits of an identity in which each of the upper bits depends on all of its own."""
    mixed = (identity & _MASK) * _SPREAD & _MASK
    return (mixed ^ mixed >> 32) * _SPREAD & _MASK


class _Table:
    """Places for marks: 0 for none, and otherwise 30 bits of an identity and whether it was seen once (1) or again (0).

    Two identities of one row have the same mark once in a billion times; then one is taken for the other.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows = -(-limit * _SPARE // _WAYS)
        places = self._rows * _WAYS
        self.marks = array("I", [0]) * places
        self.times = array("I", [0]) * places
        self._turns = bytearray(self._rows)

    def find(self, mixed: int) -> int:
        """The place of an identity, -1 for none."""
        once = mixed & 0xFFFFFFFF | 3
        start = ((mixed >> 32) * self._rows >> 32) * _WAYS
        row = self.marks[start : start + _WAYS]
        if once in row:
            return start + row.index(once)
        if once ^ 1 in row:
            return start + row.index(once ^ 1)
        return -1

    def put(self, mixed: int, time: int, again: int) -> None:
        """Put an identity into the place of its row whose turn it is."""
        row = (mixed >> 32) * self._rows >> 32
        turn = self._turns[row]
        self._turns[row] = (turn + 1) % _WAYS
        place = row * _WAYS + turn
        self.marks[place] = (mixed & 0xFFFFFFFF | 3) ^ again
        self.times[place] = time


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
        return sum(8 * len(table.marks) + len(table._turns) for table in (self._table, self._old) if table is not None)

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
        return 0 if table is None else 2 - (table.marks[place] & 1)

    def see(self, identity: int) -> None:
        """Note that an identity was seen. One that is seen again is not remembered longer."""
        mixed = spread(identity)
        table, place = self._find(mixed)
        if table is not None:
            table.marks[place] &= ~1
            return
        self._time = self._time + 1 & 0xFFFFFFFF
        self._table.put(mixed, self._time, 0)

    def forget(self, identity: int) -> int:
        """Take an identity out; what `seen` said of it."""
        table, place = self._find(spread(identity))
        if table is None:
            return 0
        mark, table.marks[place] = table.marks[place], 0
        return 2 - (mark & 1)

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
        if self._time - table.times[place] & 0xFFFFFFFF >= self._table.limit:
            table.marks[place] = 0
            return None, 0
        return table, place
