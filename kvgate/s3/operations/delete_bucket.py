"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteBucket.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation


@dataclass(frozen=True, slots=True)
class DeleteBucketInput:
    bucket: str

    @classmethod
    def parse(cls, call: Call) -> DeleteBucketInput:
        return cls(call.bucket)


async def delete_bucket(context: Context, input: DeleteBucketInput) -> Response:
    """Remove an empty bucket. Raises NoSuchBucket, BucketNotEmpty."""
    await context.store.buckets.delete(context.tenant.name, input.bucket)
    return Response(204)


operation = Operation("DeleteBucket", DeleteBucketInput.parse, delete_bucket)
