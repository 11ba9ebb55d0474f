"""The ACL of a bucket: who besides its owner may list it.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketAcl.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketAcl.html
"""

from __future__ import annotations

from kvgate.auth.acl import PRIVATE
from kvgate.messages import Response
from kvgate.s3.access import BUCKET_ACL
from kvgate.s3.acl_request import PutAclInput, set_bucket_acl
from kvgate.s3.acl_xml import access_control_policy
from kvgate.s3.operations.base import BucketInput, Context, Operation
from kvgate.s3.representation import ACL
from kvgate.s3.xml import document


async def get_bucket_acl(context: Context, input: BucketInput) -> Response:
    """The grants of a bucket. Raises NoSuchBucket."""
    owner = context.tenant.name
    acl = context.store.buckets.get(owner, input.bucket).settings.get(BUCKET_ACL, PRIVATE)
    body = document("AccessControlPolicy", access_control_policy(owner, acl))
    return Response(headers={"Content-Type": "application/xml"}, body=body)


async def put_bucket_acl(context: Context, input: PutAclInput) -> Response:
    """Set the ACL of a bucket. Raises NoSuchBucket."""
    context.store.buckets.get(context.tenant.name, input.bucket)
    await set_bucket_acl(context, input.bucket, await input.acl(context.tenant.name))
    return Response()


get = Operation("GetBucketAcl", BucketInput.parse, get_bucket_acl)
put = Operation("PutBucketAcl", PutAclInput.parse, put_bucket_acl, headers=frozenset({ACL}))
