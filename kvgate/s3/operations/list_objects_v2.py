"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.errors import InvalidArgument
from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.continuation import decode_token, encode_token
from kvgate.s3.listing import PARAMETERS, Page
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class ListObjectsV2Input:
    """`token` wins over `start_after`, as with S3."""

    bucket: str
    page: Page
    start_after: str
    token: str
    fetch_owner: bool

    @classmethod
    def parse(cls, call: Call) -> ListObjectsV2Input:
        """Raises InvalidArgument."""
        if call.query["list-type"] != "2":
            raise InvalidArgument("list-type must be 2")
        return cls(
            bucket=call.bucket,
            page=Page.parse(call.query),
            start_after=call.query.get("start-after", ""),
            token=call.query.get("continuation-token", ""),
            fetch_owner=call.query.get("fetch-owner", "").lower() == "true",
        )


async def list_objects_v2(context: Context, input: ListObjectsV2Input) -> Response:
    """One page of a bucket, in byte order of the keys. Raises NoSuchBucket, or InvalidArgument for a foreign token."""
    page = input.page
    after = decode_token(input.token) if input.token else input.start_after
    listing = page.fetch(context.store, context.tenant.name, input.bucket, after)
    truncated = listing is not None and listing.truncated
    entries = page.head(input.bucket)
    entries += [
        ("KeyCount", len(listing.records) + len(listing.prefixes) if listing is not None else 0),
        ("IsTruncated", truncated),
    ]
    if input.token:
        entries.append(("ContinuationToken", input.token))
    if input.start_after:
        entries.append(("StartAfter", page.text(input.start_after)))
    if listing is not None and truncated:
        entries.append(("NextContinuationToken", encode_token(listing.next_after)))
    entries += page.contents(listing, context.tenant.name if input.fetch_owner else "")
    return Response(headers={"Content-Type": "application/xml"}, body=document("ListBucketResult", entries))


operation = Operation(
    "ListObjectsV2",
    ListObjectsV2Input.parse,
    list_objects_v2,
    PARAMETERS | {"start-after", "continuation-token", "fetch-owner"},
    action="ListBucket",
)
