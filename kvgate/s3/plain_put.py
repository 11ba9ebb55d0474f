"""PutObject where nothing matters but the body and two headers: what a native data plane has read and proved.

Whatever is more than that, or is to be refused before its body has come, is left to `S3.handle`: it means the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvgate.auth.tenants import Tenant
from kvgate.chunk.key import KV_PREFIX, split_owner
from kvgate.errors import KVGateError
from kvgate.memory.digest import BlockDigest
from kvgate.messages import Headers
from kvgate.s3 import checksums
from kvgate.s3.body import expect_digest
from kvgate.s3.operations.put_object import stored_headers
from kvgate.s3.ordinary import PLAIN_PUT_CHECKSUM
from kvgate.s3.representation import attributes_of
from kvgate.s3.target import parse_target

if TYPE_CHECKING:
    from kvgate.store.store import Store
    from kvgate.store.write import Write


async def open_plain_put(
    store: Store, owner: Tenant, raw_path: str, nbytes: int, content_type: str | None, checksum: str | None
) -> PlainPut | None:
    """An upload of a tenant to a bucket of its own, in memory as a whole; None where `S3.handle` is to be asked.

    content_type, checksum: the values of these headers, the second that of PLAIN_PUT_CHECKSUM
    """
    try:
        target = parse_target(raw_path, "")
        if not target.key or split_owner(target.bucket)[0] or not store.takes_plain_puts(owner.name, target.bucket):
            return None
        if not (target.key.startswith(KV_PREFIX) or store.has_quota(owner, nbytes)):  # chunks may make room for it
            return None  # what is refused is counted, and once is enough
        attributes = attributes_of(Headers([("content-type", content_type)])) if content_type is not None else {}
        expected = checksums.decode(PLAIN_PUT_CHECKSUM, "crc64nvme", checksum) if checksum is not None else None
        write = await store.open_write(owner, target.bucket, target.key, nbytes, whole=True)
    except KVGateError:
        return None
    return PlainPut(store, write, attributes, expected)


class PlainPut:
    """An upload under way, to end by `store` or `abort`.

    views:  where the body goes
    digest: what is to see it
    """

    __slots__ = ("_attributes", "_expected", "_store", "_write", "digest", "views")

    def __init__(self, store: Store, write: Write, attributes: Mapping[str, str], expected: bytes | None) -> None:
        """expected: the crc64nvme that the body is said to have, if that was said"""
        self._store = store
        self._write = write
        self._attributes = attributes
        self._expected = expected
        self.views: Sequence[memoryview] = write.slot.views
        self.digest: BlockDigest = write.digest

    async def store(self) -> Mapping[str, str]:
        """Make the object visible whose body has come, and say what its writer is told. Raises as PutObject does."""
        write, attributes = self._write, self._attributes
        try:
            write.advance()
            if self._expected is not None:
                expect_digest(PLAIN_PUT_CHECKSUM, self._expected, write.crc64nvme.to_bytes(8, "big"))
                attributes = {**attributes, PLAIN_PUT_CHECKSUM: checksums.encode(self._expected)}
            return stored_headers(self._store, await write.commit(attributes))
        except BaseException as error:
            await self.abort(error)
            raise

    async def abort(self, error: BaseException | None = None) -> None:
        """Give back what it has taken, without an object; for `error`, where that is known. Idempotent."""
        await self._write.abort(error)
