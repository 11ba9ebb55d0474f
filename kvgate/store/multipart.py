"""Multipart uploads: parts that are sent one by one, each an object by itself, and become one object at the end.

Invariants
1. An upload and its parts are objects of the tenant in the bucket UPLOADS, which no client can name: `<id>/upload`, of
   no bytes, whose attributes say what the upload is for, and `<id>/<part number>`. Tiers, quota and restarts treat them
   like any other object. They are pinned: an upload loses no part while it lasts.
2. A part becomes visible only while its upload is open, and goes with it.
3. An upload ends once: by completion, by abort, with its bucket, or by its age. Whether it is still open is decided in
   the step that makes the object visible; until then a failure leaves the upload and its parts as they were.
4. What the parts have in lower tiers stays there until the object is there, so that after a crash there is one or the
   other. With `ack: disk` this holds for everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.space import Space
from kvgate.errors import (
    CorruptCopy,
    InvalidPart,
    InvalidPartOrder,
    KVGateError,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NotInTier,
    PartTooSmall,
)
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.index import Bucket, Entry, Index
from kvgate.store.placement import Placement
from kvgate.store.quota import Quota
from kvgate.store.read import Read
from kvgate.store.spaces import parse_any_key
from kvgate.store.write import Precondition, Write
from kvgate.tiers.base import Name, Record

logger = logging.getLogger(__name__)

UPLOADS = "_uploads"
"""The bucket of the uploads, one a tenant."""

_REMEMBERED = 10_000
"""How many completed uploads are remembered, for clients that have not heard the answer and ask again."""

_BUCKET, _KEY = "_bucket", "_key"
"""Attributes that say what an upload is for, beside those of the object to be; no header has such a name."""


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """An upload in progress. `attributes` are what its maker said of the object to be, and mean nothing here."""

    id: str
    tenant: str
    bucket: str
    key: str
    initiated_ms: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part that has been stored."""

    number: int
    record: Record


class OpenWrite(Protocol):
    """See Store._open_write."""

    def __call__(
        self,
        tenant: Tenant,
        bucket: str,
        key: str,
        kind: ChunkKey | ManifestKey | None,
        nbytes: int | None,
        take_quota: Callable[[int], None],
        *,
        pinned: bool = False,
    ) -> Coroutine[Any, Any, Write]: ...


class QuotaFor(Protocol):
    """See Store._quota_for."""

    def __call__(self, tenant: Tenant, *, evict: bool) -> Callable[[int], None]: ...


