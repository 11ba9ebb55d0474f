"""A request that sets the ACL of a bucket or an object: a canned one in a header, or a list of grants in the body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kvgate.auth.acl import PRIVATE, parse_canned_acl
from kvgate.errors import InvalidRequest
from kvgate.s3.access import BUCKET_ACL
from kvgate.s3.acl_xml import MAX_BODY_NBYTES, parse_access_control_policy
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context
from kvgate.s3.representation import ACL


@dataclass(frozen=True, slots=True)
class PutAclInput:
    """An empty `key` is for the bucket. `canned` is empty where the body, an AccessControlPolicy document, says it."""

    bucket: str
    key: str
    canned: str
    document: PayloadReader | None

    @classmethod
    def parse(cls, call: Call) -> PutAclInput:
        """Raises InvalidArgument, UnsupportedOperation, and what PayloadReader raises."""
        canned = parse_canned_acl(call.headers.get(ACL)) if ACL in call.headers else ""
        return cls(call.bucket, call.key, canned, call.payload() if call.has_body else None)

    async def acl(self, owner: str) -> str:
        """The canned ACL asked for. Raises MalformedXML, UnsupportedOperation, or InvalidRequest for none or two."""
        content = await self.document.read_all(MAX_BODY_NBYTES) if self.document else b""
        if bool(content) is bool(self.canned):
            raise InvalidRequest(f"an ACL is given either by {ACL} or by an AccessControlPolicy document in the body")
        if self.canned:
            return self.canned
        return await asyncio.to_thread(parse_access_control_policy, content, owner)


async def set_bucket_acl(context: Context, bucket: str, acl: str) -> None:
    """Set a bucket's ACL, so that this survives a restart. Raises NoSuchBucket."""
    setting = None if acl == PRIVATE else acl
    await context.store.buckets.set(context.tenant.name, bucket, BUCKET_ACL, setting)
