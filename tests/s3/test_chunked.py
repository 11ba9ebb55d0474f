from __future__ import annotations

import contextlib
import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.identity import ChunkedPayload, ChunkSigning
from kvgate.auth.sigv4 import Scope, signing_key
from kvgate.errors import IncompleteBody, InvalidRequest, SignatureMismatch
from kvgate.s3.chunked import MAX_LINE_NBYTES, MAX_SMALL_CHUNKS, ChunkedDecoder

TRAILER = {"x-amz-checksum-crc32": "AAAAAA=="}


def decode(decoder: ChunkedDecoder, *pieces: bytes) -> bytes:
    payload = b"".join(bytes(span) for piece in pieces for span in decoder.feed(memoryview(piece)))
    if not decoder.complete:
        raise IncompleteBody("the wire ended")
    return payload


def split(wire: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    return [wire[start:stop] for start, stop in itertools.pairwise(at)]


@pytest.fixture(scope="session", params=["signed", "signed_trailer", "unsigned_trailer"])
def form(request: pytest.FixtureRequest, encoder: Any) -> tuple[ChunkedPayload, Any, dict[str, str] | None]:
    payload: ChunkedPayload = request.getfixturevalue(request.param)
    return payload, lambda: encoder(payload.signing), TRAILER if payload.trailer else None


# --- S3's own examples ------------------------------------------------------------------------------------------------

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SCOPE = Scope("20130524", "us-east-1")
DOCUMENTED = [
    (
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        [
            (65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
            (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
            (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
        ],
        b"",
    ),
    (
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        [
            (65536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
            (1024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
            (0, "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
        ],
        b"x-amz-checksum-crc32c:sOO8/Q==\n\r\n"
        b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n",
    ),
]


@pytest.mark.parametrize(("seed", "chunks", "trailer"), DOCUMENTED, ids=["plain", "trailer"])
def test_decodes_the_documented_example(seed: str, chunks: list[tuple[int, str]], trailer: bytes) -> None:
    signing = ChunkSigning(signing_key(SECRET, SCOPE), seed, SCOPE, "20130524T000000Z")
    wire = b"".join(
        f"{size:x};chunk-signature={proof}\r\n".encode() + (b"a" * size + b"\r\n" if size else b"")
        for size, proof in chunks
    )
    announced = ["x-amz-checksum-crc32c"] if trailer else []
    decoder = ChunkedDecoder(ChunkedPayload(bool(trailer), signing), 66560, announced)
    assert decode(decoder, wire + trailer + b"\r\n") == b"a" * 66560
    assert decoder.trailers == ({"x-amz-checksum-crc32c": "sOO8/Q=="} if trailer else {})


# --- properties -------------------------------------------------------------------------------------------------------

payloads = st.lists(st.binary(min_size=1, max_size=200), max_size=5)


@given(payloads=payloads, cuts=st.lists(st.integers(min_value=0), max_size=20))
def test_any_split_of_the_wire_gives_the_same_payload(form: Any, payloads: list[bytes], cuts: list[int]) -> None:
    protection, encoder, trailers = form
    wire = encoder().encode(payloads, trailers)
    whole = b"".join(payloads)
    decoder = ChunkedDecoder(protection, len(whole), trailers or ())
    assert decode(decoder, *split(wire, cuts)) == whole
    assert decoder.trailers == (trailers or {})


@given(payloads=payloads, cuts=st.lists(st.integers(min_value=0), max_size=20))
def test_direct_receiving_gives_the_same_payload(form: Any, payloads: list[bytes], cuts: list[int]) -> None:
    protection, encoder, trailers = form
    wire = memoryview(encoder().encode(payloads, trailers))
    whole = b"".join(payloads)
    decoder = ChunkedDecoder(protection, None, trailers or ())
    received = b""
    steps = iter([cut % 40 + 1 for cut in cuts])
    while wire:
        step = next(steps, 7)
        if decoder.payload_left:
            view = wire[: min(step, decoder.payload_left)]
            decoder.receive_payload(view)
            received += view
            wire = wire[len(view) :]
        else:
            wire = wire[decoder.receive_framing(wire[:step]) :]
    assert decoder.complete
    assert received == whole


@pytest.mark.parametrize("trailers", [None, TRAILER])
@given(payloads=payloads, position=st.integers(min_value=0), change=st.integers(min_value=1, max_value=255))
def test_a_changed_byte_of_a_signed_body_never_changes_the_payload(
    encoder: Any,
    signed: ChunkedPayload,
    trailers: dict[str, str] | None,
    payloads: list[bytes],
    position: int,
    change: int,
) -> None:
    protection = ChunkedPayload(trailer=trailers is not None, signing=signed.signing)
    wire = bytearray(encoder(protection.signing).encode(payloads, trailers))
    wire[position % len(wire)] ^= change
    whole = b"".join(payloads)
    decoder = ChunkedDecoder(protection, len(whole), trailers or ())
    with contextlib.suppress(InvalidRequest, SignatureMismatch):
        assert decode(decoder, bytes(wire)) == whole
        assert decoder.trailers == (trailers or {})


@given(payloads=payloads, cut=st.integers(min_value=0))
def test_a_body_cut_short_is_never_complete(form: Any, payloads: list[bytes], cut: int) -> None:
    protection, encoder, trailers = form
    wire = encoder().encode(payloads, trailers)
    decoder = ChunkedDecoder(protection, None, trailers or ())
    decoder.feed(memoryview(wire[: cut % len(wire)]))
    assert not decoder.complete


@given(junk=st.binary(max_size=3000), cuts=st.lists(st.integers(min_value=0), max_size=5))
def test_junk_is_refused_in_the_words_of_the_domain(form: Any, junk: bytes, cuts: list[int]) -> None:
    protection, _, trailers = form
    decoder = ChunkedDecoder(protection, None, trailers or ())
    with contextlib.suppress(InvalidRequest, SignatureMismatch):
        decode(decoder, *split(junk, cuts))
    assert len(decoder._line) <= MAX_LINE_NBYTES + 1


def test_swapped_chunks_are_refused(signed: ChunkedPayload, encoder: Any) -> None:
    made = encoder(signed.signing)
    first, second, last = made.chunk(b"a" * 9), made.chunk(b"b" * 9), made.chunk(b"") + b"\r\n"
    assert decode(ChunkedDecoder(signed, 18), first + second + last) == b"a" * 9 + b"b" * 9
    for wire in (second + first + last, first + first + last, first + last, last):
        with pytest.raises(SignatureMismatch):
            decode(ChunkedDecoder(signed, None), wire)


# --- lengths and framing ----------------------------------------------------------------------------------------------


def test_more_than_declared_is_refused_before_it_is_received(unsigned_trailer: ChunkedPayload, encoder: Any) -> None:
    decoder = ChunkedDecoder(unsigned_trailer, 5)
    with pytest.raises(InvalidRequest, match="longer than the declared"):
        decoder.feed(memoryview(b"6\r\n"))
    assert decoder.payload_left == 0


def test_less_than_declared_is_refused(unsigned_trailer: ChunkedPayload, encoder: Any) -> None:
    with pytest.raises(IncompleteBody):
        decode(ChunkedDecoder(unsigned_trailer, 5), encoder(None).encode([b"four"]))


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\n",
        b"0x1\r\n",
        b"1\nx\r\n0\r\n\r\n",
        b"1;ext=1\r\nx\r\n0\r\n\r\n",
        b"1;chunk-signature=" + b"0" * 64 + b"\r\nx\r\n",
        b"00000000000000001\r\n",
        b"1\r\nxy\r\n0\r\n\r\n",
        b"1\r\nx0\r\n\r\n",
        b"0\r\nunannounced:1\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\nx-amz-trailer-signature:" + b"0" * 64 + b"\r\n\r\n",
        b"0\r\n\r\nmore",
        b"0\r\n\r\n\r\n\r\n",
        b"1" * 5000,
        b"0\r\n" + b"x" * 5000,
    ],
)
def test_malformed_framing_is_refused(unsigned_trailer: ChunkedPayload, wire: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(ChunkedDecoder(unsigned_trailer, None), wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
        b"0\r\nX-Amz-Checksum-CRC32: AAAAAA== \r\n\r\n",
        b"0\r\nx-amz-checksum-crc32:AAAAAA==\n\r\n",
        b"0\r\nx-amz-checksum-crc32:AAAAAA==\n\r\n\r\n",  # as MinIO's clients end an unsigned body
    ],
)
def test_trailer_lines_are_read_as_clients_write_them(unsigned_trailer: ChunkedPayload, wire: bytes) -> None:
    decoder = ChunkedDecoder(unsigned_trailer, 0, TRAILER)
    assert decode(decoder, wire) == b""
    assert decoder.trailers == TRAILER


def test_an_announced_trailer_must_come_once(unsigned_trailer: ChunkedPayload) -> None:
    line = b"x-amz-checksum-crc32:AAAAAA==\r\n"
    for wire in (b"0\r\n\r\n", b"0\r\n" + line + line + b"\r\n"):
        with pytest.raises(InvalidRequest, match="trailer"):
            decode(ChunkedDecoder(unsigned_trailer, 0, TRAILER), wire)


def test_a_signed_trailer_must_carry_its_signature(signed_trailer: ChunkedPayload, encoder: Any) -> None:
    wire = encoder(signed_trailer.signing).encode([b"x"], TRAILER)
    unsigned = re.sub(rb"x-amz-trailer-signature:[0-9a-f]{64}\r\n", b"", wire)
    decoder = ChunkedDecoder(signed_trailer, 1, TRAILER)
    decoder.feed(memoryview(unsigned))
    assert not decoder.complete
    with pytest.raises(InvalidRequest, match="without their signature"):
        decoder.feed(memoryview(b"\r\n"))
    changed = wire.replace(b"AAAAAA==", b"AAAAAQ==")
    with pytest.raises(SignatureMismatch):
        decode(ChunkedDecoder(signed_trailer, 1, TRAILER), changed)


def test_a_trailer_after_its_signature_is_not_trusted(signed_trailer: ChunkedPayload, encoder: Any) -> None:
    made = encoder(signed_trailer.signing)
    wire = made.chunk(b"") + made.trailers({}) + b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    with pytest.raises(InvalidRequest):
        decode(ChunkedDecoder(signed_trailer, 0, TRAILER), wire)


def test_tiny_chunks_are_bounded(unsigned_trailer: ChunkedPayload, encoder: Any) -> None:
    few, many = [b"x"] * MAX_SMALL_CHUNKS, [b"x"] * (MAX_SMALL_CHUNKS + 1)
    assert decode(ChunkedDecoder(unsigned_trailer, None), encoder(None).encode(few)) == b"".join(few)
    with pytest.raises(InvalidRequest, match="chunks of less than"):
        decode(ChunkedDecoder(unsigned_trailer, None), encoder(None).encode(many))


def test_spans_lie_in_the_buffer_that_was_fed(unsigned_trailer: ChunkedPayload, encoder: Any) -> None:
    wire = bytearray(encoder(None).encode([b"abc", b"def"]))
    spans = ChunkedDecoder(unsigned_trailer, None).feed(memoryview(wire))
    assert [bytes(span) for span in spans] == [b"abc", b"def"]
    assert all(span.obj is wire for span in spans)


def test_more_payload_than_expected_is_a_defect(unsigned_trailer: ChunkedPayload) -> None:
    decoder = ChunkedDecoder(unsigned_trailer, None)
    decoder.feed(memoryview(b"3\r\n"))
    with pytest.raises(ValueError, match="4 bytes"):
        decoder.receive_payload(memoryview(b"1234"))


def test_seed_signatures_chain(encoder: Any, signed: ChunkedPayload) -> None:
    other = ChunkedPayload(False, ChunkSigning(b"k" * 32, "b" * 64, Scope("20260127", "us-east-1"), "20260127T100000Z"))
    wire = encoder(signed.signing).encode([b"payload"])
    with pytest.raises(SignatureMismatch):
        decode(ChunkedDecoder(other, None), wire)