class Multipart:
    """The uploads of every tenant. All methods run on the event loop."""

    def __init__(
        self,
        *,
        placement: Placement,
        index: Index,
        quota: Quota,
        metrics: Metrics,
        config: StoreConfig,
        open_write: OpenWrite,
        quota_for: QuotaFor,
        find_space: Callable[[str, str, str], Coroutine[Any, Any, Space]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._placement, self._index, self._quota = placement, index, quota
        self._metrics, self._config = metrics, config
        self._open_write, self._quota_for, self._find_space = open_write, quota_for, find_space
        self._clock = clock
        self._open: dict[str, MultipartUpload] = {}  # by id, the oldest first
        self._completing: dict[str, asyncio.Event] = {}
        self._completed: OrderedDict[tuple[str, str, str, str], Record] = OrderedDict()

    # --- uploads ------------------------------------------------------------------------------------------------------

    async def create(self, tenant: Tenant, bucket: str, key: str, attributes: Mapping[str, str]) -> MultipartUpload:
        """Begin an upload, whose id cannot be guessed. Raises NoSuchBucket, InvalidKey, UnknownSpace, Overloaded."""
        self._index.bucket(tenant.name, bucket)
        kind = parse_any_key(key)
        if isinstance(kind, ChunkKey):
            await self._find_space(tenant.name, bucket, kind.space)
        now_ms = int(self._clock() * 1000)
        upload_id = f"{now_ms:012x}{secrets.token_hex(20)}"  # ids are in the order of time, which listings go by
        self._index.add_bucket(tenant.name, Bucket(UPLOADS, now_ms))

        def bucket_is_there(_: Record | None) -> None:
            self._index.bucket(tenant.name, bucket)

        write = await self._open_write(tenant, UPLOADS, _upload_key(upload_id), None, 0, lambda _: None, pinned=True)
        async with write:
            record = await write.commit({**attributes, _BUCKET: bucket, _KEY: key}, bucket_is_there)
        upload = self._open[upload_id] = _upload_of(record)
        return upload

    def get(self, tenant: str, bucket: str, key: str, upload_id: str) -> MultipartUpload:
        """An upload that is open. Raises NoSuchBucket, or NoSuchUpload, also when it is for something else."""
        self._index.bucket(tenant, bucket)
        upload = self._open.get(upload_id)
        if upload is None or (upload.tenant, upload.bucket, upload.key) != (tenant, bucket, key):
            raise NoSuchUpload("there is no such upload of this key; it may have been completed, aborted or given up")
        return upload

    def uploads(self, tenant: str, bucket: str) -> list[MultipartUpload]:
        """The open uploads into a bucket by key, those of one key in the order of their ids. Raises NoSuchBucket."""
        self._index.bucket(tenant, bucket)
        found = [upload for upload in self._open.values() if (upload.tenant, upload.bucket) == (tenant, bucket)]
        return sorted(found, key=lambda upload: (upload.key, upload.id))

    async def abort(self, upload: MultipartUpload) -> None:
        """Delete an upload and its parts, so that they are gone after a restart too. Idempotent. Raises TierError."""
        for task in self._delete(upload):
            error = await asyncio.shield(task)
            if error is not None:
                raise error

    def expire(self) -> None:
        """Delete the uploads that were begun longer than `upload_ttl` ago."""
        until_ms = (self._clock() - self._config.upload_ttl) * 1000
        while self._open and (upload := next(iter(self._open.values()))).initiated_ms <= until_ms:
            logger.info("a multipart upload has been given up after %g s", self._config.upload_ttl)
            self._delete(upload)

    def load(self) -> None:
        """Take over the uploads that have survived a restart; parts that have lost theirs are deleted."""
        for tenant in self._index.owners(UPLOADS):
            for key, entry in list(self._index.objects(tenant, UPLOADS).items()):
                upload_id = key.partition("/")[0]
                if self._index.get(tenant, UPLOADS, _upload_key(upload_id)) is None:
                    self._remove(entry)
                    self._placement.copies.drop(entry)
                    continue
                entry.pinned = True
                if key == _upload_key(upload_id):
                    self._open[upload_id] = _upload_of(entry.record)
        self._open = {upload.id: upload for upload in sorted(self._open.values(), key=lambda each: each.initiated_ms)}

    # --- parts --------------------------------------------------------------------------------------------------------

    async def open_part(self, tenant: Tenant, upload: MultipartUpload, number: int, nbytes: int | None) -> Write:
        """A part to be received, as with `Store.open_write`. Commit it under the precondition `while_open(upload)`.

        It takes the place of an earlier part of that number. Raises QuotaExceeded, ObjectTooLarge, StoreFull,
        Overloaded.
        """
        evict = isinstance(parse_any_key(upload.key), ChunkKey)
        take_quota = self._quota_for(tenant, evict=evict)
        try:
            return await self._open_write(
                tenant, UPLOADS, f"{upload.id}/{number:05}", None, nbytes, take_quota, pinned=True
            )
        except KVGateError as error:
            name = Name(upload.tenant, upload.bucket, upload.key)
            self._placement.copies.ghosts.note_refusal(name, error)
            raise

    def while_open(self, upload: MultipartUpload) -> Precondition:
        """Holds as long as an upload is open; raises NoSuchUpload after that."""

        def check(_: Record | None) -> None:
            self.get(upload.tenant, upload.bucket, upload.key, upload.id)

        return check

    def parts(self, upload: MultipartUpload) -> list[Part]:
        """The parts that have been stored, by number."""
        return [Part(number, entry.record) for number, entry in self._parts(upload).items()]

    # --- completion ---------------------------------------------------------------------------------------------------

    async def complete(
        self,
        tenant: Tenant,
        bucket: str,
        key: str,
        upload_id: str,
        listed: Sequence[tuple[int, str]],
        *,
        describe: Callable[[MultipartUpload, Sequence[Record]], Mapping[str, str]],
        precondition: Precondition | None = None,
    ) -> Record:
        """Make one object of the listed parts and end the upload; its record, as with `Write.commit`.

        listed:   numbers and etags of the parts, in order; other parts are deleted
        describe: the object's attributes; sees the upload and the records of the parts, and may refuse by raising

        An upload that has been completed gives the same answer again as long as its object is there. Meanwhile the
        bytes lie in the tiers twice, and count twice for the tenant's other uploads, but this one needs no quota.
        Raises NoSuchUpload, InvalidPart, InvalidPartOrder, PartTooSmall, and what opening and committing a Write raise.
        """
        while (running := self._completing.get(upload_id)) is not None:
            await running.wait()
        if (done := self._completed_before(tenant.name, bucket, key, upload_id)) is not None:
            return done
        upload = self.get(tenant.name, bucket, key, upload_id)
        entries = self._select(upload, listed)
        attributes = describe(upload, [entry.record for entry in entries])

        def check(current: Record | None) -> None:
            self.get(tenant.name, bucket, key, upload_id)
            if precondition is not None:
                precondition(current)

        current = self._index.get(tenant.name, bucket, key)
        check(current.record if current is not None else None)  # an early answer; the one that counts is the commit's
        ended = self._completing[upload_id] = asyncio.Event()
        try:
            record = await self._compose(tenant, upload, entries, attributes, check)
            self._supersede(upload, record)
        finally:
            del self._completing[upload_id]
            ended.set()
        self._completed[tenant.name, bucket, key, upload_id] = record
        if len(self._completed) > _REMEMBERED:
            self._completed.popitem(last=False)
        return record

    def _completed_before(self, *place: str) -> Record | None:
        """The record of the object that an upload has become, if it is still there."""
        record = self._completed.get((place[0], place[1], place[2], place[3]))
        current = self._current(record) if record is not None else None
        return record if current is not None and current.record is record else None

    def _select(self, upload: MultipartUpload, listed: Sequence[tuple[int, str]]) -> list[Entry]:
        parts = self._parts(upload)
        entries: list[Entry] = []
        last = 0
        for number, etag in listed:
            if number <= last:
                raise InvalidPartOrder(f"parts are listed by ascending number; {number} comes after {last}")
            last = number
            entry = parts.get(number)
            if entry is None:
                raise InvalidPart(f"part {number} has not been uploaded")
            if entry.record.etag != etag:
                raise InvalidPart(f"part {number} has the ETag {entry.record.etag}, not {etag[:80]}")
            entries.append(entry)
        for (number, _), entry in list(zip(listed, entries, strict=True))[:-1]:
            if entry.record.nbytes < self._config.min_part:
                raise PartTooSmall(
                    f"part {number} has {entry.record.nbytes} bytes; every part but the last has at least "
                    f"{self._config.min_part} (store.min_part)"
                )
        return entries

    async def _compose(
        self,
        tenant: Tenant,
        upload: MultipartUpload,
        entries: Sequence[Entry],
        attributes: Mapping[str, str],
        check: Precondition,
    ) -> Record:
        nbytes = sum(entry.record.nbytes for entry in entries)
        kind = parse_any_key(upload.key)
        count = partial(self._quota.add, tenant.name)  # the parts have been let in, and give back what they count
        async with await self._open_write(tenant, upload.bucket, upload.key, kind, nbytes, count) as write:
            for entry in entries:
                await self._append(write, entry)
            return await write.commit(attributes, check)

    async def _append(self, write: Write, entry: Entry) -> None:
        """Copy a part's verified bytes to the end of the object. Raises InvalidPart when there is no good copy."""
        if not entry.current:
            raise InvalidPart("a part has been replaced or deleted meanwhile")
        with Read(self._placement, entry, self._metrics, self._config) as read:
            try:
                await write.append(await read.load(0, entry.record.nbytes), entry.record.crc64nvme)
            except (NoSuchKey, CorruptCopy, NotInTier) as error:
                raise InvalidPart("a part has been lost; upload it again") from error

    # --- the objects of an upload -------------------------------------------------------------------------------------

    def _parts(self, upload: MultipartUpload) -> dict[int, Entry]:
        objects = self._index.objects(upload.tenant, UPLOADS)
        keys = objects.irange(f"{upload.id}/", _upload_key(upload.id), inclusive=(True, False))
        return {int(key.rpartition("/")[2]): objects[key] for key in keys}

    def _end(self, upload: MultipartUpload) -> list[Entry]:
        """Make an upload and its parts invisible; their entries, that of the upload first."""
        if self._open.pop(upload.id, None) is None:
            return []
        own = self._index.get(upload.tenant, UPLOADS, _upload_key(upload.id))
        entries = [own] if own is not None else []
        entries += self._parts(upload).values()
        for entry in entries:
            self._remove(entry)
        return entries

    def _remove(self, entry: Entry) -> None:
        self._index.remove(entry)
        self._quota.give_back(entry.record.tenant, entry.record.nbytes)
        entry.pinned = False

    def _delete(self, upload: MultipartUpload) -> list[asyncio.Task[Exception | None]]:
        return [task for entry in self._end(upload) for task in self._placement.copies.drop(entry)]

    def _supersede(self, upload: MultipartUpload, record: Record) -> None:
        """Let an upload go for the object that it has become, or that has replaced this one since."""
        successor = self._current(record)
        for entry in self._end(upload):
            if successor is not None:
                self._placement.copies.supersede(successor, entry)
            else:
                self._placement.copies.drop(entry)

    def _current(self, record: Record) -> Entry | None:
        with contextlib.suppress(NoSuchBucket):
            return self._index.get(record.tenant, record.bucket, record.key)
        return None


def _upload_key(upload_id: str) -> str:
    return f"{upload_id}/upload"  # behind its parts: digits come before letters


def _upload_of(record: Record) -> MultipartUpload:
    attributes = dict(record.attributes)
    bucket, key = attributes.pop(_BUCKET), attributes.pop(_KEY)
    upload_id = record.key.partition("/")[0]
    return MultipartUpload(upload_id, record.tenant, bucket, key, record.mtime_ms, attributes)
