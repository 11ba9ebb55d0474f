"""Recoding of one object in place: its copy in a tier is made anew, encoded or as it was sent.

The entry is leased meanwhile, so that it is not evicted to make room for itself. Whoever else has a lease may have
chosen the old copy to read and not opened it yet: then nothing is changed. The old copy is deleted once the tier would
report the new one after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvgate.codec.base import Codec
from kvgate.errors import CorruptCopy, KVGateError, NotInTier, TierError
from kvgate.store.copies import Copies
from kvgate.store.index import Entry
from kvgate.store.promotion import Promotion
from kvgate.store.room import Room
from kvgate.tiers.base import Copy, Encodes


class InUse(KVGateError):
    """An object that is left as it is because somebody has a lease on it, or it is being read."""


class Recoder:
    """Recodes copies, each once at a time. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, promotion: Promotion) -> None:
        self._copies, self._room, self._promotion = copies, room, promotion
        self._running: dict[tuple[Entry, int], asyncio.Task[int | Exception]] = {}

    def can(self, rank: int) -> bool:
        """Whether the tier can keep its copies encoded."""
        tier = self._copies.tiers[rank]
        return isinstance(tier, Encodes) and not tier.read_only

    def stored_nbytes(self, entry: Entry, rank: int) -> int:
        """What the body of an entry's copy takes in a tier that can keep copies encoded."""
        tier: Encodes = self._copies.tiers[rank]  # type: ignore[assignment]
        return tier.stored_nbytes(entry.record, entry.copies[rank])

    async def recode(self, entry: Entry, rank: int, codecs: Sequence[Codec]) -> int:
        """Encode an entry's copy, or without codecs decode it; how many bytes fewer it takes. Nothing where it is so.

        It goes on whatever becomes of the caller. Raises InUse, TierFull, or another TierError; the copy is good then
        as it was, unless it was found to be bad, and dropped.
        """
        task = self._running.get((entry, rank))
        if task is None:
            task = self._running[entry, rank] = self._copies.spawn(self._recode(entry, rank, codecs))
            task.add_done_callback(lambda _: self._running.pop((entry, rank)))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _recode(self, entry: Entry, rank: int, codecs: Sequence[Codec]) -> int:
        self._refuse_if_in_use(entry, own_leases=0)
        copy = entry.copies[rank]
        if copy is None or not entry.current:
            return 0
        self._copies.lease(entry)
        try:
            return await self._replace(entry, rank, copy, codecs)
        except (CorruptCopy, NotInTier) as error:
            self._copies.drop_bad_copy(entry, rank, copy, error)
            raise
        finally:
            self._copies.unlease(entry)

    async def _replace(self, entry: Entry, rank: int, copy: Copy, codecs: Sequence[Codec]) -> int:
        tier: Encodes = self._copies.tiers[rank]  # type: ignore[assignment]
        record = entry.record
        before_nbytes = tier.stored_nbytes(record, copy)
        if bool(codecs) == (before_nbytes < record.nbytes):
            return 0
        await self._room.make_spare(rank, record.tenant, record.nbytes)
        new = await tier.recode(record, copy, codecs)
        if new is copy:
            return 0
        saved_nbytes = before_nbytes - tier.stored_nbytes(record, new)
        unwanted: Copy | None = new
        try:
            if not entry.current or entry.copies[rank] is not copy:
                return 0  # it has been deleted, replaced or dropped meanwhile
            self._refuse_if_in_use(entry, own_leases=1)
            entry.set_copy(rank, new)
            unwanted = None  # until it is known which one a restart would find
            try:
                await self._copies.tiers[rank].publish(record, new)
                unwanted = copy
            except TierError:
                unwanted = copy
                if entry.copies[rank] is new:
                    entry.set_copy(rank, copy)
                    unwanted = new
                raise
        finally:
            if unwanted is not None:
                await self._copies.tiers[rank].delete(record, unwanted)
        return saved_nbytes

    def _refuse_if_in_use(self, entry: Entry, own_leases: int) -> None:
        if entry.leases > own_leases or self._promotion.is_running(entry):
            raise InUse("in use: leased or being read")
