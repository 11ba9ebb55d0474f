"""Whose turn it is at a tier that takes a few operations and a few bytes at once.

Invariants
1. At most `operations` turns are on, and they move at most `nbytes` bytes, except that one alone may move more.
2. Turns begin in the order in which they joined, but those that move no bytes never wait for bytes: a lookup is not
   held up by a queue of large objects.
3. Those that overtake leave one turn to whom they overtake, so that it begins as soon as there is room for its bytes.
4. At most `waiting` turns wait.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from kvgate.errors import TierBusy


class Turn:
    """A place among the operations, or in the queue for one; `begun` is called when the wait is over."""

    __slots__ = ("begun", "nbytes", "number", "on")

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.nbytes = nbytes
        self.on = False
        self.begun: Callable[[], object] = _nothing


class Turns:
    """The turns of one tier. Synchronous."""

    def __init__(self, operations: int, nbytes: int, waiting: int) -> None:
        self._operations = operations
        self._nbytes = nbytes
        self._most_waiting = waiting
        self.on = 0
        self.moving_nbytes = 0
        self._numbers = itertools.count()
        self._large: deque[Turn] = deque()
        self._small: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        return len(self._large) + len(self._small)

    def join(self, nbytes: int) -> Turn:
        """A turn, which is on at once when there is room and nobody of its kind waits. Raises TierBusy when too many
        wait."""
        turn = Turn(next(self._numbers), nbytes)
        queue = self._large if nbytes else self._small
        if not queue and self._fits(turn):
            self._begin(turn)
        elif self.waiting >= self._most_waiting:
            raise TierBusy(f"{self.waiting} operations wait for the tier already")
        else:
            queue.append(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """End a turn, or its wait; those that can begin now do."""
        if turn.on:
            turn.on = False
            self.on -= 1
            self.moving_nbytes -= turn.nbytes
        else:
            (self._large if turn.nbytes else self._small).remove(turn)
        while (queue := self._next()) is not None:
            self._begin(queue.popleft())

    def _next(self) -> deque[Turn] | None:
        """The queue whose first turn can begin; of two, that of the one that joined first."""
        ready = [queue for queue in (self._large, self._small) if queue and self._fits(queue[0])]
        return min(ready, key=lambda queue: queue[0].number, default=None)

    def _fits(self, turn: Turn) -> bool:
        if self.on == 0:
            return True
        if turn.nbytes:
            return self.on < self._operations and self._has_room(turn)
        overtakes = bool(self._large) and not self._has_room(self._large[0])
        return self.on < self._operations - overtakes

    def _has_room(self, turn: Turn) -> bool:
        return self.moving_nbytes + turn.nbytes <= self._nbytes

    def _begin(self, turn: Turn) -> None:
        turn.on = True
        self.on += 1
        self.moving_nbytes += turn.nbytes
        turn.begun()


def _nothing() -> None:
    """What nobody waits for."""
