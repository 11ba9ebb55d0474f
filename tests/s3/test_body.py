from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import threading
import time
from typing import Any

import pytest
from botocore.httpchecksum import AwsChunkedWrapper, CrtCrc64NvmeChecksum
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.identity import ChunkedPayload, Payload, SignedPayload, UnsignedPayload
from kvgate.errors import (
    BadDigest,
    IncompleteBody,
    InvalidArgument,
    InvalidRequest,
    LengthRequired,
    MalformedXML,
    PayloadHashMismatch,
    SignatureMismatch,
    UnsupportedOperation,
)
from kvgate.memory.digest import BlockDigest
from kvgate.messages import OFF_LOOP_NBYTES, Headers, Request
from kvgate.s3 import checksums
from kvgate.s3.body import SCRATCH_NBYTES, PayloadReader

UNSIGNED = UnsignedPayload()


def reader(body: Any, payload: Payload = UNSIGNED, **headers: str) -> PayloadReader:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return PayloadReader(Request("PUT", "/b/k", "", Headers(named), body), payload)


def digest(algorithm: str, data: bytes) -> str:
    checksum = checksums.new(algorithm)
    checksum.update(memoryview(data))
    return checksums.encode(checksum.digest())


async def receive(source: PayloadReader, view_nbytes: int = 1 << 20) -> bytes:
    """As an operation does it: into views of a buffer, to the declared length or the end."""
    received = bytearray()
    value = BlockDigest()

    def consume(view: memoryview) -> None:
        received.extend(view)
        value.update(view)

    filled = b""
    first = view_nbytes // 3
    buffers = [memoryview(bytearray(first)), memoryview(bytearray(view_nbytes - first))]
    while source.left != 0:
        nbytes = await source.fill(buffers, consume)
        filled += b"".join(buffers)[:nbytes]
        if nbytes < view_nbytes:
            break
    await source.finish(value.value)
    assert await source.fill(buffers, consume) == 0
    assert filled == received
    return filled


def run(source: PayloadReader, view_nbytes: int = 1 << 20) -> bytes:
    return asyncio.run(receive(source, view_nbytes))


# --- plain bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", checksums.ALGORITHMS)
def test_a_body_is_verified_against_its_checksum_header(wire_body: Any, algorithm: str) -> None:
    data = b"payload" * 1000
    headers = {f"x_amz_checksum_{algorithm}": digest(algorithm, data), "content_length": str(len(data))}
    source = reader(wire_body([data]), **headers)
    assert source.checksums == {}
    assert run(source) == data
    assert source.checksums == {f"x-amz-checksum-{algorithm}": digest(algorithm, data)}
    with pytest.raises(BadDigest, match=algorithm):
        run(reader(wire_body([b"x" * len(data)]), **headers))


class Asked:
    """A body of a connection that keeps what it is to show its bytes to."""

    def __init__(self, data: bytes) -> None:
        self._left = data
        self.consumers: list[object] = []

    async def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count

    async def fill(self, views: Any, consume: Any, *, slow: bool = False) -> int:
        self.consumers.append(consume)
        total = 0
        for view in views:
            count = await self.readinto(view)
            consume(view[:count])
            total += count
        return total


@pytest.mark.parametrize(
    ("algorithm", "alone"), [(None, True), ("crc64nvme", True), ("crc32c", False), ("sha256", False)]
)
def test_a_digest_that_is_all_there_is_to_take_is_left_alone_with_the_socket(
    algorithm: str | None, alone: bool
) -> None:
    data = b"payload" * 1000
    headers = {f"x_amz_checksum_{algorithm}": digest(algorithm, data)} if algorithm else {}
    body, value = Asked(data), BlockDigest()
    source = reader(body, content_length=str(len(data)), **headers)

    async def receive() -> list[int]:
        room = memoryview(bytearray(5000))
        counts = [await source.fill([room], value), await source.fill([room], value)]
        await source.finish(value.value)
        return counts

    assert asyncio.run(receive()) == [5000, 2000]
    assert (value.nbytes, source.left) == (7000, 0)
    assert [consumer is value for consumer in body.consumers] == [alone, alone]


