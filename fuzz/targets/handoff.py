"""Frames of the socket that hands memory on: from an engine to the gateway, and back."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import MalformedFrame
from kvgate.memory import handoff
from kvgate.memory.allocator import Extent
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.memory.handoff import Grant

_GRANT = Grant(9, BLOCK_NBYTES + 5, (Extent(1, 0, 4096), Extent(2, 4096, BLOCK_NBYTES)), array("Q", [1, 2]))
_SEEDS = (
    handoff.encode_get(7, "bucket", "key", 250),
    handoff.encode_get_chunks(8, "bucket", bytes(32), [b"\1" * 32, b"\2" * 32], 0),
    handoff.encode_numbers(handoff.RELEASE, 0, [1, 2, 3]),
    handoff.encode_reserve(9, "bucket", "key", 1 << 40),
    handoff.encode_attach(1, "20260127T100000Z", "AWS4-HMAC-SHA256 Credential=x", write=True),
    handoff.encode_hello(bytes(16), bytes(32)),
    handoff.encode_attached(1, 30_000, 1024, "alpha"),
    handoff.encode_segment(4, 1 << 26, write=False),
    handoff.encode_grants(3, [handoff.encode_grant(_GRANT)], more=False),
    handoff.encode_reserved(1, 6, 5000, (Extent(1, 0, 8192),)),
    handoff.encode_error(1, 503, "SlowDown", "later"),
)


def check(data: bytes) -> None:
    """Every decoder takes a frame or refuses it, and what it takes is what the frame says, within its length."""
    try:
        _, _, items, request = handoff.head_of(data)
    except MalformedFrame:
        return
    _decoded(handoff.decode_attach, data)
    _decoded(handoff.decode_hello, data)
    _decoded(handoff.decode_attached, data)
    _decoded(handoff.decode_segment, data)
    _decoded(handoff.decode_error, data)
    _decoded(handoff.decode_text, data)
    if asked := _decoded(lambda frame: handoff.decode_get(frame, items), data):
        must(len(asked.keys) == items, "another number of keys than was asked for")
        must(sum(map(len, asked.keys)) <= 6 * len(data), "keys that are longer than the frame")
    if reserve := _decoded(handoff.decode_reserve, data):
        again = handoff.encode_reserve(request, reserve[1], reserve[2], reserve[0])
        must(again[handoff.HEAD_NBYTES :] == data[handoff.HEAD_NBYTES :], "a RESERVE that is not what the frame says")
    if numbers := _decoded(lambda frame: handoff.decode_numbers(frame, items), data):
        must(len(numbers) == items, "another number of numbers")
    if grants := _decoded(lambda frame: handoff.decode_grants(frame, items), data):
        again = b"".join(handoff.encode_grant(grant) for grant in grants)
        must(len(again) == len(data) - handoff.HEAD_NBYTES, "grants that are not what the frame says")
    if reserved := _decoded(handoff.decode_reserved, data):
        must(24 * len(reserved[2]) <= len(data), "more extents than there is room for")


def check_drawn(data: bytes) -> None:
    """Frames of the right form, with lengths and counts that are not quite right."""
    draw = Draw(data)
    frame = bytearray(draw.pick(_SEEDS))
    for _ in range(1 + draw.below(4)):
        frame[draw.below(len(frame))] = draw.below(256)
    check(bytes(frame[: draw.below(len(frame) + 1)]) if draw.one_in(4) else bytes(frame) + draw.some(3))


def _decoded(decode: Callable[[bytes], Any], frame: bytes) -> Any:
    try:
        return decode(frame)
    except MalformedFrame:
        return None


TARGETS = (
    Target("handoff", 20_000, check, seeds=_SEEDS, words=(b"\xff\xff", b"\0\0\0\0", b"bucket")),
    Target("handoff-drawn", 20_000, check_drawn),
)
