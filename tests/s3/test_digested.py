from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from kvgate.messages import views
from kvgate.s3 import checksums
from kvgate.s3.digested import DigestedBody


class Body:
    """A body of these pieces, in one buffer that is used again, as a tier's is."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.nbytes = sum(map(len, pieces))
        self.pieces = pieces
        self.closed = 0

    async def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        buffer = memoryview(bytearray(max(map(len, self.pieces))))
        for piece in self.pieces:
            buffer[: len(piece)] = piece
            yield [buffer[: len(piece)]]

    def close(self) -> None:
        self.closed += 1


class SlowChecksum:
    """Takes as long as the test wants."""

    inline = False

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def update(self, data: memoryview) -> None:
        self.begun.set()
        assert self.go_on.wait(10)
        self.ended.set()

    def digest(self) -> bytes:
        return b""


@pytest.mark.parametrize("algorithm", ["crc32", "sha256"])
async def test_what_passes_is_digested_and_unchanged(algorithm: str) -> None:
    pieces = [os.urandom(size) for size in (1 << 20, 1, 200_000, 100)]
    body, checksum = Body(pieces), checksums.new(algorithm)
    digested = DigestedBody(body, checksum)
    assert [bytes(view) async for view in views(digested)] == pieces
    whole = checksums.new(algorithm)
    whole.update(memoryview(b"".join(pieces)))
    assert checksum.digest() == whole.digest()
    if algorithm == "sha256":
        assert checksum.digest() == hashlib.sha256(b"".join(pieces)).digest()
    digested.close()
    assert (digested.nbytes, body.closed) == (body.nbytes, 1)


async def test_a_cancelled_digest_ends_before_the_bytes_go() -> None:
    checksum = SlowChecksum()

    async def read() -> None:
        async for _ in DigestedBody(Body([bytes(1 << 20)]), checksum).batches():
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(checksum.begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    checksum.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert checksum.ended.is_set()
