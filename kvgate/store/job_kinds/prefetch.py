"""prefetch: objects are brought up to memory, or to a tier on the way there, before they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Brings, Work


class PrefetchJob(Brings):
    """See Kind. What lies in the tier or in a faster one is there already."""

    name: ClassVar[str] = "prefetch"
    options: ClassVar[Mapping[str, bool]] = {"tier": False}
    moves: ClassVar[bool] = True

    def __init__(self, work: Work) -> None:
        super().__init__(work, work.writable_rank("tier") if "tier" in work.options else MEMORY)
        self._ranks = range(self._rank + 1)

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        if not entry.has_copy(*self._ranks):
            await self.bring(entry)

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        return "" if entry is not None and entry.has_copy(*self._ranks) else super().why_not(key, entry)
