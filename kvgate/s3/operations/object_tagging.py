"""The tags of an object.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectTagging.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectTagging.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjectTagging.html
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.changing import set_attribute
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.representation import TAGGING
from kvgate.s3.tagging import MAX_BODY_NBYTES, decode_tags, encode_tags, parse_tagging, render_tagging
from kvgate.s3.versions import PARAMETER as VERSION


@dataclass(frozen=True, slots=True)
class ObjectTaggingInput:
    """Get or delete the tags."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, call: Call) -> ObjectTaggingInput:
        return cls(call.bucket, call.key)


@dataclass(frozen=True, slots=True)
class PutObjectTaggingInput:
    """`document` is the body, a Tagging document."""

    bucket: str
    key: str
    document: PayloadReader

    @classmethod
    def parse(cls, call: Call) -> PutObjectTaggingInput:
        """Raises what PayloadReader raises."""
        return cls(call.bucket, call.key, call.payload())


async def get_object_tagging(context: Context, input: ObjectTaggingInput) -> Response:
    """The tags of an object; one may have none. Raises NoSuchBucket, NoSuchKey."""
    record = context.store.stat(context.tenant.name, input.bucket, input.key)
    body = render_tagging(decode_tags(record.attributes.get(TAGGING, "")))
    return Response(headers={"Content-Type": "application/xml"}, body=body)


async def put_object_tagging(context: Context, input: PutObjectTaggingInput) -> Response:
    """Give an object these tags and no others. Raises NoSuchBucket, NoSuchKey, InvalidTag, ObjectChanged."""
    context.store.stat(context.tenant.name, input.bucket, input.key)
    tags = await asyncio.to_thread(parse_tagging, await input.document.read_all(MAX_BODY_NBYTES))
    await set_attribute(context, input.bucket, input.key, TAGGING, encode_tags(tags))
    return Response()


async def delete_object_tagging(context: Context, input: ObjectTaggingInput) -> Response:
    """See to it that an object has no tags. Raises NoSuchBucket, NoSuchKey, ObjectChanged."""
    if TAGGING in context.store.stat(context.tenant.name, input.bucket, input.key).attributes:
        await set_attribute(context, input.bucket, input.key, TAGGING, "")
    return Response(204)


get = Operation("GetObjectTagging", ObjectTaggingInput.parse, get_object_tagging, frozenset({VERSION}))
put = Operation("PutObjectTagging", PutObjectTaggingInput.parse, put_object_tagging, frozenset({VERSION}))
delete = Operation("DeleteObjectTagging", ObjectTaggingInput.parse, delete_object_tagging, frozenset({VERSION}))
