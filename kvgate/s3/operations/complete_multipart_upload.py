"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html"""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from kvgate.errors import InvalidPart, InvalidRequest, MalformedXML
from kvgate.messages import Headers, Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.checksums import ALGORITHMS, HEADER_PREFIX
from kvgate.s3.conditions import Conditions
from kvgate.s3.expiration import expiration_headers
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import ALGORITHM_HEADER, TYPE_HEADER, PartChecksums, part_elements
from kvgate.s3.part_sizes import PartSizes
from kvgate.s3.parts import MAX_PARTS, object_size, part_number
from kvgate.s3.representation import checksum_headers
from kvgate.s3.xml import document, parse

if TYPE_CHECKING:
    from kvgate.store.multipart import MultipartUpload
    from kvgate.tiers.base import Record

_MAX_BODY_NBYTES = 4 << 20
_MAX_ELEMENTS = 8 * MAX_PARTS


@dataclass(frozen=True, slots=True)
class CompleteMultipartUploadInput:
    """`listing` is the body, a CompleteMultipartUpload document.

    headers: may state a checksum and the length of the object
    """

    bucket: str
    key: str
    upload_id: str
    listing: PayloadReader
    headers: Headers
    nbytes: int | None
    conditions: Conditions

    @classmethod
    def parse(cls, call: Call) -> CompleteMultipartUploadInput:
        """Raises InvalidArgument, InvalidRequest. A checksum among the headers is the object's, not the body's."""
        headers = Headers((name, value) for name, value in call.headers.items() if not name.startswith(HEADER_PREFIX))
        return cls(
            bucket=call.bucket,
            key=call.key,
            upload_id=call.query["uploadId"],
            listing=PayloadReader(replace(call.request, headers=headers), call.payload_form),
            headers=call.headers,
            nbytes=object_size(call.headers),
            conditions=Conditions.parse(call.headers),
        )


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part as the client knows it; `checksums` are headers to values."""

    number: int
    etag: str
    checksums: Mapping[str, str]


async def complete_multipart_upload(context: Context, input: CompleteMultipartUploadInput) -> Response:
    """Make one object of the listed parts. Asked again, the answer is the same."""
    content = await input.listing.read_all(_MAX_BODY_NBYTES)
    listed = await asyncio.to_thread(parse_listing, content)

    def describe(upload: MultipartUpload, parts: Sequence[Record]) -> Mapping[str, str]:
        return _describe(input, listed, upload, parts)

    record = await context.store.multipart.complete(
        context.tenant,
        input.bucket,
        input.key,
        input.upload_id,
        [(part.number, part.etag) for part in listed],
        describe=describe,
        precondition=input.conditions.for_write(),
    )
    checksums = checksum_headers(record)
    body = document(
        "CompleteMultipartUploadResult",
        [
            ("Location", f"/{input.bucket}/{quote(input.key)}"),
            ("Bucket", input.bucket),
            ("Key", input.key),
            ("ETag", f'"{record.etag}"'),
            *part_elements(checksums),
            ("ChecksumType", checksums[TYPE_HEADER]),
        ],
    )
    return Response(headers={"Content-Type": "application/xml", **expiration_headers(context.store, record)}, body=body)


def _describe(
    input: CompleteMultipartUploadInput,
    listed: Sequence[ListedPart],
    upload: MultipartUpload,
    parts: Sequence[Record],
) -> Mapping[str, str]:
    """The object's attributes, once what the client knows of its parts has been held against them."""
    for stated, part in zip(listed, parts, strict=True):
        for header, value in stated.checksums.items():
            if part.attributes.get(header, value) != value:
                raise InvalidPart(f"part {stated.number} does not have the {header} that is listed")
    nbytes = sum(part.nbytes for part in parts)
    if input.nbytes not in (None, nbytes):
        raise InvalidRequest(f"the parts have {nbytes} bytes in all, and x-amz-mp-object-size is {input.nbytes}")
    checksums = PartChecksums.parse(upload.attributes)
    checksums.verify(input.headers, parts)
    given = {name: value for name, value in upload.attributes.items() if name not in (ALGORITHM_HEADER, TYPE_HEADER)}
    return given | checksums.attributes(parts) | PartSizes.of([part.nbytes for part in parts]).attributes


def parse_listing(content: bytes) -> list[ListedPart]:
    """The parts of a CompleteMultipartUpload document, as they are listed. Raises MalformedXML, InvalidArgument."""
    root = parse(content, "CompleteMultipartUpload", _MAX_ELEMENTS)
    parts = [_parse_part(element) for element in root if element.tag == "Part"]
    if not 1 <= len(parts) <= MAX_PARTS:
        raise MalformedXML(f"a CompleteMultipartUpload document lists 1 to {MAX_PARTS} parts, not {len(parts)}")
    return parts


def _parse_part(element: ET.Element) -> ListedPart:
    number, etag = element.findtext("PartNumber"), element.findtext("ETag")
    if not number or not etag:
        raise MalformedXML("a Part needs a PartNumber and an ETag")
    checksums = {
        HEADER_PREFIX + algorithm: value.strip()
        for algorithm in ALGORITHMS
        if (value := element.findtext(f"Checksum{algorithm.upper()}"))
    }
    return ListedPart(part_number(number.strip()), etag.strip().strip('"'), checksums)


operation = Operation(
    "CompleteMultipartUpload", CompleteMultipartUploadInput.parse, complete_multipart_upload, action="PutObject"
)
