from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.nixl import wire
from engine_adapters.nixl.errors import MalformedMessage


@given(st.lists(st.binary(max_size=50), max_size=6), st.integers(1, 9))
def test_frames_come_out_whole_however_they_arrive(bodies: list[bytes], piece: int) -> None:
    inbox, data = wire.Inbox(64), b"".join(map(wire.frame, bodies))
    out = [body for at in range(0, len(data), piece) for body in inbox.feed(data[at : at + piece])]
    assert out == bodies


def test_frame_over_the_limit_is_refused_from_its_length_alone() -> None:
    with pytest.raises(MalformedMessage, match="65 bytes"):
        list(wire.Inbox(64).feed(wire.frame(b"x" * 65)[:4]))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x93\x01", msgpack.packb(msgpack.ExtType(1, b"x")), b"\x91" * 5000, b"\xdd\xff\xff\xff\xff"],
)
def test_what_is_not_plain_msgpack_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        wire.unpack(body)


def sealed(*bodies: bytes) -> list[bytes]:
    sealer = wire.Sealer(b"k" * 32)
    return [sealer.seal(body) for body in bodies]


def test_sealed_messages_open_in_order() -> None:
    opener = wire.Opener(b"k" * 32)
    assert [opener.open(message) for message in sealed(b"one", b"two", b"")] == [b"one", b"two", b""]


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2)])
def test_message_left_out_or_repeated_does_not_open(order: tuple[int, ...]) -> None:
    opener, messages = wire.Opener(b"k" * 32), sealed(b"one", b"one", b"one")
    *before, last = order
    for number in before:
        opener.open(messages[number])
    with pytest.raises(MalformedMessage):
        opener.open(messages[last])


@given(st.integers(0, 34), st.integers(0, 7))
def test_message_with_a_flipped_bit_does_not_open(at: int, bit: int) -> None:
    (message,) = sealed(b"one")
    changed = bytearray(message)
    changed[at] ^= 1 << bit
    with pytest.raises(MalformedMessage):
        wire.Opener(b"k" * 32).open(bytes(changed))


def test_message_of_another_key_does_not_open() -> None:
    with pytest.raises(MalformedMessage):
        wire.Opener(b"x" * 32).open(sealed(b"one")[0])
