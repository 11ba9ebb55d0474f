"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.auth.acl import parse_canned_acl
from kvgate.messages import Response
from kvgate.s3.acl_request import set_bucket_acl
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.representation import ACL
from kvgate.s3.xml import parse

_MAX_BODY_NBYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class CreateBucketInput:
    """`configuration` is the optional CreateBucketConfiguration; `acl` is empty where none is asked for."""

    bucket: str
    acl: str
    configuration: PayloadReader | None

    @classmethod
    def parse(cls, call: Call) -> CreateBucketInput:
        """Raises InvalidArgument, UnsupportedOperation."""
        acl = parse_canned_acl(call.headers.get(ACL)) if ACL in call.headers else ""
        return cls(call.bucket, acl, call.payload() if call.has_body else None)


async def create_bucket(context: Context, input: CreateBucketInput) -> Response:
    """Make a bucket, or find that the tenant has it already. Any LocationConstraint is accepted: there is one place."""
    if input.configuration is not None:
        content = await input.configuration.read_all(_MAX_BODY_NBYTES)
        if content:
            parse(content, "CreateBucketConfiguration")
    await context.store.buckets.create(context.tenant, input.bucket)
    if input.acl:
        await set_bucket_acl(context, input.bucket, input.acl)
    return Response(headers={"Location": f"/{input.bucket}"})


operation = Operation("CreateBucket", CreateBucketInput.parse, create_bucket, headers=frozenset({ACL}))
