"""aws-chunked bodies: the payload reader gives exactly what a plain decoder of the whole body finds in it, or refuses.

An input is a payload and the way to frame it, some damage to the framed bytes, and where the reads split them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import zlib
from typing import NamedTuple

from fuzz.draw import Draw
from fuzz.properties import must, refusals, run_at_once
from fuzz.targets.base import Target
from kvgate.auth.identity import ChunkedPayload, ChunkSigning
from kvgate.auth.sigv4 import EMPTY_SHA256, Scope
from kvgate.memory.digest import BlockDigest
from kvgate.messages import Headers, Request
from kvgate.s3.body import PayloadReader
from kvgate.s3.chunked import MAX_LINE_NBYTES, MAX_SMALL_CHUNKS, SMALL_CHUNK_NBYTES

_TRAILER = "x-amz-checksum-crc32"
_SIGNING = ChunkSigning(b"k" * 32, "5" * 64, Scope("20260202", "r"), "20260202T024000Z")
_WORDS = (
    *(b"\r\n", b"\n", b"\r", b"0\r\n", b"0\r\n\r\n", b"1\r\n", b"ffffffffffffffff\r\n", b";chunk-signature="),
    *(b"-1\r\n", b"x-amz-checksum-crc32:", b"x-amz-checksum-crc32:AAAAAA==\r\n", b"x-amz-trailer-signature:", b" "),
    *(b"\x85", b"\xa0", b"0" * 64, b"0" * 17, b"a" * 1030, b"00000000\r\n", b"+1\r\n"),
    *(b"0x1\r\n", b"A\r\n0123456789\r\n"),
)


class Framing(NamedTuple):
    """How a body is framed, by what its request says. `nbytes` is the declared length of the payload."""

    signed: bool
    trailer: bool
    announced: bool
    nbytes: int | None


def check(data: bytes) -> None:
    draw = Draw(data)
    chunks = [draw.some(20) * (100 if draw.one_in(16) else 1) for _ in range(draw.below(5))]
    payload = b"".join(chunks)
    trailer = draw.one_in(2)
    framing = Framing(
        signed=draw.one_in(2),
        trailer=trailer,
        announced=trailer and draw.below(4) > 0,
        nbytes=draw.pick((len(payload), len(payload), None, len(payload) + 1, 0)),
    )
    wire = bytearray(_framed([chunk for chunk in chunks if chunk], framing))
    for _ in range(draw.below(4)):
        at = draw.below(len(wire) + 1)
        wire[at : at + draw.pick((0, 0, 1, 2, 20))] = draw.pick(_WORDS) if draw.one_in(2) else draw.some(3)
    expected, whole = _decoded(bytes(wire), framing)
    body = _Pieces(bytes(wire), [1 + draw.below(300) for _ in range(draw.below(20))])
    views = [1 + draw.below(1000) for _ in range(1 + draw.below(4))]

    received, finished = bytearray(), False
    with refusals():
        reader = PayloadReader(_request(body, framing), _payload(framing))
        finished = run_at_once(_receive(reader, views, received))
    must(expected.startswith(received), "the reader gives bytes that the body does not hold")
    must(finished == whole, f"the reader {'takes' if finished else 'refuses'} what it should not")
    must(not finished or received == expected, "the reader leaves out a part of the payload")


async def _receive(reader: PayloadReader, views: list[int], received: bytearray) -> bool:
    digest = BlockDigest()

    def consume(piece: memoryview) -> None:
        received.extend(piece)
        digest.update(piece)

    turn = 0
    while reader.left != 0:
        room = [memoryview(bytearray(nbytes)) for nbytes in (views * 2)[turn % len(views) :][: len(views)]]
        before = len(received)
        count = await reader.fill(room, consume)
        must(b"".join(room)[:count] == received[before:], "what was consumed is not what was received")
        if count < sum(map(len, room)):
            break
        turn += 1
    await reader.finish(digest.value)
    return True


class _Pieces:
    """A body that arrives in pieces of these lengths, by turns, and may be read a bounded number of times."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        self._data, self._lengths, self._at, self._turn = data, lengths or [1 << 20], 0, 0
        self._reads_left = 2 * len(data) + 10

    async def readinto(self, view: memoryview) -> int:
        self._reads_left -= 1
        must(self._reads_left >= 0, "the reader does not end")
        must(len(view) > 0, "a read into no room")
        piece = self._data[self._at :][: min(len(view), self._lengths[self._turn % len(self._lengths)])]
        view[: len(piece)] = piece
        self._at += len(piece)
        self._turn += 1
        return len(piece)


