"""What `compress` and `decompress` have in common: copies are made anew where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from kvgate.codec.base import Codec
from kvgate.errors import InvalidArgument
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Skipped, Work
from kvgate.store.recoder import InUse


class Recodes:
    """The tiers that are meant, and the work on one object: one that can, or all of these."""

    def __init__(self, work: Work, codecs: Sequence[Codec]) -> None:
        """codecs: that may be used; none to have the objects as they were sent"""
        self._work, self._codecs = work, codecs
        if "tier" in work.options:
            rank = work.rank("tier")
            if not work.recoder.can(rank):
                raise InvalidArgument(f"tier: the {work.options['tier']} tier compresses nothing")
            self._ranks = [rank]
        else:
            self._ranks = [rank for rank in work.copies.lower_ranks if work.recoder.can(rank)]
            if not self._ranks:
                raise InvalidArgument("tier: there is none that compresses; a disk tier does")

    async def begin(self) -> None:
        """See Kind."""

    async def recode(self, entry: Entry) -> None:
        """Have the copies as they should be. Raises Skipped, TierError."""
        if not entry.has_copy(*self._ranks):
            raise Skipped("it does not lie in a tier that compresses")
        for rank in self._ranks:
            if entry.has_copy(rank):
                try:
                    self._work.note_saved(await self._work.recoder.recode(entry, rank, self._codecs))
                except InUse as error:
                    raise Skipped(str(error)) from error

    def are(self, entry: Entry, *, compressed: bool) -> bool:
        """Whether every copy that there is, is as it should be."""
        ranks = [rank for rank in self._ranks if entry.has_copy(rank)]
        return all(
            (self._work.recoder.stored_nbytes(entry, rank) < entry.record.nbytes) is compressed for rank in ranks
        )
