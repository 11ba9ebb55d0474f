"""One object being written: received into memory, or streamed to a lower tier, and visible only when it is whole.

Invariants
1. Nothing of an upload is visible before `commit` returns or raises; then either the whole object is, or nothing.
2. Quota, memory and files that an upload has taken are given back exactly once, however it ends.
3. Where the home tier is written `through`, the object is finished there before it becomes visible, and published
   before `commit` returns. The decision whether it may become visible is taken in one step with making it so. Other
   tiers that are written through have it before `commit` returns, and it is taken back if one of them fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.space import Space
from kvgate.errors import (
    ArenaFull,
    CorruptCopy,
    IncompleteBody,
    InvalidRequest,
    KVGateError,
    NoSuchBucket,
    NotAdmitted,
    ObjectChanged,
    ObjectTooLarge,
    StoreFull,
    TierFull,
    UnknownSpace,
)
from kvgate.memory.allocator import Extent
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest, combine_crc64nvme
from kvgate.memory.lease import Lease
from kvgate.messages import ResponseBody, views
from kvgate.store.config import StoreConfig
from kvgate.store.copies import MEMORY
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry, Index
from kvgate.store.placement import Placement
from kvgate.store.quota import Quota
from kvgate.store.spaces import KEPT_PREFIX_NBYTES, Spaces, check_body, check_immutable, check_length
from kvgate.tiers.base import Copy, Name, Record, Upload

Precondition = Callable[[Record | None], None]
"""Sees the current record of the key, or None, in the same step in which a change takes effect; raises to refuse it."""

_FIRST_NBYTES = BLOCK_NBYTES
"""Memory reserved for a body of unknown length at first; doubled as it grows."""


class Write:
    """An upload. An async context manager: leaving it without `commit` aborts."""

    def __init__(
        self,
        *,
        tenant: Tenant,
        bucket: str,
        key: str,
        kind: ChunkKey | ManifestKey | None,
        space: Space | None,
        nbytes: int | None,
        placement: Placement,
        index: Index,
        quota: Quota,
        spaces: Spaces,
        config: StoreConfig,
        take_quota: Callable[[int], None],
        on_visible: Callable[[Record], None],
        pinned: bool = False,
        owner: str | None = None,
    ) -> None:
        """owner: of the memory, if another than the tenant; then the body is never streamed to a lower tier"""
        self._owner = owner
        self._tenant, self._bucket, self._key = tenant, bucket, key
        self._kind, self._space = kind, space
        self._declared_nbytes = nbytes
        self._placement, self._index, self._quota, self._spaces = placement, index, quota, spaces
        self._config = config
        self._take_quota = take_quota
        self._on_visible = on_visible
        self._pinned = pinned or isinstance(kind, ManifestKey)
        self._digest = BlockDigest()
        self._prefix = bytearray()
        self._lease: Lease | None = None  # the whole body, or the window through which it streams
        self._upload: Upload | None = None
        self._streams = False  # to a lower tier; it will have no copy in memory
        self._below = MEMORY  # the rank of the lower tier that has it before it is visible, once that is known
        self._filled = 0  # bytes of the lease in use
        self._counted = 0  # bytes of the body that `advance` knows of
        self._quota_nbytes = 0
        self._ended = False

    @property
    def nbytes(self) -> int:
        """How many bytes have been received."""
        return self._digest.nbytes

    @property
    def crc64nvme(self) -> int:
        """The digest of the bytes that have been received."""
        return self._digest.value

    async def open(self, *, whole: bool = False) -> None:
        """Take quota and memory, or a window and a file. Raises what `Store.open_write` names.

        whole: in memory or not at all, so that there is a `slot`
        """
        nbytes = _FIRST_NBYTES if self._declared_nbytes is None else self._declared_nbytes
        try:
            self._take(self._declared_nbytes or 0)
            try:
                self._lease = self._placement.room.reserve(self._owner or self._tenant.name, nbytes)
            except ArenaFull as error:
                if whole or self._owner is not None:
                    raise StoreFull(f"memory has no room to be filled from outside: {error}") from error
                await self._stream_from_here()
        except BaseException as error:
            await self.abort(error)
            raise

    @property
    def slot(self) -> Lease:
        """Where the whole body goes, in any order; then `seal`. For one that was opened `whole`."""
        return self._open_lease()

    async def seal(self) -> None:
        """Take the slot for filled, and digest it."""
        lease, digest = self._open_lease(), BlockDigest()

        def update() -> None:
            for view in lease.views:
                digest.update(view)

        await self._placement.copies.memory.run(lease, lease.nbytes, update)
        self._digest, self._filled, self._counted = digest, lease.nbytes, lease.nbytes
        self._prefix = bytearray(b"".join(lease.slices(0, min(KEPT_PREFIX_NBYTES, lease.nbytes))))

    async def views(self) -> list[memoryview]:
        """Where the next bytes of the body go, in order; at least one byte.

        Raises like `open`, and past the announced end.
        """
        if self._declared_nbytes is not None and self.nbytes >= self._declared_nbytes:
            raise InvalidRequest(f"the body is longer than the {self._declared_nbytes} bytes that were announced")
        lease = self._open_lease()
        if self._filled == lease.nbytes:
            await self._grow(lease)
            lease = self._open_lease()
        return lease.slices(self._filled, lease.nbytes)

    @property
    def digest(self) -> BlockDigest:
        """What is to see the next bytes of the body, which have arrived in `views`, before `advance`."""
        return self._digest

    def advance(self) -> None:
        """Count what `digest` has seen. Raises ObjectTooLarge, QuotaExceeded."""
        nbytes = self.nbytes
        filled = self._filled + nbytes - self._counted
        if self._kind is not None and len(self._prefix) < KEPT_PREFIX_NBYTES:
            kept = min(filled, self._filled + KEPT_PREFIX_NBYTES - len(self._prefix))
            self._prefix += b"".join(self._open_lease().slices(self._filled, kept))
        self._filled, self._counted = filled, nbytes
        if nbytes > self._quota_nbytes:
            self._take(nbytes - self._quota_nbytes)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where in the arena a body of announced length goes, for another process to fill."""
        return self._open_lease().extents

    async def take_in_place(self) -> None:
        """Count the whole body as received, which another process has put into `extents`, and take its digest.

        What the rules of keys look at is copied first, and the copy is what goes into the digest: bytes that are
        changed meanwhile are found not to match it by whoever reads them.
        """
        lease = self._open_lease()
        nbytes = self._declared_nbytes
        assert nbytes is not None, "only a body of announced length can be filled from outside"
        kept = min(KEPT_PREFIX_NBYTES, nbytes)
        self._prefix += b"".join(lease.slices(0, kept))
        self._digest.update(memoryview(bytes(self._prefix)))
        memory = self._placement.copies.memory
        await memory.run(lease, nbytes, _digest, self._digest, lease.slices(kept, nbytes))
        self._filled = nbytes

    async def append(self, body: ResponseBody, crc64nvme: int | None = None) -> None:
        """Copy a body to the end of this one, letting others have their turn on the way. Closes the body.

        crc64nvme: of the body, where it is known: a bit that turns between its last check and this copy, of which a new
                   digest is taken, would never be found later
        A copy holds the interpreter wherever it runs, so that a thread would gain nothing.
        Raises CorruptCopy, and what the body raises.
        """
        before, before_nbytes = self.crc64nvme, self.nbytes
        try:
            async for view in views(body):
                left = view
                while left:
                    target = (await self.views())[0][: len(left)]
                    target[:] = left[: len(target)]
                    self.digest(target)
                    self.advance()
                    left = left[len(target) :]
                await asyncio.sleep(0)
        finally:
            body.close()
        if crc64nvme is not None:
            nbytes = self.nbytes - before_nbytes
            if self.crc64nvme != combine_crc64nvme(before, crc64nvme, nbytes):
                raise CorruptCopy("the bytes changed between their check and their copy")

    async def commit(
        self,
        attributes: Mapping[str, str],
        precondition: Precondition | None = None,
        restated: Record | None = None,
    ) -> Record:
        """Make the object visible and return its record; that of the equal object that was there, for a key under kv/.

        attributes: stored header names (lower case) to values
        restated:   the version of which only the attributes change: its time stays, and a key under kv/ may have it
        Raises IncompleteBody, PreconditionFailed, InvalidChunk, InvalidManifest, ImmutableConflict, NoSuchBucket,
        StoreFull, TierError, and then nothing of the upload is left.
        """
        try:
            return await self._commit(attributes, precondition, restated)
        except KVGateError as error:
            self._note(error)
            raise
        finally:
            if not self._ended:
                await self.abort()

    async def abort(self, error: BaseException | None = None) -> None:
        """Give back everything that was taken. Idempotent; does nothing after a successful commit.

        error: why there is no object, where that is to be remembered
        """
        if self._ended:
            return
        if error is not None:
            self._note(error)
        self._ended = True
        self._quota.give_back(self._tenant.name, self._quota_nbytes)
        lease, self._lease = self._lease, None
        upload, self._upload = self._upload, None
        if lease is not None:
            lease.release()
        if upload is not None:
            await asyncio.shield(self._placement.copies.spawn(upload.abort()))

    async def __aenter__(self) -> Write:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.abort(error)

    def _note(self, error: BaseException) -> None:
        """Remember why there is no such object, unless there is one of the key all the same."""
        name = Name(self._tenant.name, self._bucket, self._key)
        with contextlib.suppress(NoSuchBucket):
            if self._index.get(*name) is None:
                self._placement.copies.ghosts.note_refusal(name, error)

    def _open_lease(self) -> Lease:
        assert self._lease is not None, "the upload has ended"
        return self._lease

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _take(self, nbytes: int) -> None:
        if self._quota_nbytes + nbytes > self._config.max_object:
            raise ObjectTooLarge(f"objects are at most {self._config.max_object} bytes here (store.max_object)")
        if self._kind is not None:
            check_length(self._kind, self._quota_nbytes + nbytes, self._space)
        self._take_quota(nbytes)
        self._quota_nbytes += nbytes

    async def _grow(self, lease: Lease) -> None:
        """Make room behind a lease that is full."""
        if self._upload is not None:
            await self._pass_on(self._upload, lease)
            return
        try:
            self._placement.room.extend(lease, min(max(lease.nbytes, _FIRST_NBYTES), self._config.window))
        except ArenaFull:
            await self._stream_from_here()

    async def _stream_from_here(self) -> None:
        """Go on through a window into the first lower tier, with what has been received so far."""
        placement, tenant = self._placement, self._tenant.name
        rank = self._stream_rank()
        if rank is None:
            needed = self._filled + 1 if self._declared_nbytes is None else self._declared_nbytes
            if needed > placement.copies.memory.limit():
                raise ObjectTooLarge(
                    f"memory has {placement.copies.memory.limit()} bytes in all, and no lower tier takes this object"
                )
            raise StoreFull("memory is full of objects in use, and no lower tier takes this object")
        self._streams, self._below = True, rank
        if self._lease is None:
            self._lease = await placement.room.reserve_window(tenant, self._config.window, self._config.memory_wait)
        window = self._lease
        try:
            self._upload = await placement.room.begin(rank, tenant, self._declared_nbytes)
        except TierFull as error:
            raise StoreFull(str(error)) from error
        await self._pass_on(self._upload, window)

    def _stream_rank(self) -> int | None:
        """The lower tier that an object goes to for which memory has no room."""
        copies = self._placement.copies
        record = Record(self._tenant.name, self._bucket, self._key, 0, 0, 0)
        return next((rank for rank in copies.lower_ranks if copies.takes(rank, record)), None)

    async def _pass_on(self, upload: Upload, lease: Lease) -> None:
        """Write what the window holds to the lower tier. Raises StoreFull."""
        if self._filled:
            try:
                if self._declared_nbytes is None:  # otherwise there has been room for all of it from the beginning
                    await self._placement.room.make(self._below, self._tenant.name, self._filled)
                await upload.write(lease, 0, self._filled)
            except TierFull as error:
                raise StoreFull(str(error)) from error
            self._filled = 0

    # --- committing ---------------------------------------------------------------------------------------------------

    async def _commit(
        self, attributes: Mapping[str, str], precondition: Precondition | None, restated: Record | None
    ) -> Record:
        if self._declared_nbytes is not None and self.nbytes != self._declared_nbytes:
            raise IncompleteBody(f"the body has {self.nbytes} bytes of the {self._declared_nbytes} that were announced")
        space = None
        if self._kind is not None:
            space = check_body(self._kind, bytes(self._prefix), self.nbytes, self._space)
        placement = self._placement
        record = Record(
            self._tenant.name,
            self._bucket,
            self._key,
            self.nbytes,
            self._digest.value,
            time.time_ns() // 1_000_000 if restated is None else restated.mtime_ms,
            dict(attributes),
        )
        entry = Entry(record, (None,) * len(placement.copies.tiers))
        entry.pinned = self._pinned
        lease = self._open_lease()
        if self._upload is None and lease.nbytes > self._filled:
            lease.trim(self._filled)
        below = None
        if self._comes_below_first():
            self._check(record, precondition, restated)  # an early answer; the one that counts follows below
            below = await self._finish_below(entry, lease)
        try:
            if existing := self._check(record, precondition, restated):
                await self._discard_below(entry, below)
                return existing
            planned = placement.demotion.plan(entry)
            self._make_visible(entry, space)
        except BaseException:
            await self._discard_below(entry, below)
            raise
        if below is None and not planned:
            return record
        through = [rank for rank in planned if placement.copies.rules[rank].write == "through"]
        if below is not None or through:
            error = await asyncio.shield(placement.copies.spawn(self._write_through(entry, through, below)))
            if error is not None:
                self._retract(entry)
                raise error
        for rank in planned:
            if rank not in through and entry.current and not entry.has_copy(rank):
                placement.demotion.enqueue(entry, rank)
        return record

    async def _write_through(self, entry: Entry, through: list[int], below: Copy | None) -> None:
        """Publish the copy that was made below before the object was visible, and make the others."""
        placement = self._placement
        if below is not None:
            await placement.mover.publish(entry, self._below, below)
        for rank in through:
            with contextlib.suppress(NotAdmitted):  # another gateway has its own body there, which is as good
                await placement.mover.bring(entry, rank)
            placement.copies.settle(entry, rank)

    def _comes_below_first(self) -> bool:
        """Whether a lower tier has to have the object before it is visible."""
        copies = self._placement.copies
        return self._upload is not None or (copies.home is not None and copies.rules[copies.home].write == "through")

    async def _finish_below(self, entry: Entry, lease: Lease) -> Copy:
        """A finished, unpublished copy in the tier `_below`. Raises StoreFull, TierError."""
        if self._upload is not None:
            await self._pass_on(self._upload, lease)
            copy = await self._upload.finish(entry.record, self._digest.blocks)
            self._upload = None
            return copy
        home = self._placement.copies.home
        assert home is not None, "there is no tier to be written through"
        self._below = home
        try:
            return await self._placement.mover.write(entry, home, lease, self._digest.blocks)
        except TierFull as error:
            raise StoreFull(str(error)) from error

    async def _discard_below(self, entry: Entry, copy: Copy | None) -> None:
        if copy is not None:
            tier = self._placement.copies.tiers[self._below]
            await asyncio.shield(self._placement.copies.spawn(tier.delete(entry.record, copy)))

    def _check(self, record: Record, precondition: Precondition | None, restated: Record | None) -> Record | None:
        """None if the object may become visible now, else the equal record that is there already, or an error."""
        current = self._index.get(self._tenant.name, self._bucket, self._key)
        if precondition is not None:
            precondition(current.record if current is not None else None)
        if restated is not None:
            if current is None or current.record is not restated or not restated.same_body(record):
                raise ObjectChanged("the object has been replaced or deleted meanwhile")
        elif self._kind is not None and check_immutable(record, current):
            assert current is not None
            return current.record
        if isinstance(self._kind, ChunkKey):
            manifest = self._index.get(self._tenant.name, self._bucket, str(ManifestKey(self._kind.space)))
            if manifest is None:
                raise UnknownSpace(f"the manifest of space {self._kind.space[:8]} has been deleted meanwhile")
        return None

    def _make_visible(self, entry: Entry, space: Space | None) -> None:
        placement, lease = self._placement, self._open_lease()
        replaced = self._index.put(entry)
        self._ended, self._lease = True, None  # from here on, what the upload took is the object's
        if self._streams:
            lease.release()
        else:
            placement.copies.add_copy(entry, MEMORY, placement.copies.memory.adopt(lease, self._digest.blocks))
        if isinstance(self._kind, ManifestKey) and space is not None:
            self._spaces.put(entry, space)
        if replaced is not None:
            self._quota.give_back(replaced.record.tenant, replaced.record.nbytes)
            if not replaced.record.same_body(entry.record):
                placement.copies.ghosts.note(replaced.record, Fate.REPLACED)
            placement.copies.hand_over(replaced, entry)
            placement.copies.supersede(entry, replaced)
        self._on_visible(entry.record)

    def _retract(self, entry: Entry) -> None:
        if entry.current:
            self._index.remove(entry)
            self._quota.give_back(entry.record.tenant, entry.record.nbytes)
            self._placement.copies.ghosts.note(entry.record, Fate.REFUSED_BY_TIER)
        entry.waiting = 0
        self._placement.copies.drop(entry)


def _digest(digest: BlockDigest, views: Sequence[memoryview]) -> None:
    for view in views:
        digest.update(view)
