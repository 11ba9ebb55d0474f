"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html"""

from __future__ import annotations

from kvgate.messages import Response
from kvgate.s3.operations.base import BucketInput, Context, Operation
from kvgate.s3.xml import document


async def get_bucket_location(context: Context, input: BucketInput) -> Response:
    """The gateway's region; us-east-1 is written as nothing, as S3 does. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    body = document("LocationConstraint", "" if context.region == "us-east-1" else context.region)
    return Response(headers={"Content-Type": "application/xml"}, body=body)


operation = Operation("GetBucketLocation", BucketInput.parse, get_bucket_location)
