"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.chunk.key import KV_PREFIX
from kvgate.errors import InvalidArgument, InvalidRequest
from kvgate.messages import Headers, Response
from kvgate.s3 import checksums
from kvgate.s3.call import Call
from kvgate.s3.changing import change_attributes
from kvgate.s3.checksums import ALGORITHMS, HEADER_PREFIX, STORES_OWN
from kvgate.s3.conditions import Conditions
from kvgate.s3.copying import HEADERS, CopySource, append_copy, checksum_algorithm
from kvgate.s3.digested import DigestedBody
from kvgate.s3.expiration import expiration_headers
from kvgate.s3.listing import iso_date
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import ALGORITHM_HEADER, TYPE_HEADER, part_elements
from kvgate.s3.representation import (
    ACL,
    ANNOTATIONS,
    TAGGING,
    annotations_of,
    attributes_of,
    checksum_headers,
    metadata_of,
)
from kvgate.s3.xml import document

if TYPE_CHECKING:
    from kvgate.store.read import Read
    from kvgate.tiers.base import Record

_METADATA_DIRECTIVE, _TAGGING_DIRECTIVE = "x-amz-metadata-directive", "x-amz-tagging-directive"
_STORAGE_CLASS = "x-amz-storage-class"


@dataclass(frozen=True, slots=True)
class CopyObjectInput:
    """A copy. What is None is taken from the source.

    acl:       attributes; that of the source is never copied
    algorithm: of the checksum of the copy; empty for that of the source
    in_place:  whether the source may be copied onto itself, since something is asked to be different then
    """

    bucket: str
    key: str
    source: CopySource
    conditions: Conditions
    metadata: Mapping[str, str] | None
    tags: Mapping[str, str] | None
    acl: Mapping[str, str]
    algorithm: str
    in_place: bool

    @classmethod
    def parse(cls, call: Call) -> CopyObjectInput:
        """Raises InvalidArgument, InvalidRequest, InvalidTag, UnsupportedOperation, NoSuchVersion."""
        headers = call.headers
        annotations = annotations_of(headers)
        metadata = tags = None
        asks_for_storage_class = _STORAGE_CLASS in headers
        if _replaces(headers, _METADATA_DIRECTIVE):
            metadata = {name: value for name, value in attributes_of(headers).items() if name not in ANNOTATIONS}
        if _replaces(headers, _TAGGING_DIRECTIVE):
            tags = {name: value for name, value in annotations.items() if name == TAGGING}
        elif TAGGING in headers:
            raise InvalidArgument(f"{TAGGING} needs {_TAGGING_DIRECTIVE}: REPLACE")
        algorithm = headers.get(ALGORITHM_HEADER).lower()
        if algorithm and algorithm not in ALGORITHMS:
            raise InvalidArgument(f"{ALGORITHM_HEADER} is one of {', '.join(ALGORITHMS)} in upper case")
        return cls(
            bucket=call.bucket,
            key=call.key,
            source=CopySource.parse(headers),
            conditions=Conditions.parse(headers),
            metadata=metadata,
            tags=tags,
            acl={name: value for name, value in annotations.items() if name == ACL},
            algorithm=algorithm,
            in_place=asks_for_storage_class or bool(algorithm) or metadata is not None or tags is not None,
        )

    def describe(self, source: Record) -> dict[str, str]:
        """The attributes of the copy, without its checksum."""
        tags = {name: value for name, value in source.attributes.items() if name == TAGGING}
        metadata = metadata_of(source) if self.metadata is None else self.metadata
        return {**metadata, **(tags if self.tags is None else self.tags), **self.acl}


async def copy_object(context: Context, input: CopyObjectInput) -> Response:
    """Copy an object, which is leased meanwhile. The answer comes when the copy is there, or says why it is not."""
    tenant = context.tenant
    with await input.source.open(context) as read:
        source = read.record
        if input.tags is None and TAGGING in source.attributes:
            input.source.check_tags(context)
        in_place = source[:3] == (tenant.name, input.bucket, input.key)
        if in_place and not input.in_place:
            raise InvalidRequest(
                "This copy request is illegal because it is trying to copy an object to itself without changing the "
                "object's metadata, storage class, website redirect location or encryption attributes."
            )
        input.conditions.check_early(context.store, tenant.name, input.bucket, input.key)
        if in_place and input.key.startswith(KV_PREFIX):
            record = await _restate(context, input, read)
        else:
            async with await context.store.open_write(tenant, input.bucket, input.key, source.nbytes) as write:
                algorithm = input.algorithm or checksum_algorithm(source)
                checksum = await append_copy(write, read, 0, source.nbytes, algorithm)
                attributes = {**input.describe(source), **checksum}
                record = await write.commit(attributes, input.conditions.for_write())
    checksums = checksum_headers(record)
    body = document(
        "CopyObjectResult",
        [
            ("LastModified", iso_date(record.mtime_ms)),
            ("ETag", f'"{record.etag}"'),
            *part_elements(checksums),
            ("ChecksumType", checksums[TYPE_HEADER]),
        ],
    )
    headers = {"Content-Type": "application/xml", **expiration_headers(context.store, record)}
    return Response(headers=headers, body=body)


async def _restate(context: Context, input: CopyObjectInput, read: Read) -> Record:
    """Copy a key under kv/ onto itself: its body and its time stay, and what is said of it changes."""
    source = read.record
    asked: dict[str, str] = {}
    if input.algorithm not in ("", STORES_OWN):
        checksum = checksums.new(input.algorithm)
        body = DigestedBody(await read.load(0, source.nbytes), checksum)
        try:
            async for _ in body.batches():
                pass
        finally:
            body.close()
        asked = {HEADER_PREFIX + input.algorithm: checksums.encode(checksum.digest())}

    def change(present: Mapping[str, str]) -> Mapping[str, str]:
        dropped = HEADER_PREFIX if input.algorithm else ()
        kept = {name: value for name, value in present.items() if name.startswith((HEADER_PREFIX, "_"))}
        kept = {name: value for name, value in kept.items() if not name.startswith(dropped)}
        return {**kept, **input.describe(source), **asked}

    return await change_attributes(context, input.bucket, input.key, change)


def _replaces(headers: Headers, name: str) -> bool:
    """Whether a directive asks for what the request says, instead of what the source has."""
    directive = headers.get(name, "COPY")
    if directive not in ("COPY", "REPLACE"):
        raise InvalidArgument(f"{name} is COPY or REPLACE")
    return directive == "REPLACE"


operation = Operation(
    "CopyObject",
    CopyObjectInput.parse,
    copy_object,
    headers=HEADERS | ANNOTATIONS | {_TAGGING_DIRECTIVE},
    action="PutObject",
)
