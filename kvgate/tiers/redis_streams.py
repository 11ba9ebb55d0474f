"""Bytes on their way into and out of a redis tier: one body being written, one object being read.

Each pipelines: a few pieces are under way while the next ones are sent, or the last ones are verified.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from typing import TYPE_CHECKING

from redis import exceptions

from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierError, TierFull
from kvgate.memory.digest import BLOCK_NBYTES, span_of_blocks, verify_blocks
from kvgate.memory.lease import Lease, slice_views
from kvgate.tiers.base import HERE, Arrived, Copy, Name, Record
from kvgate.tiers.redis_head import BODY_ID_NBYTES, Head, decode_head
from kvgate.tiers.redis_wire import Body, Wire, checked

if TYPE_CHECKING:
    from kvgate.tiers.redis import RedisTier

_WINDOW_NBYTES = 4 << 20
_HEAD_ALLOWANCE_NBYTES = 1024
_PIECE_ALLOWANCE_NBYTES = 128
_ATTEMPTS = 3


class RedisUpload:
    """A body on its way into the tier."""

    def __init__(self, tier: RedisTier, nbytes: int | None) -> None:
        self._tier = tier
        self._declared_nbytes = nbytes
        self._id = os.urandom(BODY_ID_NBYTES)
        self._sent_nbytes = 0
        self._pieces = 0
        self._rest = b""  # what does not fill a piece yet
        self._broken = False
        self._ended = False
        self._head: tuple[Name, bytes] | None = None  # once it may have been set
        self._taken_nbytes = footprint(nbytes or 0, tier.piece_nbytes)
        tier.take(self._taken_nbytes)

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        nbytes = len(self._rest) + stop - start
        self._grow(self._sent_nbytes + nbytes, lease.owner)
        with lease.share() as held:
            views = [memoryview(self._rest), *held.slices(start, stop)]
            whole = nbytes - nbytes % self._tier.piece_nbytes
            if self._sent_nbytes + nbytes == self._declared_nbytes:
                whole = nbytes
            await self._send(views, whole)
            self._rest = b"".join(slice_views(views, whole, nbytes))

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload."""
        try:
            await self._send([memoryview(self._rest)], len(self._rest))
            self._rest = b""
            assert self._sent_nbytes == record.nbytes, "the record is of another length than what was written"
            adopted = await self._publish(record, blocks)
        except TierError:
            await self.abort()
            raise
        self._ended = True
        if adopted:
            self._tier.take(-self._taken_nbytes)
        else:
            taken = footprint(record.nbytes, self._tier.piece_nbytes)
            self._tier.take(taken - self._taken_nbytes)
            self._tier.remember(record, taken)
        return HERE

    async def abort(self) -> None:
        """See Upload. Where Redis is away, what was written expires by itself."""
        if self._ended:
            return
        self._ended = True
        self._tier.take(-self._taken_nbytes)
        if self._pieces or self._broken:
            with contextlib.suppress(TierError):
                await self._tier.remove_body(self._id)
        if self._head is not None:
            with contextlib.suppress(TierError):
                await self._tier.remove_head(*self._head)

    def _grow(self, nbytes: int, tenant: str) -> None:
        grown = footprint(nbytes, self._tier.piece_nbytes) - self._taken_nbytes
        if grown > 0:
            if grown > self._tier.room(tenant):
                raise TierFull(f"the redis tier has no room for an object of {nbytes} bytes")
            self._taken_nbytes += grown
            self._tier.take(grown)

    async def _send(self, views: list[memoryview], nbytes: int) -> None:
        """Write the first `nbytes` bytes of `views` as further pieces."""
        if self._broken or self._ended:
            raise TierError("the upload was broken off")
        size = self._tier.piece_nbytes
        bodies = [
            Body(slice_views(views, at, min(at + size, nbytes)), min(size, nbytes - at))
            for at in range(0, nbytes, size)
        ]
        if not bodies:
            return
        first, key = self._pieces, self._tier.body_key(self._id)

        async def exchange(wire: Wire) -> None:
            under_way = 0
            for number, body in enumerate(bodies, first):
                # Never a body that does not expire, wherever this breaks off.
                wire.send(b"MULTI")
                wire.send(b"HSET", key, number, body, alone=False)
                wire.send(b"PEXPIRE", key, self._tier.upload_ttl_ms, alone=False)
                wire.send(b"EXEC", alone=False)
                await wire.flushed()
                under_way += 1
                if under_way * size >= _WINDOW_NBYTES:
                    await _executed(wire)
                    under_way -= 1
            for _ in range(under_way):
                await _executed(wire)

        self._broken = True  # until all is written
        await self._tier.run(key, exchange)
        self._broken = False
        self._pieces += len(bodies)
        self._sent_nbytes += nbytes

    async def _publish(self, record: Record, blocks: array[int]) -> bool:
        """Make the object visible, or find that it is; whether another copy was adopted. Raises NotAdmitted."""
        tier = self._tier
        name = Name(record.tenant, record.bucket, record.key)
        head = Head(record, blocks, self._id, tier.piece_nbytes)
        value = head.encode()
        for _ in range(_ATTEMPTS):
            self._head = (name, value)
            if await tier.set_head(name, value):
                if not await tier.keep_body(head):
                    raise TierError("the body expired, or was evicted, before the object was finished", transient=True)
                return False
            self._head = None
            there = await tier.head_value(name, renew=True)
            if there is None:
                continue
            with contextlib.suppress(CorruptCopy):
                other = decode_head(there, name)
                if await tier.keep_body(other):
                    if not other.record.same_body(record):
                        raise NotAdmitted("the key has another body in redis")
                    if self._pieces:
                        await tier.remove_body(self._id)
                    return True
            await tier.remove_head(name, there)  # of what has expired, was evicted or is damaged
        raise TierError("others write and delete the same object at the same time", transient=True)


