"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteBucket.html"""

from __future__ import annotations

from kvgate.messages import Response
from kvgate.s3.operations.base import BucketInput, Context, Operation


async def delete_bucket(context: Context, input: BucketInput) -> Response:
    """Remove an empty bucket. Raises NoSuchBucket, BucketNotEmpty."""
    await context.store.buckets.delete(context.tenant.name, input.bucket)
    return Response(204)


operation = Operation("DeleteBucket", BucketInput.parse, delete_bucket)
