"""What has not been used since the gateway started, in the order of its age.

A start with a million objects must not sort them: they are only put into classes by age, and a class is sorted when its
turn to be evicted comes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from kvgate.store.index import Entry

AGE_CLASS_BITS = 17
"""An age class is an mtime in ms without these bits: 131 s."""


class Cold:
    """Entries by age. An entry is not taken out when it is used or gone: `in_order` asks, and passes it over.

    classes: entries by their age class, to be filled before `in_order` is used
    """

    def __init__(self) -> None:
        self.classes: defaultdict[int, list[Entry]] = defaultdict(list)
        self._sorted: list[Entry] = []
        self._head = 0  # what comes before in `_sorted` is not cold any more

    def in_order(self, is_cold: Callable[[Entry], bool]) -> Iterator[Entry]:
        """The entries that are still cold, the oldest first."""
        while self._head < len(self._sorted) and not is_cold(self._sorted[self._head]):
            self._head += 1
        if self._head * 2 > len(self._sorted):
            del self._sorted[: self._head]
            self._head = 0
        at = self._head
        while at < len(self._sorted) or self.classes:
            if at == len(self._sorted):
                self._sorted += sorted(self.classes.pop(min(self.classes)), key=_mtime_ms)
            if is_cold(self._sorted[at]):
                yield self._sorted[at]
            at += 1


def _mtime_ms(entry: Entry) -> int:
    return entry.record.mtime_ms
