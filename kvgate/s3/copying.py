"""What the operations that copy have in common: the source, and its bytes on their way with a checksum.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.chunk.key import RESERVED_PREFIX, check_bucket
from kvgate.errors import AccessDenied, InvalidArgument, NoSuchBucket, NoSuchKey
from kvgate.messages import Headers
from kvgate.s3 import checksums
from kvgate.s3.checksums import HEADER_PREFIX, STORES_OWN
from kvgate.s3.conditions import COPY_SOURCE_HEADERS, Conditions
from kvgate.s3.digested import DigestedBody
from kvgate.s3.operations.base import Context
from kvgate.s3.part_checksums import TYPE_HEADER
from kvgate.s3.target import decode, parse_query
from kvgate.s3.versions import PARAMETER, check_version

if TYPE_CHECKING:
    from kvgate.store.read import Read
    from kvgate.store.write import Write
    from kvgate.tiers.base import Record

COPY_SOURCE = "x-amz-copy-source"
HEADERS = COPY_SOURCE_HEADERS | {COPY_SOURCE}

_EXPECTED_OWNER = "x-amz-source-expected-bucket-owner"


@dataclass(frozen=True, slots=True)
class CopySource:
    """What is to be copied, and under which conditions.

    bucket: as the caller names it, which may be with its owner
    query:  of the source; empty unless it names a version
    """

    bucket: str
    key: str
    query: Mapping[str, str]
    conditions: Conditions
    expected_owner: str

    @classmethod
    def parse(cls, headers: Headers) -> CopySource:
        """The source of a request: `[/]<bucket>/<key>`, percent-encoded, and perhaps `?versionId=`.

        Raises InvalidArgument, InvalidBucketName, NoSuchVersion.
        """
        raw_path, _, raw_query = headers.get(COPY_SOURCE).partition("?")
        try:
            path = decode(raw_path)
        except ValueError as error:
            raise InvalidArgument(f"{COPY_SOURCE} {error}") from None
        bucket, _, key = path.removeprefix("/").partition("/")
        if not bucket or not key:
            raise InvalidArgument(f"{COPY_SOURCE} must name the bucket and the key of the source: <bucket>/<key>")
        if bucket.startswith(RESERVED_PREFIX):
            check_bucket(bucket)
        query = parse_query(raw_query)
        if query.keys() - {PARAMETER}:
            raise InvalidArgument(f"{COPY_SOURCE} may be followed by ?{PARAMETER}= only; a '?' of the key is %3F")
        check_version(query)
        return cls(bucket, key, query, Conditions.parse_copy_source(headers), headers.get(_EXPECTED_OWNER))

    async def open(self, context: Context) -> Read:
        """A lease on the source, to be closed. Raises AccessDenied, NoSuchBucket, NoSuchKey, PreconditionFailed."""
        access = context.access
        owner, bucket = access.resolve(self.bucket)
        if self.expected_owner not in ("", owner.name):
            raise AccessDenied(f"the bucket of the source is not of the owner that {_EXPECTED_OWNER} names")
        access.check(owner, bucket, self.key, "s3:GetObject", self.query)
        if context.store.may_find(owner.name, bucket, self.key):
            await context.store.find(owner.name, bucket, self.key)
        try:
            read = context.store.open_read(owner.name, bucket, self.key)
        except (NoSuchBucket, NoSuchKey) as error:
            raise access.conceal(owner, bucket, self.key, error) from error
        try:
            self.conditions.check_copy_source(read.record)
        except BaseException:
            read.close()
            raise
        return read

    def check_tags(self, context: Context) -> None:
        """Raises AccessDenied unless the caller may read the tags of the source."""
        owner, bucket = context.access.resolve(self.bucket)
        context.access.check(owner, bucket, self.key, "s3:GetObjectTagging", self.query)


def checksum_algorithm(source: Record) -> str:
    """The algorithm of the checksum that an object has."""
    sent = [algorithm for name in source.attributes if (algorithm := checksums.algorithm_of(name))]
    return sent[0] if sent else STORES_OWN


async def append_copy(write: Write, read: Read, start: int, stop: int, algorithm: str) -> dict[str, str]:
    """Append the bytes [start, stop) of a leased object; their checksum, as a header to store with them.

    There is none for the algorithm that the store has anyway. Raises what Read.load and Write.append raise.
    """
    source = read.record
    header = HEADER_PREFIX + algorithm
    whole = (start, stop) == (0, source.nbytes)
    known = source.crc64nvme if whole else None
    if algorithm == STORES_OWN:
        await write.append(await read.load(start, stop), known)
        return {}
    if whole and header in source.attributes and source.attributes.get(TYPE_HEADER) != "COMPOSITE":
        await write.append(await read.load(start, stop), known)
        return {header: source.attributes[header]}
    checksum = checksums.new(algorithm)
    await write.append(DigestedBody(await read.load(start, stop), checksum), known)
    return {header: checksums.encode(checksum.digest())}
