"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html"""

from __future__ import annotations

import contextlib

from kvgate.messages import Response
from kvgate.s3.expiration import expiration_headers
from kvgate.s3.operations.base import Context, Operation
from kvgate.s3.publishing import publish
from kvgate.s3.reading import PARAMETERS, ReadInput


async def get_object(context: Context, input: ReadInput) -> Response:
    """An object or a range of it. The response's body holds the lease on the bytes until it is closed."""
    with contextlib.ExitStack() as stack:
        read = context.store.open_read(context.tenant.name, input.bucket, input.key, context.caller)
        stack.callback(read.close)
        selection = input.select(read.record)
        if context.settings or context.store.watches_ends(read.record):
            selection.headers.update(expiration_headers(context.store, read.record))
        if selection.start == selection.stop:
            return Response(selection.status, selection.headers)
        context.store.rates.read.take(context.payer, selection.stop - selection.start)
        published = publish(context, read.record)
        body = await read.load(selection.start, selection.stop)
        stack.pop_all()
    return Response(selection.status, selection.headers, body, published=published)


operation = Operation("GetObject", ReadInput.parse, get_object, PARAMETERS)
