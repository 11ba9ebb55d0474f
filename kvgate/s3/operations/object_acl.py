"""The ACL of an object: who besides the owner of its bucket may read it.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAcl.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectAcl.html
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.auth.acl import PRIVATE
from kvgate.messages import Response
from kvgate.s3.acl_request import PutAclInput
from kvgate.s3.acl_xml import access_control_policy
from kvgate.s3.call import Call
from kvgate.s3.changing import set_attribute
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.representation import ACL
from kvgate.s3.versions import PARAMETER as VERSION
from kvgate.s3.xml import document


@dataclass(frozen=True, slots=True)
class GetObjectAclInput:
    bucket: str
    key: str

    @classmethod
    def parse(cls, call: Call) -> GetObjectAclInput:
        return cls(call.bucket, call.key)


async def get_object_acl(context: Context, input: GetObjectAclInput) -> Response:
    """The grants of an object. Raises NoSuchBucket, NoSuchKey."""
    owner = context.tenant.name
    acl = context.store.stat(owner, input.bucket, input.key).attributes.get(ACL, PRIVATE)
    body = document("AccessControlPolicy", access_control_policy(owner, acl))
    return Response(headers={"Content-Type": "application/xml"}, body=body)


async def put_object_acl(context: Context, input: PutAclInput) -> Response:
    """Set the ACL of an object. Raises NoSuchBucket, NoSuchKey, ObjectChanged."""
    context.store.stat(context.tenant.name, input.bucket, input.key)
    acl = await input.acl(context.tenant.name)
    await set_attribute(context, input.bucket, input.key, ACL, "" if acl == PRIVATE else acl)
    return Response()


get = Operation("GetObjectAcl", GetObjectAclInput.parse, get_object_acl, frozenset({VERSION}))
put = Operation("PutObjectAcl", PutAclInput.parse, put_object_acl, frozenset({VERSION}), frozenset({ACL}))
