"""The policy of a bucket.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketPolicy.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketPolicyStatus.html
"""

from __future__ import annotations

from kvgate.auth.policy import MAX_POLICY_NBYTES, Policy
from kvgate.errors import NoSuchBucketPolicy
from kvgate.messages import Response
from kvgate.s3.access import policy_of
from kvgate.s3.bucket_settings import BucketSetting
from kvgate.s3.operations.base import BucketInput, Context, Operation
from kvgate.s3.xml import document


def _parse(content: bytes, owner: str, bucket: str) -> str:
    Policy.parse(content, owner=owner, bucket=bucket)
    return content.decode()


_policy = BucketSetting("policy", MAX_POLICY_NBYTES, _parse, str.encode, NoSuchBucketPolicy, "application/json")

get = _policy.get("GetBucketPolicy", "GetBucketPolicy")
put = _policy.put("PutBucketPolicy", "PutBucketPolicy", 204)
delete = _policy.delete("DeleteBucketPolicy", "DeleteBucketPolicy")


async def _get_status(context: Context, input: BucketInput) -> Response:
    """Whether the policy lets everyone read something."""
    policy = policy_of(_policy.text(context, input.bucket), context.tenant.name, input.bucket)
    body = document("PolicyStatus", [("IsPublic", policy.is_public)])
    return Response(headers={"Content-Type": "application/xml"}, body=body)


get_status = Operation("GetBucketPolicyStatus", BucketInput.parse, _get_status)
