"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html"""

from __future__ import annotations

from kvgate.messages import Response
from kvgate.s3.operations.base import BucketInput, Context, Operation


async def head_bucket(context: Context, input: BucketInput) -> Response:
    """That the bucket exists, and its region. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    return Response(headers={"x-amz-bucket-region": context.region})


operation = Operation("HeadBucket", BucketInput.parse, head_bucket, action="ListBucket")
