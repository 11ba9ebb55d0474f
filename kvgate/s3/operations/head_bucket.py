"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation


@dataclass(frozen=True, slots=True)
class HeadBucketInput:
    bucket: str

    @classmethod
    def parse(cls, call: Call) -> HeadBucketInput:
        return cls(call.bucket)


async def head_bucket(context: Context, input: HeadBucketInput) -> Response:
    """That the bucket exists, and its region. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    return Response(headers={"x-amz-bucket-region": context.region})


operation = Operation("HeadBucket", HeadBucketInput.parse, head_bucket, action="ListBucket")
