"""The body of a call, read within bounds and verified against what the request signed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from kvgate.auth.identity import ChunkedPayload, Payload, SignedPayload
from kvgate.errors import IncompleteBody, InvalidArgument, ObjectTooLarge, PayloadHashMismatch, UnsupportedOperation
from kvgate.messages import OFF_LOOP_NBYTES, Request, fill

_PIECE_NBYTES = 64 << 10


async def read_body(request: Request, payload: Payload, max_nbytes: int) -> bytes:
    """The whole body, of at most `max_nbytes`.

    Raises ObjectTooLarge, Overloaded, IncompleteBody, PayloadHashMismatch, InvalidArgument for a Content-Length that
    is no number, or UnsupportedOperation for a body in the aws-chunked framing, which nothing here is long enough for.
    """
    if isinstance(payload, ChunkedPayload):
        raise UnsupportedOperation(
            "this call takes no STREAMING form of x-amz-content-sha256; sign the body's sha256, or UNSIGNED-PAYLOAD"
        )
    announced = _content_length(request)
    if announced is None and "transfer-encoding" not in request.headers:
        announced = 0
    if announced is not None and announced > max_nbytes:
        raise _too_large(max_nbytes)
    with request.buffers.hold(max_nbytes if announced is None else announced):
        body = await _read(request, max_nbytes)
    if announced is not None and len(body) != announced:
        raise IncompleteBody(f"{len(body)} bytes came of the {announced} that Content-Length announced")
    if isinstance(payload, SignedPayload):
        await _verify(body, payload.sha256)
    return bytes(body)


async def _read(request: Request, max_nbytes: int) -> bytearray:
    body = bytearray()
    piece = memoryview(bytearray(min(_PIECE_NBYTES, max_nbytes + 1)))
    while await fill(request.body, [piece], body.extend):
        if len(body) > max_nbytes:
            raise _too_large(max_nbytes)
    return body


async def _verify(body: bytearray, expected: str) -> None:
    digest = await asyncio.to_thread(hashlib.sha256, body) if len(body) > OFF_LOOP_NBYTES else hashlib.sha256(body)
    if not hmac.compare_digest(digest.hexdigest(), expected):
        raise PayloadHashMismatch("the body does not have the sha256 that x-amz-content-sha256 states")


def _content_length(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidArgument("content-length must be a number of bytes")
    return int(text)


def _too_large(max_nbytes: int) -> ObjectTooLarge:
    return ObjectTooLarge(f"the body of a call has at most {max_nbytes} bytes (kvapi.max_body)")
