"""decompress: copies that are compressed lie as they were sent again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Work
from kvgate.store.job_kinds.recoding import Recodes


class Decompress(Recodes):
    """See Kind."""

    name: ClassVar[str] = "decompress"
    options: ClassVar[Mapping[str, bool]] = {"tier": False}
    moves: ClassVar[bool] = True
    home: ClassVar[int | None] = None

    def __init__(self, work: Work) -> None:
        super().__init__(work, ())

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        await self.recode(entry)

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        if entry is None:
            return "there is no such object"
        return "" if self.are(entry, compressed=False) else "it is still compressed"
