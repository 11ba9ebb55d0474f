"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvgate.errors import InvalidArgument
from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.checksums import STORES_OWN
from kvgate.s3.copying import HEADERS, CopySource, append_copy
from kvgate.s3.listing import iso_date
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import PartChecksums, part_elements
from kvgate.s3.parts import part_number
from kvgate.s3.representation import checksum_headers
from kvgate.s3.xml import document

_RANGE_HEADER = "x-amz-copy-source-range"
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class UploadPartCopyInput:
    """`span` are the first and the last byte of the source that are wanted; None for all of it."""

    bucket: str
    key: str
    upload_id: str
    number: int
    source: CopySource
    span: tuple[int, int] | None

    @classmethod
    def parse(cls, call: Call) -> UploadPartCopyInput:
        """Raises InvalidArgument, InvalidBucketName, NoSuchVersion."""
        return cls(
            bucket=call.bucket,
            key=call.key,
            upload_id=call.query["uploadId"],
            number=part_number(call.query.get("partNumber", "")),
            source=CopySource.parse(call.headers),
            span=parse_span(call.headers.get(_RANGE_HEADER)) if _RANGE_HEADER in call.headers else None,
        )

    def resolve(self, nbytes: int) -> tuple[int, int]:
        """The bytes [start, stop) of a source of `nbytes` that are wanted. Raises InvalidArgument."""
        if self.span is None:
            return 0, nbytes
        first, last = self.span
        if last >= nbytes:
            raise InvalidArgument(f"{_RANGE_HEADER} is bytes={first}-{last}, and the source has {nbytes} bytes")
        return first, last + 1


async def upload_part_copy(context: Context, input: UploadPartCopyInput) -> Response:
    """Store a part that is copied from an object, which is leased meanwhile. Raises NoSuchUpload."""
    multipart = context.store.multipart
    upload = multipart.get(context.tenant.name, input.bucket, input.key, input.upload_id)
    algorithm = PartChecksums.parse(upload.attributes).algorithm
    with await input.source.open(context) as read:
        start, stop = input.resolve(read.record.nbytes)
        async with await multipart.open_part(context.tenant, upload, input.number, stop - start) as write:
            attributes = await append_copy(write, read, start, stop, algorithm or STORES_OWN)
            record = await write.commit(attributes, multipart.while_open(upload))
    body = document(
        "CopyPartResult",
        [
            ("LastModified", iso_date(record.mtime_ms)),
            ("ETag", f'"{record.etag}"'),
            *(part_elements(checksum_headers(record)) if algorithm else ()),
        ],
    )
    return Response(headers={"Content-Type": "application/xml"}, body=body)


def parse_span(header: str) -> tuple[int, int]:
    """The first and the last byte that an x-amz-copy-source-range names. Raises InvalidArgument."""
    match = _RANGE.fullmatch(header)
    if match is None or int(match[1]) > int(match[2]):
        raise InvalidArgument(f"{_RANGE_HEADER} must be bytes=first-last, the offsets of the first and the last byte")
    return int(match[1]), int(match[2])


operation = Operation(
    "UploadPartCopy",
    UploadPartCopyInput.parse,
    upload_part_copy,
    frozenset({"partNumber"}),
    HEADERS | {_RANGE_HEADER},
    action="PutObject",
)
