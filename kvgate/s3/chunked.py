"""aws-chunked: payload framed in chunks, each signed or none, with signed or unsigned trailing headers. No I/O.

    <hex size>[;chunk-signature=<hex>] CRLF <payload> CRLF      any number of times
    0[;chunk-signature=<hex>] CRLF [<name>:<value> CRLF ...] [x-amz-trailer-signature:<hex> CRLF] CRLF

Invariants
1. While `payload_left` > 0, exactly that many bytes of payload come next on the wire; otherwise framing does.
2. At most MAX_LINE_NBYTES of the wire are held, and those are framing.
3. With signing, every payload byte is covered by a verified chunk signature before the next chunk begins, and
   `complete` means that the signatures of all chunks and of the trailer held. Until then payload is provisional.
4. `complete` also means that the payload is as long as declared and the trailers are exactly those announced.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Collection

from kvgate.auth.identity import ChunkedPayload, ChunkSigning
from kvgate.auth.sigv4 import EMPTY_SHA256
from kvgate.errors import IncompleteBody, InvalidRequest, SignatureMismatch

MAX_LINE_NBYTES = 1024
SMALL_CHUNK_NBYTES = 8192
MAX_SMALL_CHUNKS = 1024
"""S3 asks for chunks of 8 KiB or more, save the last. So many smaller ones are let pass, and then no more."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?\r\n")
_TRAILER_SIGNATURE = "x-amz-trailer-signature"


class _State(enum.Enum):
    SIZE = enum.auto()  # a chunk's size line comes next
    PAYLOAD = enum.auto()
    PAYLOAD_END = enum.auto()  # the CRLF after a chunk's payload
    TRAILERS = enum.auto()
    END = enum.auto()  # the trailers are signed: the last CRLF comes next
    COMPLETE = enum.auto()


