"""Bytes on their way to the S3 store.

Only `finish` knows the key, and S3 takes no byte without one. Until then an upload holds a share of the lease, where
the whole body lies in it, and nothing is copied. A body that comes through a window is spooled to an unnamed file.

Invariants
1. Nothing is stored under the key but by one conditional request, the last one: a PUT, or the completion of the parts.
2. What the store has is never replaced, unless it is no whole copy of anything.
3. Parts of an upload that did not end well are aborted once no thread sends any; if that fails too, a gateway that
   starts on the prefix a day later does it.
"""

from __future__ import annotations

import asyncio
from array import array
from typing import TYPE_CHECKING

from kvgate.errors import NotAdmitted, NotInTier, TierError, TierFull
from kvgate.http.deadline import Deadline
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.memory.lease import Lease
from kvgate.tiers.base import HERE, Copy, Record
from kvgate.tiers.s3_body import Body
from kvgate.tiers.s3_calls import ConditionFailed, strong_etag
from kvgate.tiers.s3_footers import WRITER, CorruptEtag, Found
from kvgate.tiers.s3_parts import PartsUpload
from kvgate.tiers.s3_spool import Spool

if TYPE_CHECKING:
    from kvgate.tiers.s3 import S3Tier

FOOTER_ALLOWANCE_NBYTES = 4096
_NEW = {"if-none-match": "*"}
_ATTEMPTS = 3


class S3Upload:
    """An object on its way into the store."""

    def __init__(self, tier: S3Tier, nbytes: int | None, writer: str) -> None:
        self._tier = tier
        self._nbytes = nbytes
        self._writer = writer
        self._offset = 0
        self._held: list[tuple[Lease, int, int]] = []
        self._spool: Spool | None = None
        self._ended = False
        self._taken_nbytes = footprint(nbytes or 0)
        tier.take(self._taken_nbytes)

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        if self._ended:
            raise TierError("the upload has ended")
        grown = footprint(self._offset + stop - start) - self._taken_nbytes
        if grown > 0:
            if grown > self._tier.left_nbytes:
                raise TierFull(f"the S3 tier has no room for an object of {self._offset + stop - start} bytes")
            self._taken_nbytes += grown
            self._tier.take(grown)
        offset, self._offset = self._offset, self._offset + stop - start
        if self._spool is None and start == offset and self._nbytes is not None and lease.nbytes >= self._nbytes:
            self._held.append((lease.share(), start, stop))  # the whole body lies there
            return
        if self._spool is None:
            self._spool = Spool(self._tier.spool_folder)
            held, self._held = self._held, []
            for share, first, last in held:
                with share:
                    await self._tier.in_thread(share, _append, self._spool, share.slices(first, last))
        await self._tier.in_thread(lease, _append, self._spool, lease.slices(start, stop))

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload."""
        if self._ended or record.nbytes != self._offset:
            raise TierError("the upload has ended, or has another length than its object")
        try:
            found = await self._store(Body(record, blocks, self._views()))
        except NotAdmitted:
            raise
        except BaseException:
            self._tier.doubt(self._writer)
            raise
        finally:
            await self._end()
        self._tier.count_in(found, self._writer)
        return HERE

    async def abort(self) -> None:
        """See Upload."""
        await self._end()

    def _views(self) -> list[memoryview]:
        if self._spool is not None:
            return [self._spool.view()]
        return [view for lease, start, stop in self._held for view in lease.slices(start, stop)]

    async def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._tier.take(-self._taken_nbytes)
        for lease, _, _ in self._held:
            lease.release()
        self._held.clear()
        if self._spool is not None:
            await asyncio.to_thread(self._spool.close)

    # --- into the store -----------------------------------------------------------------------------------------------

    async def _store(self, body: Body) -> Found:
        """Have the object in the store: what is there now has its body. Raises NotAdmitted, TierError."""
        tier, in_parts = self._tier, body.total_nbytes > self._tier.part_nbytes
        conditional = await tier.honours_conditions()
        look_first = in_parts or not conditional  # to send it in vain costs more than to ask
        condition = _NEW
        for _ in range(_ATTEMPTS):
            if look_first:
                try:
                    return _adopted(await self._look(body), body)
                except NotInTier:
                    condition = _NEW
                except CorruptEtag as error:  # no whole copy of anything, so that a good one may take its place
                    condition = {"if-match": error.etag} if error.etag else {}
            try:
                etag = await self._send(body, condition if conditional else {}, in_parts=in_parts)
            except (ConditionFailed, NotInTier):  # there is one, or it has changed since
                look_first = True
                continue
            if in_parts or not conditional:
                return _adopted(await self._look(body), body)
            found = Found(body.record, body.blocks, etag, body.total_nbytes, self._writer)
            tier.footers.remember(found)
            return found
        raise TierError("the object in the S3 store keeps changing", transient=True)

    async def _look(self, body: Body) -> Found:
        return await self._tier.in_thread((), self._tier.footers.look, body.name)

    async def _send(self, body: Body, condition: dict[str, str], *, in_parts: bool) -> str:
        """Send it once, under a condition; the entity tag."""
        leases = [lease for lease, _, _ in self._held]
        headers = {"content-type": "application/octet-stream", WRITER: self._writer}
        if in_parts:
            return await PartsUpload(self._tier, body, headers).send(leases, condition)
        return await self._tier.in_thread(leases, self._put, body, headers | condition)

    def _put(self, body: Body, headers: dict[str, str], scope: Deadline) -> str:
        tier, total = self._tier, body.total_nbytes
        answered, _ = tier.calls.call(
            "PUT",
            tier.footers.key(body.name),
            scope,
            headers=headers,
            views=body.views(0, total),
            crc=body.crc(0, total),
        )
        return strong_etag(answered)


def _adopted(found: Found, body: Body) -> Found:
    if not found.record.same_body(body.record):
        raise NotAdmitted("the key has another body in the S3 store")
    return found


def _append(spool: Spool, views: list[memoryview], _: Deadline) -> None:
    spool.append(views)


def footprint(nbytes: int) -> int:
    """The room that an object of `nbytes` is counted for until its footer is known."""
    return nbytes + FOOTER_ALLOWANCE_NBYTES + 8 * (nbytes // BLOCK_NBYTES)
