"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class GetBucketLocationInput:
    bucket: str

    @classmethod
    def parse(cls, call: Call) -> GetBucketLocationInput:
        return cls(call.bucket)


async def get_bucket_location(context: Context, input: GetBucketLocationInput) -> Response:
    """The gateway's region; us-east-1 is written as nothing, as S3 does. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    body = document("LocationConstraint", "" if context.region == "us-east-1" else context.region)
    return Response(headers={"Content-Type": "application/xml"}, body=body)


operation = Operation("GetBucketLocation", GetBucketLocationInput.parse, get_bucket_location)