class ChunkedDecoder:
    """Decodes one body.

    Either `feed` whole buffers, or receive directly: pass framing to `receive_framing` while `payload_left` is 0, and
    otherwise put up to `payload_left` bytes from the wire where they belong and show them to `receive_payload`.
    Every method raises InvalidRequest, IncompleteBody or SignatureMismatch; the decoder is of no use afterwards.
    """

    def __init__(self, payload: ChunkedPayload, nbytes: int | None, announced: Collection[str] = ()) -> None:
        """nbytes: the declared length of the payload, if it was declared. announced: lower-case trailer names."""
        self.payload_left = 0
        self.trailers: dict[str, str] = {}
        """Lower-case names to values; to be trusted when `complete`."""
        self._state = _State.SIZE
        self._chain = _SignatureChain(payload.signing) if payload.signing else None
        self._signature_due = payload.trailer and payload.signing is not None  # at the end of the trailers
        self._announced = frozenset(announced)
        self._nbytes = nbytes
        self._received = 0
        self._line = b""  # the beginning of a line whose end has not arrived
        self._small_chunks = 0
        self._blank_line = False
        self._epilogue = b""

    @property
    def complete(self) -> bool:
        """The whole body has arrived and everything about it that can be verified here has been."""
        return self._state is _State.COMPLETE

    def feed(self, data: memoryview) -> list[memoryview]:
        """The payload in the next bytes of the wire, as spans of `data`, in order."""
        spans = []
        while data:
            if self.payload_left:
                span = data[: self.payload_left]
                self.receive_payload(span)
                spans.append(span)
                data = data[len(span) :]
            else:
                data = data[self.receive_framing(data) :]
        return spans

    def receive_payload(self, view: memoryview) -> None:
        """Account for the next payload bytes, at most `payload_left`. Hashes them when chunks are signed."""
        if len(view) > self.payload_left:
            raise ValueError(f"{len(view)} bytes of payload, {self.payload_left} expected")
        if self._chain:
            self._chain.update(view)
        self.payload_left -= len(view)
        if not self.payload_left:
            self._state = _State.PAYLOAD_END
            if self._chain:
                self._chain.end_chunk()

    def receive_framing(self, data: memoryview) -> int:
        """Take framing from the beginning of `data`, and return how many bytes; the rest is payload or not there."""
        taken = 0
        while taken < len(data) and not self.payload_left:
            if self.complete:
                self._receive_epilogue(bytes(data[taken : taken + 3]))
                return len(data)
            piece = bytes(data[taken : taken + MAX_LINE_NBYTES + 1 - len(self._line)])
            end = piece.find(b"\n") + 1
            taken += end or len(piece)
            self._line += piece[:end] if end else piece
            if len(self._line) > MAX_LINE_NBYTES:
                raise InvalidRequest(f"a line of the aws-chunked framing is over {MAX_LINE_NBYTES} bytes")
            if end:
                line, self._line = self._line, b""
                self._receive_line(line)
        return taken

    def _receive_line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            self._begin_chunk(line)
        elif self._state is _State.PAYLOAD_END:
            if line != b"\r\n":
                raise InvalidRequest("a chunk of the aws-chunked body is longer than its size line says")
            self._state = _State.SIZE
        else:
            self._receive_trailer_line(line)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or (match[2] is None) != (self._chain is None):
            signed = ";chunk-signature=<64 hex digits>" if self._chain else ""
            raise InvalidRequest(f"expected an aws-chunked size line '<hex size>{signed}'")
        size = int(match[1], 16)
        if self._nbytes is not None and self._received + size > self._nbytes:
            raise InvalidRequest(f"the body is longer than the declared x-amz-decoded-content-length of {self._nbytes}")
        self._small_chunks += 0 < size < SMALL_CHUNK_NBYTES
        if self._small_chunks > MAX_SMALL_CHUNKS:
            raise InvalidRequest(f"over {MAX_SMALL_CHUNKS} chunks of less than {SMALL_CHUNK_NBYTES} bytes")
        if self._chain:
            self._chain.begin_chunk(match[2].decode())
        if size:
            self._received += size
            self.payload_left = size
            self._state = _State.PAYLOAD
            return
        if self._chain:
            self._chain.end_chunk()
        if self._nbytes is not None and self._received < self._nbytes:
            raise IncompleteBody(f"the body has {self._received} of the {self._nbytes} bytes that were declared")
        self._state = _State.TRAILERS

    def _receive_trailer_line(self, line: bytes) -> None:
        text = line.decode("latin-1").strip()
        if not text:
            self._receive_blank_line()
            return
        name, _, value = text.partition(":")
        name, value = name.strip().lower(), value.strip()
        if self._state is _State.END:
            raise InvalidRequest(f"the trailer {name[:64]!r} comes after the signature of the trailers")
        if self._signature_due and self._chain and name == _TRAILER_SIGNATURE:
            self._chain.verify_trailers(self.trailers, value)
            self._state = _State.END
        elif name not in self._announced or name in self.trailers:
            raise InvalidRequest(f"the trailer {name[:64]!r} was not announced by x-amz-trailer, or came twice")
        else:
            self.trailers[name] = value

    def _receive_blank_line(self) -> None:
        """The end; but S3's own examples and MinIO's clients have one before the signature of the trailers too."""
        if self._signature_due and self._state is not _State.END:
            if self._blank_line:
                raise InvalidRequest("the trailers end without their signature")
            self._blank_line = True
            return
        missing = self._announced - self.trailers.keys()
        if missing:
            raise InvalidRequest(f"the announced trailer {min(missing)!r} did not come")
        self._state = _State.COMPLETE

    def _receive_epilogue(self, data: bytes) -> None:
        """MinIO's clients send one CRLF more."""
        self._epilogue += data
        if not b"\r\n".startswith(self._epilogue):
            raise InvalidRequest("the body goes on after the end of its aws-chunked framing")


class _SignatureChain:
    """The chunk signatures, each of which covers the one before."""

    def __init__(self, signing: ChunkSigning) -> None:
        self._signing = signing
        self._previous = signing.seed_signature
        self._claimed = ""
        self._hash = hashlib.sha256()

    def begin_chunk(self, claimed: str) -> None:
        self._claimed = claimed
        self._hash = hashlib.sha256()

    def update(self, view: memoryview) -> None:
        self._hash.update(view)

    def end_chunk(self) -> None:
        self._verify(f"AWS4-HMAC-SHA256-PAYLOAD\n%s\n{EMPTY_SHA256}\n{self._hash.hexdigest()}", self._claimed, "chunk")

    def verify_trailers(self, trailers: dict[str, str], claimed: str) -> None:
        """In the order sent: the signer's canonical form keeps it."""
        text = "".join([f"{name}:{value}\n" for name, value in trailers.items()])
        digest = hashlib.sha256(text.encode("latin-1")).hexdigest()
        self._verify(f"AWS4-HMAC-SHA256-TRAILER\n%s\n{digest}", claimed, "trailer")

    def _verify(self, form: str, claimed: str, what: str) -> None:
        text = form % f"{self._signing.amz_date}\n{self._signing.scope}\n{self._previous}"
        expected = hmac.digest(self._signing.key, text.encode(), "sha256").hex()
        if not hmac.compare_digest(expected.encode(), claimed.encode()):
            raise SignatureMismatch(
                f"the signature of a {what} of the body is not the one that the secret gives for it"
            )
        self._previous = expected
