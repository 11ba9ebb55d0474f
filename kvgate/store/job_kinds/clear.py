"""clear: objects lose their copy in a tier that are in another one too; without a tier, they are deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Skipped, Work
from kvgate.store.job_kinds.dropping import drop
from kvgate.store.retention import Pin


class Clear:
    """See Kind. What an owner has pinned hard is not deleted."""

    name: ClassVar[str] = "clear"
    options: ClassVar[Mapping[str, bool]] = {"tier": False}
    moves: ClassVar[bool] = False
    home: ClassVar[int | None] = None

    def __init__(self, work: Work) -> None:
        self._work = work
        self._rank = work.writable_rank("tier") if "tier" in work.options else None
        self._others = [rank for rank in range(len(work.copies.tiers)) if rank != self._rank]

    async def begin(self) -> None:
        """See Kind."""

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        if self._rank is not None:
            await drop(self._work.copies, entry, self._rank, self._others)
            return
        if self._is_pinned(entry):
            raise Skipped("pinned")
        await self._work.delete(*entry.record[:3])

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind. What has been written since the job began need not be gone."""
        if entry is None or entry.record.mtime_ms >= self._work.started_ms:
            return ""
        if self._rank is None:
            return "it is pinned" if self._is_pinned(entry) else "it is still there"
        return (
            f"it has a copy in the {self._work.copies.tiers[self._rank].name} tier"
            if entry.has_copy(self._rank)
            else ""
        )

    def _is_pinned(self, entry: Entry) -> bool:
        return self._work.retention.wanted(entry.record) is Pin.HARD
