"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjects.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.listing import PARAMETERS, Page
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class ListObjectsInput:
    bucket: str
    page: Page
    marker: str

    @classmethod
    def parse(cls, call: Call) -> ListObjectsInput:
        """Raises InvalidArgument."""
        return cls(call.bucket, Page.parse(call.query), call.query.get("marker", ""))


async def list_objects(context: Context, input: ListObjectsInput) -> Response:
    """One page of a bucket, in byte order of the keys. Raises NoSuchBucket.

    As with S3, NextMarker comes with a delimiter only; otherwise the last key is the next marker.
    """
    page = input.page
    listing = page.fetch(context.store, context.tenant.name, input.bucket, input.marker)
    truncated = listing is not None and listing.truncated
    entries = page.head(input.bucket)
    entries += [("Marker", page.text(input.marker)), ("IsTruncated", truncated)]
    if listing is not None and truncated and page.delimiter:
        entries.append(("NextMarker", page.text(listing.next_after)))
    entries += page.contents(listing, context.tenant.name)
    return Response(headers={"Content-Type": "application/xml"}, body=document("ListBucketResult", entries))


operation = Operation("ListObjects", ListObjectsInput.parse, list_objects, PARAMETERS | {"marker"}, action="ListBucket")
