"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.listing import Entry, count_of, iso_date, owner_entry
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import PartChecksums, part_elements
from kvgate.s3.parts import initiator_entry, part_number, upload_checksum_entries
from kvgate.s3.xml import document

_MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class ListPartsInput:
    """`after` is the part number to go on after."""

    bucket: str
    key: str
    upload_id: str
    max_parts: int
    after: int

    @classmethod
    def parse(cls, call: Call) -> ListPartsInput:
        """Raises InvalidArgument."""
        marker = call.query.get("part-number-marker", "") or "0"
        return cls(
            bucket=call.bucket,
            key=call.key,
            upload_id=call.query["uploadId"],
            max_parts=count_of(call.query, "max-parts", _MAX_PARTS),
            after=0 if marker == "0" else part_number(marker),
        )


async def list_parts(context: Context, input: ListPartsInput) -> Response:
    """The parts that have been stored, by number. Raises NoSuchUpload."""
    multipart, tenant = context.store.multipart, context.tenant.name
    upload = multipart.get(tenant, input.bucket, input.key, input.upload_id)
    found = [part for part in multipart.parts(upload) if part.number > input.after]
    page = found[: input.max_parts]
    truncated = 0 < len(page) < len(found)
    entries: list[Entry] = [
        ("Bucket", upload.bucket),
        ("Key", upload.key),
        ("UploadId", upload.id),
        ("PartNumberMarker", input.after),
        ("NextPartNumberMarker", page[-1].number if page else 0),
        ("MaxParts", input.max_parts),
        ("IsTruncated", truncated),
        initiator_entry(tenant),
        owner_entry(tenant),
        ("StorageClass", "STANDARD"),
        *upload_checksum_entries(PartChecksums.parse(upload.attributes)),
    ]
    for part in page:
        record = part.record
        entries.append(
            (
                "Part",
                [
                    ("PartNumber", part.number),
                    ("LastModified", iso_date(record.mtime_ms)),
                    ("ETag", f'"{record.etag}"'),
                    ("Size", record.nbytes),
                    *part_elements(record.attributes),
                ],
            )
        )
    return Response(headers={"Content-Type": "application/xml"}, body=document("ListPartsResult", entries))


operation = Operation(
    "ListParts",
    ListPartsInput.parse,
    list_parts,
    frozenset({"max-parts", "part-number-marker"}),
    action="ListMultipartUploadParts",
)
