"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListBuckets.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.continuation import decode_token, encode_token
from kvgate.s3.listing import Entry, count_of, iso_date, owner_entry
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.xml import document

_MAX_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class ListBucketsInput:
    prefix: str
    max_buckets: int
    after: str

    @classmethod
    def parse(cls, call: Call) -> ListBucketsInput:
        """Raises InvalidArgument."""
        token = call.query.get("continuation-token", "")
        return cls(
            prefix=call.query.get("prefix", ""),
            max_buckets=count_of(call.query, "max-buckets", _MAX_BUCKETS),
            after=decode_token(token) if token else "",
        )


async def list_buckets(context: Context, input: ListBucketsInput) -> Response:
    """The tenant's own buckets, by name; other tenants' are not seen."""
    buckets = sorted(context.store.buckets.list(context.tenant.name), key=lambda bucket: bucket.name)
    found = [bucket for bucket in buckets if bucket.name.startswith(input.prefix) and bucket.name > input.after]
    page = found[: input.max_buckets]
    entries: list[Entry] = [
        owner_entry(context.tenant.name),
        (
            "Buckets",
            [("Bucket", [("Name", bucket.name), ("CreationDate", iso_date(bucket.created_ms))]) for bucket in page],
        ),
    ]
    if input.prefix:
        entries.append(("Prefix", input.prefix))
    if page and len(page) < len(found):
        entries.append(("ContinuationToken", encode_token(page[-1].name)))
    body = document("ListAllMyBucketsResult", entries)
    return Response(headers={"Content-Type": "application/xml"}, body=body)


operation = Operation(
    "ListBuckets", ListBucketsInput.parse, list_buckets, frozenset({"prefix", "max-buckets", "continuation-token"})
)
