from __future__ import annotations

import contextlib
import random
from array import array

import pytest

from kvgate.errors import MalformedFrame
from kvgate.memory import handoff
from kvgate.memory.allocator import Extent
from kvgate.memory.handoff import Grant

HASHES = [bytes([number]) * 32 for number in range(3)]
GRANTS = [
    Grant(5, 70_000, (Extent(1, 4096, 73_728),), array("Q", [11])),
    Grant(0, 0, reason=handoff.ABSENT),
    Grant(9, 3 << 20, (Extent(1, 0, 1 << 20), Extent(2, 0, 2 << 20)), array("Q", [1, 2, 3])),
]


def test_frames_of_the_engine_come_back_as_they_were_sent() -> None:
    frame = handoff.encode_get(7, "bucket", "ke/y ü", 250)
    assert handoff.head_of(frame) == (handoff.GET, 0, 1, 7)
    assert handoff.decode_get(frame, 1) == (250, "bucket", ["ke/y ü"])
    frame = handoff.encode_get_chunks(8, "bucket", b"\xab" * 32, HASHES, 0)
    keys = [f"kv/{'ab' * 32}/{chunk_hash.hex()}" for chunk_hash in HASHES]
    assert handoff.decode_get(frame, handoff.head_of(frame)[2]) == (0, "bucket", keys)
    for first in (False, True):
        frame = handoff.encode_reserve(9, "bucket", "key", 1 << 40, first=first)
        assert handoff.decode_reserve(frame) == (1 << 40, "bucket", "key")
        assert handoff.head_of(frame) == (handoff.RESERVE, handoff.FIRST if first else 0, 1, 9)
    assert handoff.decode_numbers(handoff.encode_numbers(handoff.RELEASE, 0, [1, 1 << 63]), 2) == (1, 1 << 63)
    date, proof = "20260127T100000Z", "AWS4-HMAC-SHA256 …"
    assert handoff.decode_attach(handoff.encode_attach(1, date, proof, write=True)) == (date, proof)


def test_frames_of_the_gateway_come_back_as_they_were_sent() -> None:
    assert handoff.decode_hello(handoff.encode_hello(b"b" * 16, b"n" * 32)) == (b"b" * 16, b"n" * 32)
    assert handoff.decode_attached(handoff.encode_attached(1, 30_000, 1024, "alpha")) == (30_000, 1024, "alpha")
    assert handoff.decode_segment(handoff.encode_segment(4, 1 << 26, write=False)) == (4, 1 << 26)
    for grants in (GRANTS, GRANTS[:1], GRANTS[1:2], GRANTS[2:]):
        frame = handoff.encode_grants(3, [handoff.encode_grant(grant) for grant in grants], more=False)
        assert handoff.decode_grants(frame, len(grants)) == grants
    extents = (Extent(1, 0, 8192),)
    assert handoff.decode_reserved(handoff.encode_reserved(1, 6, 5000, extents)) == (6, 5000, extents)
    assert handoff.decode_error(handoff.encode_error(1, 503, "SlowDown", "later")) == (503, "SlowDown", "later")
    assert handoff.decode_text(handoff.encode_done(1, "etag")) == "etag"


@pytest.mark.parametrize(
    ("frame", "decode"),
    [
        (handoff.encode_get(7, "bucket", "key", 250), lambda frame: handoff.decode_get(frame, 1)),
        (handoff.encode_get_chunks(8, "b", bytes(32), HASHES, 0), lambda frame: handoff.decode_get(frame, 3)),
        (handoff.encode_reserve(9, "bucket", "key", 1), handoff.decode_reserve),
        (handoff.encode_numbers(handoff.RELEASE, 0, [1, 2]), lambda frame: handoff.decode_numbers(frame, 2)),
        (handoff.encode_hello(b"b" * 16, b"n" * 32), handoff.decode_hello),
        (
            handoff.encode_grants(3, [handoff.encode_grant(grant) for grant in GRANTS], more=False),
            lambda frame: handoff.decode_grants(frame, 3),
        ),
        (handoff.encode_reserved(1, 6, 5000, (Extent(1, 0, 8192),)), handoff.decode_reserved),
    ],
)
def test_frame_that_is_cut_or_longer_is_refused(frame, decode) -> None:
    decode(frame)
    for end in range(handoff.HEAD_NBYTES, len(frame)):
        with pytest.raises(MalformedFrame):
            decode(frame[:end])
    with pytest.raises(MalformedFrame):
        decode(frame + b"x")


def test_nothing_but_a_malformed_frame_is_raised_whatever_comes() -> None:
    generator = random.Random(1)
    for _ in range(20_000):
        frame = generator.randbytes(generator.randrange(8, 120))
        for decode in (
            *(handoff.decode_attach, handoff.decode_reserve, handoff.decode_hello, handoff.decode_attached),
            *(handoff.decode_segment, handoff.decode_reserved, handoff.decode_error, handoff.decode_text),
            lambda frame: handoff.decode_get(frame, 1),
            lambda frame: handoff.decode_grants(frame, 2),
            lambda frame: handoff.decode_numbers(frame, 3),
        ):
            with contextlib.suppress(MalformedFrame):
                decode(frame)
