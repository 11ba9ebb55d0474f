"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.errors import InvalidArgument
from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.listing import PARAMETERS, Entry, Page
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.versions import NULL
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class ListObjectVersionsInput:
    """`key_marker` is the key, or the prefix, to go on after; the one version of a key is behind it."""

    bucket: str
    page: Page
    key_marker: str
    version_marker: str

    @classmethod
    def parse(cls, call: Call) -> ListObjectVersionsInput:
        """Raises InvalidArgument."""
        key_marker, version_marker = call.query.get("key-marker", ""), call.query.get("version-id-marker", "")
        if version_marker and not key_marker:
            raise InvalidArgument("version-id-marker needs a key-marker")
        if version_marker not in ("", NULL):
            raise InvalidArgument(f"version-id-marker is {NULL!r}: there are no other versions")
        return cls(call.bucket, Page.parse(call.query), key_marker, version_marker)


async def list_object_versions(context: Context, input: ListObjectVersionsInput) -> Response:
    """One page of a bucket, in byte order of the keys; each has one version. Raises NoSuchBucket."""
    page = input.page
    listing = page.fetch(context.store, context.tenant.name, input.bucket, input.key_marker)
    truncated = listing is not None and listing.truncated
    entries = page.head(input.bucket)
    entries += [
        ("KeyMarker", page.text(input.key_marker)),
        ("VersionIdMarker", input.version_marker),
        ("IsTruncated", truncated),
    ]
    if listing is not None and truncated:
        entries.append(("NextKeyMarker", page.text(listing.next_after)))
        if listing.next_after not in listing.prefixes[-1:]:
            entries.append(("NextVersionIdMarker", NULL))
    version: list[Entry] = [("VersionId", NULL), ("IsLatest", True)]
    entries += page.contents(listing, context.tenant.name, tag="Version", version=version)
    return Response(headers={"Content-Type": "application/xml"}, body=document("ListVersionsResult", entries))


operation = Operation(
    "ListObjectVersions",
    ListObjectVersionsInput.parse,
    list_object_versions,
    PARAMETERS | {"key-marker", "version-id-marker"},
    action="ListBucketVersions",
)
