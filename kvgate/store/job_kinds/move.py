"""move: objects get a copy in a tier, and lose the one in another; by default those in every other tier of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.errors import InvalidArgument
from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Brings, Work
from kvgate.store.job_kinds.dropping import drop


class Move(Brings):
    """See Kind."""

    name: ClassVar[str] = "move"
    options: ClassVar[Mapping[str, bool]] = {"tier": True, "source": False}
    moves: ClassVar[bool] = True

    def __init__(self, work: Work) -> None:
        super().__init__(work, work.writable_rank("tier"))
        if self._rank == MEMORY:
            raise InvalidArgument(
                "tier: nothing in memory survives, so that nothing is moved there; use prefetch or copy"
            )
        if "source" in work.options:
            self._sources = [work.writable_rank("source")]
            if self._sources == [self._rank]:
                raise InvalidArgument("source: the tier that objects are moved to")
        else:
            tiers = enumerate(work.copies.tiers)
            self._sources = [
                rank for rank, tier in tiers if rank != self._rank and not tier.shared and not tier.read_only
            ]

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        if "source" in self._work.options and not entry.has_copy(*self._sources):
            return
        await self.bring(entry)
        for rank in self._sources:
            await drop(self._work.copies, entry, rank, kept=(self._rank,))

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        if entry is not None and "source" in self._work.options and not entry.has_copy(*self._sources):
            return ""
        missing = super().why_not(key, entry)
        if missing or entry is None or not entry.has_copy(*self._sources):
            return missing
        return "it still has a copy in the tier that it was to leave"
