"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from kvgate.errors import InvalidArgument
from kvgate.messages import Headers, Response
from kvgate.s3.call import Call
from kvgate.s3.conditions import Conditions
from kvgate.s3.listing import Entry, count_of
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import TYPE_HEADER, part_elements
from kvgate.s3.part_sizes import PartSizes
from kvgate.s3.parts import part_number
from kvgate.s3.representation import checksum_headers, http_date
from kvgate.s3.versions import PARAMETER as VERSION
from kvgate.s3.xml import document

_ASKED = "x-amz-object-attributes"
_MAX_PARTS_HEADER, _MARKER_HEADER = "x-amz-max-parts", "x-amz-part-number-marker"
_NAMES = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")
_MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class GetObjectAttributesInput:
    """`asked` are some of the names of attributes, and `after` is the part number to go on after."""

    bucket: str
    key: str
    asked: frozenset[str]
    max_parts: int
    after: int
    conditions: Conditions

    @classmethod
    def parse(cls, call: Call) -> GetObjectAttributesInput:
        """Raises InvalidArgument."""
        headers = call.headers
        marker = headers.get(_MARKER_HEADER, "0")
        return cls(
            bucket=call.bucket,
            key=call.key,
            max_parts=count_of({_MAX_PARTS_HEADER: headers.get(_MAX_PARTS_HEADER)}, _MAX_PARTS_HEADER, _MAX_PARTS),
            after=0 if marker == "0" else part_number(marker),
            conditions=Conditions.parse(headers),
            asked=_asked(headers),
        )


async def get_object_attributes(context: Context, input: GetObjectAttributesInput) -> Response:
    """What is known of an object, as far as it is asked for. Raises NoSuchBucket, NoSuchKey, NotModified."""
    record = context.store.stat(context.tenant.name, input.bucket, input.key)
    input.conditions.check_read(record)
    checksum = checksum_headers(record)
    parts = PartSizes.read(record.attributes)
    entries: list[Entry] = [
        ("ETag", record.etag),
        ("Checksum", [*part_elements(checksum), ("ChecksumType", checksum[TYPE_HEADER])]),
        ("StorageClass", "STANDARD"),
        ("ObjectSize", record.nbytes),
    ]
    if parts is not None:
        entries.insert(2, ("ObjectParts", _page(parts, input.after, input.max_parts)))
    body = document("GetObjectAttributesResponse", [entry for entry in entries if entry[0] in input.asked])
    headers = {"Content-Type": "application/xml", "Last-Modified": http_date(record.mtime_ms)}
    return Response(headers=headers, body=body)


def _page(parts: PartSizes, after: int, count: int) -> list[Entry]:
    page = list(itertools.islice(parts.sizes(after), count))
    entries: list[Entry] = [
        ("PartsCount", parts.count),
        ("PartNumberMarker", after),
        ("NextPartNumberMarker", page[-1][0] if page else after),
        ("MaxParts", count),
        ("IsTruncated", bool(page) and page[-1][0] < parts.count),
    ]
    return entries + [("Part", [("PartNumber", number), ("Size", size)]) for number, size in page]


def _asked(headers: Headers) -> frozenset[str]:
    names = [name.strip() for name in ",".join(headers.getall(_ASKED)).split(",")]
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise InvalidArgument(f"{_ASKED} lists some of {', '.join(_NAMES)}; {unknown[0][:64]!r} is none of them")
    return frozenset(names)


operation = Operation(
    "GetObjectAttributes", GetObjectAttributesInput.parse, get_object_attributes, frozenset({VERSION})
)
