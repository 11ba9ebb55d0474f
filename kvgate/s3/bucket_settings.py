"""What an owner sets for a bucket: a document of some kind, with one operation each to get, put and delete it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kvgate.errors import KVGateError
from kvgate.messages import Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.operations.base import BucketInput, Context, Operation


@dataclass(frozen=True, slots=True)
class PutSettingInput:
    """A document for a bucket."""

    bucket: str
    document: PayloadReader

    @classmethod
    def parse(cls, call: Call) -> PutSettingInput:
        """Raises what PayloadReader raises."""
        return cls(call.bucket, call.payload())


@dataclass(frozen=True, slots=True)
class BucketSetting:
    """One kind of document.

    name:       by which the store keeps it
    max_nbytes: of the longest body that is read
    parse:      the text to keep, from a body, the bucket's owner and its name; raises InvalidRequest
    render:     the body of the answer, from the text that is kept
    missing:    raised where there is none
    """

    name: str
    max_nbytes: int
    parse: Callable[[bytes, str, str], str]
    render: Callable[[str], bytes]
    missing: Callable[[str], KVGateError]
    content_type: str = "application/xml"

    def text(self, context: Context, bucket: str) -> str:
        """The text that is kept. Raises NoSuchBucket, and `missing`."""
        settings = context.store.buckets.get(context.tenant.name, bucket).settings
        if self.name not in settings:
            raise self.missing(f"the bucket has no {self.name}")
        return settings[self.name]

    def get(self, name: str, action: str) -> Operation[BucketInput]:
        """The operation that answers with the document."""

        async def carry_out(context: Context, input: BucketInput) -> Response:
            content = self.render(self.text(context, input.bucket))
            return Response(headers={"Content-Type": self.content_type}, body=content)

        return Operation(name, BucketInput.parse, carry_out, action=action)

    def put(self, name: str, action: str, status: int) -> Operation[PutSettingInput]:
        """The operation that sets the document."""

        async def carry_out(context: Context, input: PutSettingInput) -> Response:
            context.store.buckets.get(context.tenant.name, input.bucket)
            content = await input.document.read_all(self.max_nbytes)
            text = await asyncio.to_thread(self.parse, content, context.tenant.name, input.bucket)
            await context.store.buckets.set(context.tenant.name, input.bucket, self.name, text)
            return Response(status)

        return Operation(name, PutSettingInput.parse, carry_out, action=action)

    def delete(self, name: str, action: str) -> Operation[BucketInput]:
        """The operation that removes the document; that there was none is no error."""

        async def carry_out(context: Context, input: BucketInput) -> Response:
            await context.store.buckets.set(context.tenant.name, input.bucket, self.name, None)
            return Response(204)

        return Operation(name, BucketInput.parse, carry_out, action=action)
