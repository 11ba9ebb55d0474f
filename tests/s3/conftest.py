"""A request body in pieces as the wire gives them, and a hand-made aws-chunked encoder that follows S3's documents."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings

from kvgate.auth.identity import ChunkedPayload, ChunkSigning
from kvgate.auth.sigv4 import Scope

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

settings.register_profile("kvgate", deadline=None)  # the machine may be busy
settings.load_profile("kvgate")


class WireBody:
    """A body that arrives as the pieces given, however large the views are."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.largest_view = 0

    async def readinto(self, view: memoryview) -> int:
        self.largest_view = max(self.largest_view, len(view))
        if not self.pieces:
            return 0
        piece = self.pieces[0]
        nbytes = min(len(piece), len(view))
        view[:nbytes] = piece[:nbytes]
        self.pieces[0] = piece[nbytes:]
        if not self.pieces[0]:
            self.pieces.pop(0)
        return nbytes


class Encoder:
    """Frames payload as aws-chunked. With `signing`, each chunk and the trailer are signed."""

    def __init__(self, signing: ChunkSigning | None) -> None:
        self.signing = signing
        self.previous = signing.seed_signature if signing else ""

    def sign(self, algorithm: str, *hashes: str) -> str:
        assert self.signing
        text = "\n".join([algorithm, self.signing.amz_date, str(self.signing.scope), self.previous, *hashes])
        self.previous = hmac.new(self.signing.key, text.encode(), "sha256").hexdigest()
        return self.previous

    def chunk(self, payload: bytes) -> bytes:
        head = f"{len(payload):x}"
        if self.signing:
            digest = hashlib.sha256(payload).hexdigest()
            head += ";chunk-signature=" + self.sign("AWS4-HMAC-SHA256-PAYLOAD", EMPTY_SHA256, digest)
        return head.encode() + b"\r\n" + payload + (b"\r\n" if payload else b"")

    def trailers(self, trailers: dict[str, str]) -> bytes:
        lines = "".join(f"{name}:{value}\r\n" for name, value in trailers.items())
        if self.signing:
            digest = hashlib.sha256(lines.replace("\r", "").encode()).hexdigest()
            lines += f"x-amz-trailer-signature:{self.sign('AWS4-HMAC-SHA256-TRAILER', digest)}\r\n"
        return lines.encode()

    def encode(self, payloads: Sequence[bytes], trailers: dict[str, str] | None = None) -> bytes:
        wire = b"".join(self.chunk(payload) for payload in payloads if payload) + self.chunk(b"")
        return wire + (self.trailers(trailers) if trailers is not None else b"") + b"\r\n"


SIGNING = ChunkSigning(b"k" * 32, "a" * 64, Scope("20260127", "us-east-1"), "20260127T100000Z")


@pytest.fixture(scope="session")
def wire_body() -> Callable[[Sequence[bytes]], WireBody]:
    return WireBody


@pytest.fixture(scope="session")
def encoder() -> Callable[[ChunkSigning | None], Encoder]:
    return Encoder


@pytest.fixture(scope="session")
def signed() -> ChunkedPayload:
    return ChunkedPayload(trailer=False, signing=SIGNING)


@pytest.fixture(scope="session")
def signed_trailer() -> ChunkedPayload:
    return ChunkedPayload(trailer=True, signing=SIGNING)


@pytest.fixture(scope="session")
def unsigned_trailer() -> ChunkedPayload:
    return ChunkedPayload(trailer=True, signing=None)