class RedisReader:
    """One object that is read."""

    def __init__(self, tier: RedisTier, record: Record) -> None:
        self._tier = tier
        self._record = record
        self._head: Head | None = None
        self._renewed = tier.read_only or tier.ttl_ms is None

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        if self._head is None:
            self._head = await self._tier.fetch_head(self._record)
        if nbytes:
            with lease.share() as held:
                transfer = _Transfer(self._head, held, start, start + nbytes, arrived)
                key = self._tier.body_key(self._head.body)

                async def exchange(wire: Wire) -> None:
                    await transfer.run(wire, key, None if self._renewed else self._tier.ttl_ms)
                    self._renewed = True

                await self._tier.run(key, exchange)
        return self._head.blocks[span_of_blocks(start, start + nbytes)]

    async def close(self) -> None:
        """See Reader."""


class _Transfer:
    """The bytes [start, stop) of a body on their way to the beginning of a lease."""

    def __init__(self, head: Head, lease: Lease, start: int, stop: int, arrived: Arrived | None) -> None:
        self._head = head
        self._lease = lease
        self._start = start
        self._stop = stop
        self._arrived = arrived
        self._verified = start  # the body's bytes before this are there

    async def run(self, wire: Wire, key: bytes, ttl_ms: int | None) -> None:
        """Read what is missing. May be called again when it was broken off: what is verified is not touched then.

        ttl_ms: how long the body stays from now on; None leaves that as it is
        Raises NotInTier, CorruptCopy, and RedisErrors.
        """
        size, total = self._head.piece_nbytes, self._head.record.nbytes
        start, stop = self._verified, self._stop
        asked, last = start // size, -(-stop // size)
        outside = memoryview(bytearray(size if start % size or (stop % size and stop != total) else 0))
        renewing = ttl_ms is not None
        if ttl_ms is not None:
            wire.send(b"PEXPIRE", key, ttl_ms)
        for number in range(asked, last):
            while asked < last and (asked - number) * size < _WINDOW_NBYTES:
                wire.send(b"HGET", key, asked)
                asked += 1
            if renewing:
                checked(await wire.reply())
                renewing = False
            begin, end = number * size, min((number + 1) * size, total)
            views = [
                outside[: max(0, start - begin)],
                *self._slices(max(begin, start), min(end, stop)),
                outside[: max(0, end - stop)],
            ]
            if not await _piece(wire, views):
                raise NotInTier("redis has evicted the object, or it has expired")
            self._verify(stop if end >= stop else end - end % BLOCK_NBYTES)

    def _verify(self, until: int) -> None:
        if until > self._verified:
            views = self._slices(self._verified, until)
            if not verify_blocks(views, self._verified, until, self._head.record.nbytes, self._head.blocks):
                raise CorruptCopy("the bytes in redis do not match their digest")
            self._verified = until
            if self._arrived is not None and until < self._stop:
                self._arrived(until - self._start)

    def _slices(self, start: int, stop: int) -> list[memoryview]:
        return self._lease.slices(start - self._start, stop - self._start)


async def _piece(wire: Wire, views: list[memoryview]) -> bool:
    try:
        return await wire.receive(views)
    except exceptions.ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            raise CorruptCopy("the body in redis is of another kind") from error
        raise


async def _executed(wire: Wire) -> None:
    """Read the replies of one transaction. Raises the RedisError that was the cause, if it failed."""
    replies = [await wire.reply() for _ in range(4)]
    for reply in replies:
        checked(reply)
    for result in replies[-1] if isinstance(replies[-1], list) else ():
        checked(result)


def footprint(nbytes: int, piece_nbytes: int) -> int:
    """The room that an object of `nbytes` is counted for: its pieces, and what Redis and the head take besides."""
    pieces = -(-nbytes // piece_nbytes)
    return nbytes + _HEAD_ALLOWANCE_NBYTES + _PIECE_ALLOWANCE_NBYTES * pieces + 8 * (nbytes // BLOCK_NBYTES)
