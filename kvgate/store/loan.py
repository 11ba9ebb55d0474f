"""An object in memory or on a GPU, lent where it lies to whoever copies the bytes and verifies them there."""

from __future__ import annotations

from array import array

from kvgate.memory.allocator import Extent
from kvgate.store.copies import Copies
from kvgate.store.index import Entry
from kvgate.tiers.base import Lent, Record


class Loan:
    """A lease on an object and on its bytes, until `end`. Nothing has verified the bytes against `blocks`."""

    __slots__ = ("_copies", "_entry", "_lease", "blocks", "extents", "record")

    def __init__(self, copies: Copies, entry: Entry, lease: Lent, blocks: array[int]) -> None:
        """Takes `lease` over."""
        copies.lease(entry)
        self._copies = copies
        self._entry: Entry | None = entry
        self._lease = lease
        self.record: Record = entry.record
        self.extents: tuple[Extent, ...] = lease.extents
        self.blocks = blocks

    @property
    def owner(self) -> str:
        """Whose segments the bytes lie in."""
        return self._lease.owner

    def touch(self) -> None:
        """Note the use of the object, in its order of eviction."""
        if self._entry is not None:
            self._copies.touch(self._entry, own_leases=1)

    def end(self) -> None:
        """Let the object go. Idempotent."""
        if self._entry is not None:
            self._copies.unlease(self._entry)
            self._entry = None
            self._lease.release()
