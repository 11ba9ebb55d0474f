"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.listing import Entry, Page, count_of, iso_date, owner_entry
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.part_checksums import PartChecksums
from kvgate.s3.parts import initiator_entry, upload_checksum_entries
from kvgate.s3.xml import document

if TYPE_CHECKING:
    from kvgate.store.multipart import MultipartUpload

_MAX_UPLOADS = 1000


@dataclass(frozen=True, slots=True)
class ListMultipartUploadsInput:
    """`key_marker` and `id_marker` name the upload, or the prefix, to go on after."""

    bucket: str
    page: Page
    key_marker: str
    id_marker: str

    @classmethod
    def parse(cls, call: Call) -> ListMultipartUploadsInput:
        """Raises InvalidArgument."""
        count = count_of(call.query, "max-uploads", _MAX_UPLOADS)
        return cls(
            bucket=call.bucket,
            page=Page.parse({**call.query, "max-keys": str(count)}),
            key_marker=call.query.get("key-marker", ""),
            id_marker=call.query.get("upload-id-marker", ""),
        )


async def list_multipart_uploads(context: Context, input: ListMultipartUploadsInput) -> Response:
    """One page of the uploads in progress, by key and then by age. Raises NoSuchBucket."""
    tenant, page = context.tenant.name, input.page
    text = page.text
    items: list[Entry] = []
    last: tuple[str, str] | None = None
    truncated = False
    for upload in context.store.multipart.uploads(tenant, input.bucket):
        place = _place(upload, page)
        if not upload.key.startswith(page.prefix) or not _is_after(place, input) or place == last:
            continue
        if len(items) == page.max_keys:
            truncated = page.max_keys > 0
            break
        last = place
        items.append(_upload(upload, page) if place[1] else ("CommonPrefixes", [("Prefix", text(place[0]))]))
    entries: list[Entry] = [
        ("Bucket", input.bucket),
        ("KeyMarker", text(input.key_marker)),
        ("UploadIdMarker", input.id_marker),
        ("Prefix", text(page.prefix)),
        ("MaxUploads", page.max_keys),
        ("IsTruncated", truncated),
    ]
    if page.delimiter:
        entries.append(("Delimiter", text(page.delimiter)))
    if page.url_encoded:
        entries.append(("EncodingType", "url"))
    if truncated and last is not None:
        entries += [("NextKeyMarker", text(last[0])), ("NextUploadIdMarker", last[1])]
    entries += items
    return Response(headers={"Content-Type": "application/xml"}, body=document("ListMultipartUploadsResult", entries))


def _place(upload: MultipartUpload, page: Page) -> tuple[str, str]:
    """Key and id, or the prefix that the upload is rolled up into and nothing."""
    cut = upload.key.find(page.delimiter, len(page.prefix)) if page.delimiter else -1
    return (upload.key, upload.id) if cut < 0 else (upload.key[: cut + len(page.delimiter)], "")


def _is_after(place: tuple[str, str], input: ListMultipartUploadsInput) -> bool:
    if place[0] == input.key_marker:
        return bool(input.id_marker) and place[1] > input.id_marker
    return place[0] > input.key_marker


def _upload(upload: MultipartUpload, page: Page) -> Entry:
    return (
        "Upload",
        [
            ("Key", page.text(upload.key)),
            ("UploadId", upload.id),
            initiator_entry(upload.tenant),
            owner_entry(upload.tenant),
            ("StorageClass", "STANDARD"),
            ("Initiated", iso_date(upload.initiated_ms)),
            *upload_checksum_entries(PartChecksums.parse(upload.attributes)),
        ],
    )


operation = Operation(
    "ListMultipartUploads",
    ListMultipartUploadsInput.parse,
    list_multipart_uploads,
    frozenset({"prefix", "delimiter", "max-uploads", "key-marker", "upload-id-marker", "encoding-type"}),
    action="ListBucketMultipartUploads",
)
