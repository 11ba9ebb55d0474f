"""Movement of one object: a copy in one tier is made from the copy in another."""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING

from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, Overloaded, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, combine_blocks
from kvgate.memory.lease import Lease
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry
from kvgate.store.promotion import Promotion
from kvgate.store.room import Room
from kvgate.tiers.base import HERE, Copy, Name, SharedTier, Upload

if TYPE_CHECKING:
    from kvgate.store.config import StoreConfig


class Mover:
    """Makes copies, each once at a time. All methods run on the event loop."""

    def __init__(self, copies: Copies, room: Room, promotion: Promotion, config: StoreConfig) -> None:
        self._copies = copies
        self._room = room
        self._promotion = promotion
        self._config = config
        self._running: dict[tuple[Entry, int], asyncio.Task[Exception | None]] = {}

    async def bring(self, entry: Entry, rank: int) -> None:
        """Give an entry a copy in a tier, made from its fastest other copy. It goes on whatever becomes of the caller.

        Nothing asks whether the tier's admission rule would take it. An entry that has been deleted or replaced
        meanwhile gets none. Raises TierFull, NotAdmitted where a shared tier has another body under the key, NotInTier
        when no good copy is left, or another TierError.
        """
        task = self._running.get((entry, rank))
        if task is None:
            if not entry.current or entry.has_copy(rank):
                return
            task = self._running[entry, rank] = self._copies.spawn(self._bring(entry, rank))
            task.add_done_callback(lambda _: self._running.pop((entry, rank)))
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def write(self, entry: Entry, rank: int, lease: Lease, blocks: array[int]) -> Copy:
        """A finished but unpublished copy in a lower tier of what `lease` holds. Raises TierError with nothing left."""
        if (copy := await self._find(entry, rank)) is not None:
            return copy
        record = entry.record
        upload = await self._room.begin(rank, record.tenant, record.nbytes)
        try:
            await upload.write(lease, 0, record.nbytes)
            return await upload.finish(record, blocks)
        except BaseException:
            await self._abort(upload)
            raise

    async def publish(self, entry: Entry, rank: int, copy: Copy) -> None:
        """Note a finished copy of a current entry and make it survive; a copy of a stale entry is deleted.

        Raises TierError after dropping the copy.
        """
        copies = self._copies
        if not entry.current:
            await copies.tiers[rank].delete(entry.record, copy)
            return
        copies.add_copy(entry, rank, copy)
        try:
            await copies.tiers[rank].publish(entry.record, copy)
        except TierError:
            if entry.copies[rank] is copy:
                copies.drop_copy(entry, rank)
                copies.lose_if_bare(entry, Fate.NOT_WRITTEN_BACK, rank)
            raise
        copies.settle(entry, rank)

    async def _bring(self, entry: Entry, rank: int) -> None:
        if rank == MEMORY:
            await self._to_memory(entry)
        else:
            await self.publish(entry, rank, await self._write_from_any(entry, rank))

    async def _to_memory(self, entry: Entry) -> None:
        while (source := entry.fastest()) is not None and source != MEMORY:
            arrival = self._promotion.begin(entry, source)
            if arrival is None:
                raise TierFull(f"memory has no room for {entry.record.nbytes} bytes: what it holds is in use")
            await arrival.wait()
        if source is None:
            raise NotInTier("there is no good copy of this object any more")

    async def _write_from_any(self, entry: Entry, rank: int) -> Copy:
        copies, failed = self._copies, None
        for source in range(len(copies.tiers)):
            copy = entry.copies[source]
            if copy is None or source == rank:
                continue
            if source == MEMORY:
                with copy.lease.share() as lease:
                    return await self.write(entry, rank, lease, copy.blocks)
            try:
                return await self._stream(entry, source, copy, rank)
            except _SourceFailed as error:
                failed = error.reason
                if entry.copies[source] not in (None, copy):  # it has been made anew, and the old one is gone
                    return await self._write_from_any(entry, rank)
                if isinstance(failed, CorruptCopy | NotInTier):
                    copies.drop_bad_copy(entry, source, copy, failed)
        raise failed or NotInTier("there is no good copy of this object any more")

    async def _stream(self, entry: Entry, source: int, copy: Copy, rank: int) -> Copy:
        """A finished copy of what lies in a lower tier, through a window of memory. Raises _SourceFailed, TierError."""
        if (found := await self._find(entry, rank)) is not None:
            return found
        record = entry.record
        most = max(BLOCK_NBYTES, min(record.nbytes, self._config.window))
        try:
            window = await self._room.reserve_window(record.tenant, most, self._config.memory_wait)
        except Overloaded as error:
            raise TierError(f"there is no memory to move an object through: {error}", transient=True) from error
        reader = self._copies.tiers[source].open(record, copy)
        blocks: array[int] = array("Q")
        try:
            upload = await self._room.begin(rank, record.tenant, record.nbytes)
            try:
                step_nbytes = window.nbytes - window.nbytes % BLOCK_NBYTES or BLOCK_NBYTES
                for start in range(0, record.nbytes, step_nbytes):
                    nbytes = min(step_nbytes, record.nbytes - start)
                    try:
                        blocks += await reader.read_into(start, window, nbytes)
                    except TierError as error:
                        raise _SourceFailed(error) from error
                    await upload.write(window, 0, nbytes)
                if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
                    raise _SourceFailed(CorruptCopy("the bytes do not match the digest of the whole"))
                return await upload.finish(record, blocks)
            except BaseException:
                await self._abort(upload)
                raise
        finally:
            window.release()
            await reader.close()

    async def _find(self, entry: Entry, rank: int) -> Copy | None:
        """The copy that another gateway has written to a shared tier; it saves the way of all the bytes."""
        if rank not in self._copies.shared_ranks:
            return None
        tier: SharedTier = self._copies.tiers[rank]  # type: ignore[assignment]
        record = entry.record
        name = Name(*record[:3])
        await self._copies.gone(rank, [name])
        [found] = await tier.lookup([name])
        if found is None:
            return None
        if not found.same_body(record):
            raise NotAdmitted(f"another gateway has written another body under this key to the {tier.name} tier")
        return HERE

    async def _abort(self, upload: Upload) -> None:
        await asyncio.shield(self._copies.spawn(upload.abort()))


class _SourceFailed(Exception):
    """What was to be read failed, not what was written."""

    def __init__(self, reason: TierError) -> None:
        super().__init__(str(reason))
        self.reason = reason
