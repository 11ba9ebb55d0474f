"""unpin: objects lose their pins. A prefix loses its rule, and every object under it the pin of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Work
from kvgate.store.retention import Change, Pin

_CHANGE = Change(pin=Pin.NONE)


class Unpin:
    """See Kind. The pin that a shorter prefix gives stays, and the check says so; a manifest keeps its own."""

    name: ClassVar[str] = "unpin"
    options: ClassVar[Mapping[str, bool]] = {}
    moves: ClassVar[bool] = False
    home: ClassVar[int | None] = None

    def __init__(self, work: Work) -> None:
        self._work = work

    async def begin(self) -> None:
        """See Kind."""
        chosen, keeper = self._work.selection, self._work.keeper
        keys: Sequence[str] | None = chosen.keys
        if keys is None:
            await keeper.keep_prefix(self._work.tenant, chosen.bucket, chosen.prefix, _CHANGE)
            keys = self._work.retention.marks(self._work.tenant, chosen.bucket, chosen.prefix)
        await keeper.unpin(self._work.tenant, chosen.bucket, keys)

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        self._work.retention.refresh(entry)

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        if entry is None or not self._work.retention.wanted(entry.record):
            return ""
        return "a shorter prefix is pinned as well"
