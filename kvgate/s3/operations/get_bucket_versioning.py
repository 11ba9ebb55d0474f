"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html"""

from __future__ import annotations

from kvgate.messages import Response
from kvgate.s3.operations.base import BucketInput, Context, Operation
from kvgate.s3.xml import document


async def get_bucket_versioning(context: Context, input: BucketInput) -> Response:
    """That versioning has never been enabled, which S3 says with an empty document. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    return Response(headers={"Content-Type": "application/xml"}, body=document("VersioningConfiguration", ""))


operation = Operation("GetBucketVersioning", BucketInput.parse, get_bucket_versioning)
