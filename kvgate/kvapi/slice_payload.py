"""The body of a PUT of a slice: received where it belongs, and verified against what the request says of it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from kvgate.auth.identity import Payload, SignedPayload, UnsignedPayload
from kvgate.errors import (
    BadDigest,
    IncompleteBody,
    InvalidArgument,
    LengthRequired,
    PayloadHashMismatch,
    UnsupportedOperation,
)
from kvgate.memory.digest import extend_crc64nvme
from kvgate.messages import Request, fill

CHECKSUM = "x-amz-checksum-crc64nvme"


class SlicePayload:
    """See SliceSource. Raises LengthRequired, InvalidArgument, UnsupportedOperation for a body it cannot take."""

    def __init__(self, request: Request, payload: Payload) -> None:
        if not isinstance(payload, SignedPayload | UnsignedPayload):
            raise UnsupportedOperation("a slice is not taken in a STREAMING form; sign UNSIGNED-PAYLOAD or its sha256")
        length = request.headers.get("content-length")
        if not length:
            raise LengthRequired("a slice needs a Content-Length")
        if not (length.isascii() and length.isdigit() and len(length) <= 16):
            raise InvalidArgument("content-length must be a number of bytes")
        self.nbytes = int(length)
        self._body = request.body
        self._sha256 = payload.sha256 if isinstance(payload, SignedPayload) else ""
        self._expected = _crc64nvme(request.headers.get(CHECKSUM))

    async def receive(self, places: Iterable[Sequence[memoryview]]) -> int:
        """See SliceSource."""
        crc64nvme, received = 0, 0
        sha256 = hashlib.sha256() if self._sha256 else None

        def consume(view: memoryview) -> None:
            nonlocal crc64nvme
            crc64nvme = extend_crc64nvme(view, crc64nvme)
            if sha256 is not None:
                sha256.update(view)

        for views in places:
            received += await fill(self._body, views, consume)
        if received != self.nbytes:
            raise IncompleteBody(f"{received} bytes came of the {self.nbytes} that Content-Length announced")
        if self._expected is not None and crc64nvme != self._expected:
            raise BadDigest(f"the slice does not have the {CHECKSUM} that came with it")
        if sha256 is not None and not hmac.compare_digest(sha256.hexdigest(), self._sha256):
            raise PayloadHashMismatch("the slice does not have the sha256 that x-amz-content-sha256 states")
        return crc64nvme


def _crc64nvme(text: str) -> int | None:
    if not text:
        return None
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if len(octets) != 8:
        raise InvalidArgument(f"{CHECKSUM} must be 8 bytes in base64")
    return int.from_bytes(octets, "big")
