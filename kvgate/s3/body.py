"""The payload of a request as one verified source of bytes, however it is framed, signed and checksummed.

Payload goes straight from the wire into the caller's memory. Only framing passes through a buffer here, and with it at
most SCRATCH_NBYTES of payload that had arrived behind it in the same read.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence

from kvgate.auth.identity import UNSIGNED, ChunkedPayload, Payload, SignedPayload
from kvgate.errors import (
    BadDigest,
    IncompleteBody,
    InvalidArgument,
    InvalidRequest,
    LengthRequired,
    MalformedXML,
    PayloadHashMismatch,
)
from kvgate.memory.digest import crc64nvme
from kvgate.memory.lease import slice_views
from kvgate.messages import Consume, Headers, Request, fill
from kvgate.s3 import checksums
from kvgate.s3.checksums import Checksum
from kvgate.s3.chunked import ChunkedDecoder
from kvgate.s3.ordinary import ORDINARY_HEADERS

SCRATCH_NBYTES = 256

Update = Callable[[memoryview], None]

_NOTHING = memoryview(b"")
_LOOK = memoryview(bytearray(1))
"""Where the byte goes that must not follow a body."""


class PayloadReader:
    """The decoded payload of one request.

    nbytes: its length, or None when the request does not say.
    What `fill` gives is provisional until `finish` has verified the whole.
    """

    def __init__(self, request: Request, payload: Payload) -> None:
        """Raises LengthRequired, InvalidArgument, InvalidRequest, UnsupportedOperation."""
        headers = request.headers
        self._body = request.body
        self._buffers = request.buffers
        self._received = 0
        self._finished = False
        self._claims: list[_Claim] = []
        self._decoder: ChunkedDecoder | None = None
        self._scratch = _NOTHING  # for framing, and perhaps payload behind it
        self._pending = _NOTHING  # what of that has been read already and not been used

        length = _length(headers, "content-length")
        if length is None and "transfer-encoding" not in headers:
            raise LengthRequired("an upload needs a Content-Length, or a chunked transfer encoding")
        if isinstance(payload, ChunkedPayload):
            trailer = _announced_trailer(headers) if payload.trailer else None
            self.nbytes = _length(headers, "x-amz-decoded-content-length")
            if length is not None and self.nbytes is not None and self.nbytes > length:
                raise InvalidRequest("x-amz-decoded-content-length is more than the Content-Length around it")
            self._decoder = ChunkedDecoder(payload, self.nbytes, [trailer] if trailer else ())
            self._scratch = memoryview(bytearray(SCRATCH_NBYTES))
        else:
            if "content-encoding" in headers and "aws-chunked" in content_codings(headers):
                raise InvalidArgument("Content-Encoding aws-chunked needs a STREAMING form of x-amz-content-sha256")
            trailer = None
            self.nbytes = length
        self._collect_claims(headers, payload, trailer)

    @property
    def left(self) -> int | None:
        """How many bytes of the declared length are still to come; None when none was declared."""
        return None if self.nbytes is None else self.nbytes - self._received

    @property
    def checksums(self) -> Mapping[str, str]:
        """The x-amz-checksum-* that came with the payload, as headers to store with it; empty before the end."""
        if not self._finished:
            return {}
        return {
            claim.header: checksums.encode(claim.checksum.digest())
            for claim in self._claims
            if claim.header.startswith(checksums.HEADER_PREFIX)
        }

    async def fill(self, views: Sequence[memoryview], consume: Consume) -> int:
        """Fill `views` with the next bytes and return how many, never more than `left`: fewer only at the end.

        See ScatteredBody, also for `consume`. Raises IncompleteBody, InvalidRequest, SignatureMismatch.
        """

        left = self.left
        if self._finished or left == 0:
            return 0
        if left is not None and (len(views) != 1 or len(views[0]) > left):
            views = slice_views(views, 0, left)
        take = self._also(consume) if self._updates else consume
        if self._decoder is None:
            count = await fill(self._body, views, take, slow=self._slow)
        else:
            count = await self._fill_chunked(self._decoder, views, take)
        self._received += count
        return count

    def _also(self, consume: Consume) -> Consume:
        """`consume`, and then every digest that goes with it."""

        def take(piece: memoryview) -> None:
            consume(piece)
            for update in self._updates:
                update(piece)

        return take

    async def finish(self, payload_crc64nvme: int) -> None:
        """Read what follows the payload and verify the whole; whoever took it has its crc64nvme from `consume`.

        Raises IncompleteBody, BadDigest, PayloadHashMismatch, SignatureMismatch, or InvalidRequest when the body is
        longer than declared. Idempotent once it has returned.
        """
        if self._finished:
            return
        if self._decoder is not None:
            while not self._decoder.complete:
                if self._decoder.payload_left:
                    raise RuntimeError("the payload has not been read to its end")
                await self._read_framing(self._decoder)
            self._decoder.receive_framing(self._pending)
            self._pending = _NOTHING
        scratch = self._scratch or _LOOK
        while extra := await self._body.readinto(scratch):
            if self._decoder is None:
                raise InvalidRequest("the body is longer than declared")
            self._decoder.receive_framing(scratch[:extra])
        if self.left:
            raise IncompleteBody(f"the body has {self._received} of the {self.nbytes} bytes that were declared")
        self._own.value = payload_crc64nvme
        for claim in self._claims:
            claim.verify(self._decoder.trailers if self._decoder else {})
        self._finished = True

    async def read_all(self, limit_nbytes: int) -> bytes:
        """The whole verified payload, for XML bodies. Raises MalformedXML over the limit, Overloaded."""
        content = bytearray()
        buffer = memoryview(bytearray(min(limit_nbytes, 65536)))
        too_long = (self.nbytes or 0) > limit_nbytes
        with self._buffers.hold(limit_nbytes if self.nbytes is None else min(self.nbytes, limit_nbytes)):
            while not too_long and await self.fill([buffer], content.extend):
                too_long = len(content) > limit_nbytes
        if too_long:
            raise MalformedXML(f"the body is over {limit_nbytes} bytes")
        await self.finish(crc64nvme([memoryview(content)]))
        return bytes(content)

    # --- framing ------------------------------------------------------------------------------------------------------

    async def _fill_chunked(self, decoder: ChunkedDecoder, views: Sequence[memoryview], take: Consume) -> int:
        """Payload of the chunks: of each, what is left over in the scratch buffer, then straight from the wire."""
        done, wanted = 0, sum(map(len, views))
        while done < wanted:
            while not decoder.payload_left:
                if decoder.complete:
                    return done
                await self._read_framing(decoder)
            stop = min(done + decoder.payload_left, wanted)
            for view in slice_views(views, done, min(done + len(self._pending), stop)):
                view[:] = self._pending[: len(view)]
                self._pending = self._pending[len(view) :]
                take(view)
                done += len(view)
            if done < stop:
                done += await fill(self._body, slice_views(views, done, stop), take, slow=self._slow)
                if done < stop:
                    raise IncompleteBody("the body ends within a chunk")
        return done

    async def _read_framing(self, decoder: ChunkedDecoder) -> None:
        if not self._pending:
            received = await self._body.readinto(self._scratch)
            if not received:
                raise IncompleteBody("the body ends before its aws-chunked framing does")
            self._pending = self._scratch[:received]
        taken = decoder.receive_framing(self._pending)
        self._pending = self._pending[taken:]

    # --- digests ------------------------------------------------------------------------------------------------------

    def _collect_claims(self, headers: Headers, payload: Payload, trailer: str | None) -> None:
        self._own = checksums.Known(8)
        self._updates: list[Update] = []
        self._slow = False
        if self._decoder is None and payload is UNSIGNED and headers.all_among(ORDINARY_HEADERS):
            return
        stated = [name for name in headers.names() if checksums.algorithm_of(name)]
        if trailer:
            stated.append(trailer)
        if len(stated) > 1:
            raise InvalidRequest(f"one checksum is accepted, and {' and '.join(stated)} came")
        running: dict[str, Checksum] = {checksums.STORES_OWN: self._own}

        def claim(header: str, algorithm: str, expected: bytes | None, error: type[InvalidRequest]) -> None:
            checksum = running.setdefault(algorithm, checksums.new(algorithm))
            self._claims.append(_Claim(header, algorithm, checksum, expected, error))

        if isinstance(payload, SignedPayload):
            claim("x-amz-content-sha256", "sha256", bytes.fromhex(payload.sha256), PayloadHashMismatch)
        if "content-md5" in headers:
            claim("content-md5", "md5", checksums.decode("Content-MD5", "md5", headers.get("content-md5")), BadDigest)
        for header in stated:
            algorithm = checksums.algorithm_of(header) or ""
            expected = None if header == trailer else checksums.decode(header, algorithm, headers.get(header))
            claim(header, algorithm, expected, BadDigest)

        del running[checksums.STORES_OWN]
        self._updates += [checksum.update for checksum in running.values()]
        self._slow = any(not checksum.inline for checksum in running.values())
        if self._decoder is not None:
            self._updates.append(self._decoder.receive_payload)
            self._slow |= isinstance(payload, ChunkedPayload) and payload.signing is not None


class _Claim:
    """A digest that the payload was said to have. `expected` is None until a trailer brings it."""

    def __init__(
        self, header: str, algorithm: str, checksum: Checksum, expected: bytes | None, error: type[InvalidRequest]
    ) -> None:
        self.header = header
        self.checksum = checksum
        self._algorithm = algorithm
        self._expected = expected
        self._error = error

    def verify(self, trailers: Mapping[str, str]) -> None:
        expected = self._expected
        if expected is None:
            expected = checksums.decode(self.header, self._algorithm, trailers[self.header])
        expect_digest(self.header, expected, self.checksum.digest(), self._error)


def expect_digest(header: str, expected: bytes, digest: bytes, error: type[InvalidRequest] = BadDigest) -> None:
    """Raises `error` for a body that has not the digest which this header says it has."""
    if not hmac.compare_digest(expected, digest):
        raise error(f"the body does not match the {header} that came with it")


def content_codings(headers: Headers) -> list[str]:
    """The codings of the Content-Encoding headers, in order."""
    codings = [coding.strip() for coding in ",".join(headers.getall("content-encoding")).split(",")]
    return [coding for coding in codings if coding]


def _length(headers: Headers, name: str) -> int | None:
    text = headers.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidArgument(f"{name} must be a number of bytes")
    return int(text)


def _announced_trailer(headers: Headers) -> str | None:
    names = [name.strip().lower() for name in ",".join(headers.getall("x-amz-trailer")).split(",") if name.strip()]
    if not names:
        return None
    if len(names) > 1 or checksums.algorithm_of(names[0]) is None:
        raise InvalidArgument("x-amz-trailer must name one x-amz-checksum- header")
    return names[0]
