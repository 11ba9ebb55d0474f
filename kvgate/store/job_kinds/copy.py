"""copy: objects get a copy in a tier, and keep those that they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Brings, Work


class Copy(Brings):
    """See Kind."""

    name: ClassVar[str] = "copy"
    options: ClassVar[Mapping[str, bool]] = {"tier": True}
    moves: ClassVar[bool] = True

    def __init__(self, work: Work) -> None:
        super().__init__(work, work.writable_rank("tier"))

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        await self.bring(entry)
