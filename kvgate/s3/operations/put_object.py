"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvgate.auth.identity import UNSIGNED
from kvgate.messages import Response
from kvgate.s3.body import PayloadReader
from kvgate.s3.call import Call
from kvgate.s3.conditions import Conditions
from kvgate.s3.expiration import expiration_headers
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.ordinary import PLAIN_PUT_HEADERS
from kvgate.s3.representation import ANNOTATIONS, attributes_of, checksum_headers

if TYPE_CHECKING:
    from kvgate.store.store import Store
    from kvgate.tiers.base import Record


@dataclass(frozen=True, slots=True)
class PutObjectInput:
    """
    attributes: the headers to store with the object
    plain:      whether it is of the form that the native plane takes
    """

    bucket: str
    key: str
    body: PayloadReader
    attributes: Mapping[str, str]
    conditions: Conditions
    plain: bool

    @classmethod
    def parse(cls, call: Call) -> PutObjectInput:
        """Raises InvalidRequest, HeadersTooLarge, UnsupportedOperation."""
        return cls(
            bucket=call.bucket,
            key=call.key,
            body=call.payload(),
            attributes=attributes_of(call.headers),
            conditions=Conditions.parse(call.headers),
            plain=call.payload_form is UNSIGNED and call.headers.all_among(PLAIN_PUT_HEADERS),
        )


async def put_object(context: Context, input: PutObjectInput) -> Response:
    """Store an object: received straight into the store's memory, verified, and only then visible.

    Conditions are checked twice: before the body is asked for, to save its transfer, and in the step that makes the
    object visible, which is the one that counts.
    """
    store, body = context.store, input.body
    precondition = input.conditions.for_write()
    input.conditions.check_early(store, context.tenant.name, input.bucket, input.key)
    async with await store.open_write(context.tenant, input.bucket, input.key, body.nbytes) as write:
        while body.left != 0 and await body.fill(await write.views(), write.digest):
            write.advance()
        await body.finish(write.crc64nvme)
        record = await write.commit({**input.attributes, **body.checksums}, precondition)
    plain = input.plain and context.access.caller is context.tenant
    published = plain and store.takes_plain_puts(context.tenant.name, input.bucket)
    return Response(headers=stored_headers(store, record), published=published)


def stored_headers(store: Store, record: Record) -> dict[str, str]:
    """What the writer of an object is told. Raises NoSuchBucket."""
    return {"ETag": f'"{record.etag}"', **checksum_headers(record), **expiration_headers(store, record)}


operation = Operation("PutObject", PutObjectInput.parse, put_object, headers=ANNOTATIONS)
