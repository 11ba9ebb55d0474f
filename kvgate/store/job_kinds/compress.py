"""compress: copies in a tier that can are kept in fewer bytes, where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kvgate.codec.installed import codec_named, installed_names
from kvgate.errors import InvalidArgument
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Skipped, Work
from kvgate.store.job_kinds.recoding import Recodes

_MOST_REMEMBERED = 100_000


class Compress(Recodes):
    """See Kind. What would take hardly less room stays as it is, and the check has nothing against that."""

    name: ClassVar[str] = "compress"
    options: ClassVar[Mapping[str, bool]] = {"tier": False, "codec": False}
    moves: ClassVar[bool] = True
    home: ClassVar[int | None] = None

    def __init__(self, work: Work) -> None:
        names = installed_names()
        if "codec" in work.options:
            if work.options["codec"] not in names:
                raise InvalidArgument(f"codec: expected {' or '.join(names)}")
            names = [work.options["codec"]]
        super().__init__(work, [codec_named(name) for name in names])
        self._incompressible: set[Entry] = set()

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        await self.recode(entry)
        if not self.are(entry, compressed=True):
            if len(self._incompressible) < _MOST_REMEMBERED:
                self._incompressible.add(entry)
            raise Skipped("it would take hardly less room")

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind. Of what does not lie in such a tier, nothing is asked."""
        if entry is None:
            return "there is no such object"
        if self.are(entry, compressed=True) or entry in self._incompressible:
            return ""
        return "it is not compressed"