def _request(body: _Pieces, framing: Framing) -> Request:
    headers = {"transfer-encoding": "chunked"}
    if framing.announced:
        headers["x-amz-trailer"] = _TRAILER
    if framing.nbytes is not None:
        headers["x-amz-decoded-content-length"] = str(framing.nbytes)
    return Request("PUT", "/b/k", "", Headers(headers.items()), body)


def _payload(framing: Framing) -> ChunkedPayload:
    return ChunkedPayload(framing.trailer, _SIGNING if framing.signed else None)


# --- the reference ----------------------------------------------------------------------------------------------------


class _Chain:
    def __init__(self) -> None:
        self.previous = _SIGNING.seed_signature

    def next(self, algorithm: str, *digests: str) -> str:
        text = "\n".join([algorithm, _SIGNING.amz_date, str(_SIGNING.scope), self.previous, *digests])
        self.previous = hmac.digest(_SIGNING.key, text.encode(), "sha256").hex()
        return self.previous

    def chunk(self, chunk: bytes) -> str:
        return self.next("AWS4-HMAC-SHA256-PAYLOAD", EMPTY_SHA256, hashlib.sha256(chunk).hexdigest())

    def trailer(self, trailers: bytes) -> str:
        return self.next("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(trailers).hexdigest())


def _framed(chunks: list[bytes], framing: Framing) -> bytes:
    """A good body of these chunks."""
    chain, wire = _Chain(), b""
    for chunk in [*chunks, b""]:
        signature = f";chunk-signature={chain.chunk(chunk)}" if framing.signed else ""
        wire += f"{len(chunk):x}{signature}\r\n".encode() + chunk + (b"\r\n" if chunk else b"")
    trailers = f"{_TRAILER}:{_crc32(b''.join(chunks))}" if framing.announced else ""
    wire += f"{trailers}\r\n".encode() if trailers else b""
    if framing.signed and framing.trailer:
        signature = chain.trailer(f"{trailers}\n".encode() if trailers else b"")
        wire += f"x-amz-trailer-signature:{signature}\r\n".encode()
    return wire + b"\r\n"


def _decoded(wire: bytes, framing: Framing) -> tuple[bytes, bool]:
    """The payload in a body, up to the first fault, and whether there is none."""
    payload, chain, small, rest = b"", _Chain(), 0, wire
    while True:
        line, end, rest = rest.partition(b"\n")
        match = re.fullmatch(rb"([0-9A-Fa-f]{1,16})(;chunk-signature=([0-9a-f]{64}))?\r", line)
        if not end or match is None or bool(match[2]) != framing.signed:
            return payload, False
        size = int(match[1], 16)
        small += 0 < size < SMALL_CHUNK_NBYTES
        if small > MAX_SMALL_CHUNKS or (framing.nbytes is not None and len(payload) + size > framing.nbytes):
            return payload, False
        chunk, rest = rest[:size], rest[size:]
        payload += chunk
        if len(chunk) < size or (framing.signed and chain.chunk(chunk) != match[3].decode()):
            return payload, False
        if not size:
            break
        if not rest.startswith(b"\r\n"):
            return payload, False
        rest = rest[2:]
    complete = framing.nbytes in (None, len(payload))
    return payload, complete and _good_end(rest, framing, chain, payload)


def _good_end(rest: bytes, framing: Framing, chain: _Chain, payload: bytes) -> bool:
    """Whether what follows the last chunk is right: trailers, their signature, an empty line and perhaps another."""
    due, signed, blank = framing.signed and framing.trailer, False, False
    trailers: list[tuple[str, str]] = []
    while True:
        line, end, rest = rest.partition(b"\n")
        if not end or len(line) >= MAX_LINE_NBYTES:
            return False
        text = line.decode("latin-1").strip()
        name, _, value = [part.strip() for part in text.partition(":")]
        if not text and due and not blank:
            blank = True
        elif not text:
            break
        elif signed:
            return False
        elif due and name.lower() == "x-amz-trailer-signature":
            text = "".join([f"{name}:{value}\n" for name, value in trailers])
            if chain.trailer(text.encode("latin-1")) != value:
                return False
            due, signed = False, True
        elif framing.announced and name.lower() == _TRAILER and not trailers:
            trailers.append((_TRAILER, value))
        else:
            return False
    if due or len(trailers) != framing.announced or rest not in (b"", b"\r", b"\r\n"):
        return False
    return not trailers or _decode(trailers[0][1]) == zlib.crc32(payload).to_bytes(4, "big")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _crc32(payload: bytes) -> str:
    return base64.b64encode(zlib.crc32(payload).to_bytes(4, "big")).decode()


TARGETS = (Target("chunked", 120_000, check, words=_WORDS),)
