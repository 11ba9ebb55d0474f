"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html"""

from __future__ import annotations

from kvgate.messages import Response
from kvgate.s3.expiration import expiration_headers
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.publishing import publish
from kvgate.s3.reading import PARAMETERS, ReadInput


async def head_object(context: Context, input: ReadInput) -> Response:
    """What GET would answer, without the bytes; nothing is leased or read. Raises NoSuchBucket, NoSuchKey."""
    record = context.store.head(context.tenant.name, input.bucket, input.key, context.caller)
    selection = input.select(record)
    if context.settings or context.store.watches_ends(record):
        selection.headers.update(expiration_headers(context.store, record))
    published = publish(context, record)
    nbytes = None if selection.status == 304 else selection.stop - selection.start
    return Response(selection.status, selection.headers, content_length=nbytes, published=published)


operation = Operation("HeadObject", ReadInput.parse, head_object, PARAMETERS, action="GetObject")