def test_a_signed_body_is_verified(wire_body: Any) -> None:
    data = b"payload"
    payload = SignedPayload(hashlib.sha256(data).hexdigest())
    assert run(reader(wire_body([data]), payload, content_length="7")) == data
    with pytest.raises(PayloadHashMismatch):
        run(reader(wire_body([b"Payload"]), payload, content_length="7"))


def test_content_md5_is_verified_and_not_stored(wire_body: Any) -> None:
    data = b"payload"
    source = reader(wire_body([data]), content_length="7", content_md5=digest("md5", data))
    assert run(source) == data
    assert source.checksums == {}
    with pytest.raises(BadDigest, match="content-md5"):
        run(reader(wire_body([b"PAYLOAD"]), content_length="7", content_md5=digest("md5", data)))


def test_signed_hash_md5_and_checksum_together(wire_body: Any) -> None:
    data = b"payload" * 100_000
    source = reader(
        wire_body([data]),
        SignedPayload(hashlib.sha256(data).hexdigest()),
        content_length=str(len(data)),
        content_md5=digest("md5", data),
        x_amz_checksum_sha256=digest("sha256", data),
    )
    assert run(source) == data
    assert source.checksums == {"x-amz-checksum-sha256": digest("sha256", data)}


def test_a_body_shorter_than_declared_is_refused(wire_body: Any) -> None:
    with pytest.raises(IncompleteBody):
        run(reader(wire_body([b"1234"]), content_length="5"))


def test_a_body_longer_than_declared_is_refused(wire_body: Any) -> None:
    with pytest.raises(InvalidRequest, match="longer"):
        run(reader(wire_body([b"123456"]), content_length="5"))


def test_a_body_of_no_declared_length_is_read_to_its_end(wire_body: Any) -> None:
    source = reader(wire_body([b"123", b"456"]), transfer_encoding="chunked")
    assert source.nbytes is None
    assert run(source, 4) == b"123456"


def test_an_empty_body_is_verified_too(wire_body: Any) -> None:
    assert run(reader(wire_body([]), content_length="0", x_amz_checksum_crc32="AAAAAA==")) == b""
    with pytest.raises(BadDigest):
        run(reader(wire_body([]), content_length="0", x_amz_checksum_crc32="AAAAAQ=="))


def test_never_more_than_is_left_is_asked_of_the_wire(wire_body: Any) -> None:
    body = wire_body([b"x" * 100])
    assert run(reader(body, content_length="100"), 1 << 16) == b"x" * 100
    assert body.largest_view == 100  # nor by the look for what must not follow


# --- what the headers must say ----------------------------------------------------------------------------------------


def test_an_upload_must_say_how_long_it_is(wire_body: Any) -> None:
    with pytest.raises(LengthRequired):
        reader(wire_body([]))


@pytest.mark.parametrize("length", ["-1", "1.5", "x", "1" * 17, "\u0661"])
def test_bad_lengths_are_refused(wire_body: Any, unsigned_trailer: ChunkedPayload, length: str) -> None:
    with pytest.raises(InvalidArgument):
        reader(wire_body([]), content_length=length)
    with pytest.raises(InvalidArgument):
        reader(wire_body([]), unsigned_trailer, content_length="100", x_amz_decoded_content_length=length)


def test_one_checksum_is_accepted(wire_body: Any, unsigned_trailer: ChunkedPayload) -> None:
    two = {"x_amz_checksum_crc32": "AAAAAA==", "x_amz_checksum_crc32c": "AAAAAA=="}
    with pytest.raises(InvalidRequest, match="one checksum"):
        reader(wire_body([]), content_length="0", **two)
    with pytest.raises(InvalidRequest, match="one checksum"):
        reader(
            wire_body([]),
            unsigned_trailer,
            content_length="0",
            x_amz_checksum_crc32="AAAAAA==",
            x_amz_trailer="x-amz-checksum-crc32c",
        )


