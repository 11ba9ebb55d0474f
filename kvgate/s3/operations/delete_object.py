"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html"""

from __future__ import annotations

from dataclasses import dataclass

from kvgate.messages import Response
from kvgate.s3.call import Call
from kvgate.s3.conditions import Conditions
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.versions import PARAMETER as VERSION


@dataclass(frozen=True, slots=True)
class DeleteObjectInput:
    bucket: str
    key: str
    conditions: Conditions

    @classmethod
    def parse(cls, call: Call) -> DeleteObjectInput:
        return cls(call.bucket, call.key, Conditions.parse(call.headers))


async def delete_object(context: Context, input: DeleteObjectInput) -> Response:
    """See to it that there is no such object; that there was none is no error. Raises NoSuchBucket."""
    await context.store.delete(context.tenant.name, input.bucket, input.key, input.conditions.for_write())
    return Response(204)


operation = Operation("DeleteObject", DeleteObjectInput.parse, delete_object, frozenset({VERSION}))