def test_bad_checksum_and_trailer_headers_are_refused(wire_body: Any, unsigned_trailer: ChunkedPayload) -> None:
    with pytest.raises(InvalidArgument):
        reader(wire_body([]), content_length="0", content_md5="AAAA")
    with pytest.raises(UnsupportedOperation):
        reader(wire_body([]), content_length="0", x_amz_checksum_xxhash64="AAAAAAAAAAA=")
    for trailer in ("content-md5", "x-amz-checksum-crc32,x-amz-checksum-sha1", "x-amz-checksum-type"):
        with pytest.raises(InvalidArgument):
            reader(wire_body([]), unsigned_trailer, content_length="0", x_amz_trailer=trailer)


def test_aws_chunked_needs_a_streaming_payload(wire_body: Any) -> None:
    with pytest.raises(InvalidArgument, match="aws-chunked"):
        reader(wire_body([]), content_length="0", content_encoding="gzip, aws-chunked")


def test_decoded_length_fits_into_the_encoded(wire_body: Any, unsigned_trailer: ChunkedPayload) -> None:
    with pytest.raises(InvalidRequest, match="x-amz-decoded-content-length"):
        reader(wire_body([]), unsigned_trailer, content_length="10", x_amz_decoded_content_length="11")


# --- aws-chunked ------------------------------------------------------------------------------------------------------


def test_reads_what_botocore_frames(wire_body: Any, unsigned_trailer: ChunkedPayload) -> None:
    data = bytes(range(256)) * 12_000
    wrapper = AwsChunkedWrapper(io.BytesIO(data), CrtCrc64NvmeChecksum, "x-amz-checksum-crc64nvme")
    pieces = list(iter(lambda: wrapper.read(100_000), b""))
    source = reader(
        wire_body(pieces),
        unsigned_trailer,
        transfer_encoding="chunked",
        content_encoding="aws-chunked",
        x_amz_trailer="x-amz-checksum-crc64nvme",
        x_amz_decoded_content_length=str(len(data)),
    )
    assert source.nbytes == len(data)
    assert run(source, 1 << 19) == data
    assert source.checksums == {"x-amz-checksum-crc64nvme": digest("crc64nvme", data)}


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=1500), max_size=5),
    cuts=st.lists(st.integers(min_value=0), max_size=12),
    view_nbytes=st.integers(min_value=1, max_value=3000),
    declared=st.booleans(),
)
@pytest.mark.parametrize("form", ["signed", "signed_trailer", "unsigned_trailer"])
def test_any_split_and_any_view_give_the_same_payload(
    wire_body: Any,
    encoder: Any,
    request: pytest.FixtureRequest,
    form: str,
    payloads: list[bytes],
    cuts: list[int],
    view_nbytes: int,
    declared: bool,
) -> None:
    protection: ChunkedPayload = request.getfixturevalue(form)
    whole = b"".join(payloads)
    trailers = {"x-amz-checksum-sha1": digest("sha1", whole)} if protection.trailer else None
    wire = encoder(protection.signing).encode(payloads, trailers)
    at = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    pieces = [wire[start:stop] for start, stop in itertools.pairwise(at)]
    headers = {"content_length": str(len(wire))}
    if declared:
        headers["x_amz_decoded_content_length"] = str(len(whole))
    if trailers:
        headers["x_amz_trailer"] = "x-amz-checksum-sha1"
    source = reader(wire_body(pieces), protection, **headers)
    assert source.nbytes == (len(whole) if declared else None)
    assert run(source, view_nbytes) == whole
    assert source.checksums == (trailers or {})


def test_a_wrong_trailing_checksum_is_refused(wire_body: Any, encoder: Any, unsigned_trailer: ChunkedPayload) -> None:
    for value, error in ((digest("crc32", b"other"), BadDigest), ("nonsense", InvalidArgument)):
        wire = encoder(None).encode([b"payload"], {"x-amz-checksum-crc32": value})
        source = reader(
            wire_body([wire]), unsigned_trailer, content_length=str(len(wire)), x_amz_trailer="x-amz-checksum-crc32"
        )
        with pytest.raises(error):
            run(source)
        assert source.checksums == {}


def test_a_broken_chunk_signature_is_refused(wire_body: Any, encoder: Any, signed: ChunkedPayload) -> None:
    for nbytes in (10, OFF_LOOP_NBYTES + 1):
        wire = encoder(signed.signing).encode([b"a" * nbytes]).replace(b"a" * nbytes, b"a" * (nbytes - 1) + b"b")
        with pytest.raises(SignatureMismatch):
            run(reader(wire_body([wire]), signed, content_length=str(len(wire))))


def test_a_chunked_body_cut_short_is_refused(wire_body: Any, encoder: Any, signed: ChunkedPayload) -> None:
    wire = encoder(signed.signing).encode([b"a" * 500, b"b" * 500])
    for cut in range(0, len(wire) - 1, 13):
        with pytest.raises(IncompleteBody):
            run(
                reader(
                    wire_body([wire[:cut]]), signed, content_length=str(len(wire)), x_amz_decoded_content_length="1000"
                )
            )


def test_bytes_after_the_last_chunk_are_refused(wire_body: Any, encoder: Any, unsigned_trailer: ChunkedPayload) -> None:
    wire = encoder(None).encode([b"a" * 500])
    for pieces in ([wire + b"more"], [wire, b"more"]):
        with pytest.raises(InvalidRequest, match="after the end"):
            run(reader(wire_body(pieces), unsigned_trailer, content_length="600"))


def test_payload_goes_straight_into_the_view(wire_body: Any, encoder: Any, signed: ChunkedPayload) -> None:
    """All but what arrived behind a size line in the scratch buffer."""
    wire = encoder(signed.signing).encode([b"a" * 65536] * 4)
    body = wire_body([wire])
    assert run(reader(body, signed, content_length=str(len(wire))), 1 << 18) == b"a" * 4 * 65536
    assert body.largest_view > 65536 - SCRATCH_NBYTES


# --- hashing beside the loop ------------------------------------------------------------------------------------------


def test_a_slow_hash_of_a_large_view_is_taken_in_a_thread(wire_body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    update = checksums.Hash.update

    def noted(self: Any, data: memoryview) -> None:
        seen.add(threading.get_ident())
        update(self, data)

    monkeypatch.setattr(checksums.Hash, "update", noted)
    for nbytes, here in ((OFF_LOOP_NBYTES, True), (OFF_LOOP_NBYTES + 1, False)):
        seen.clear()
        data = bytes(nbytes)
        payload = SignedPayload(hashlib.sha256(data).hexdigest())
        assert run(reader(wire_body([data]), payload, content_length=str(nbytes)), 4 * nbytes) == data
        assert (threading.get_ident() in seen) is here


def test_a_cancelled_read_lets_go_of_the_view_first(wire_body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = threading.Event()
    over = threading.Event()

    def slowly(self: Any, data: memoryview) -> None:
        running.set()
        time.sleep(0.2)
        over.set()

    monkeypatch.setattr(checksums.Hash, "update", slowly)
    data = bytes(OFF_LOOP_NBYTES + 1)

    async def cancel() -> None:
        source = reader(wire_body([data]), SignedPayload("0" * 64), content_length=str(len(data)))
        task = asyncio.create_task(source.fill([memoryview(bytearray(len(data)))], lambda view: None))
        await asyncio.to_thread(running.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set()

    asyncio.run(cancel())


# --- XML bodies -------------------------------------------------------------------------------------------------------


def test_read_all_is_verified_and_bounded(wire_body: Any) -> None:
    data = b"<Delete/>" * 10
    headers = {"content_length": str(len(data)), "content_md5": digest("md5", data)}
    assert asyncio.run(reader(wire_body([data]), **headers).read_all(90)) == data
    with pytest.raises(MalformedXML, match="89"):
        asyncio.run(reader(wire_body([data]), **headers).read_all(89))
    with pytest.raises(MalformedXML):
        asyncio.run(reader(wire_body([data] * 1000), transfer_encoding="chunked").read_all(1000))
    wrong = base64.b64encode(bytes(16)).decode()
    with pytest.raises(BadDigest):
        asyncio.run(reader(wire_body([data]), content_length="90", content_md5=wrong).read_all(90))
    assert asyncio.run(reader(wire_body([]), content_length="0").read_all(90)) == b""
