from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.nixl import wire
from engine_adapters.nixl.errors import MalformedMessage
from engine_adapters.nixl.layout import BlockRun
from engine_adapters.nixl.messages import (
    MAX_REQUEST_ID,
    MAX_TRANSFER_BLOCKS,
    Cancel,
    Landed,
    Message,
    Ping,
    Retiring,
    Stopped,
    Want,
    decode,
    encode,
)

numbers = st.integers(0, (1 << 63) - 1)
runs = st.builds(BlockRun, st.integers(0, 1000), st.lists(st.integers(0, 1 << 20), max_size=5).map(tuple))
some_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Want, numbers, st.text(min_size=1, max_size=20), st.integers(0, 10**6), st.lists(runs, max_size=3).map(tuple)
    ),
    st.builds(Cancel, numbers),
    st.builds(Landed, numbers, st.lists(st.integers(0, (1 << 64) - 1), max_size=5).map(tuple)),
    st.builds(Stopped, numbers, st.text(max_size=50), st.booleans()),
    st.just(Ping()),
    st.just(Retiring()),
)


@given(some_message)
def test_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


def test_largest_messages_fit_a_frame() -> None:
    ids = tuple(range((1 << 24) - MAX_TRANSFER_BLOCKS, 1 << 24))
    want = Want(1 << 62, "r" * MAX_REQUEST_ID, 1000, (BlockRun(0, ids),))
    landed = Landed(1 << 62, ((1 << 64) - 1,) * MAX_TRANSFER_BLOCKS)
    assert max(len(encode(want)), len(encode(landed))) + wire.SEAL_NBYTES <= wire.MAX_FRAME_NBYTES
    assert decode(encode(want)) == want


@pytest.mark.parametrize(
    "value",
    [
        [],
        [7],
        {"1": 2},
        "text",
        [1, 0, "", 5, []],
        [1, 0, "r" * (MAX_REQUEST_ID + 1), 5, []],
        [1, -1, "r", 5, []],
        [1, True, "r", 5, []],
        [1, 0, "r", -5, []],
        [1, 0, "r", 5, [[-1, []]]],
        [1, 0, "r", 5, [[0, [1.5]]]],
        [1, 0, "r", 5, [[0, [1 << 24]]]],
        [1, 0, "r", 5, [[0, []]] * 65],
        [3, 0, ["x"]],
        [3, 0, [1 << 63, -1]],
        [4, 0, "reason", 1],
    ],
)
def test_message_outside_its_bounds_is_refused(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode(wire.pack(value))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    try:
        message = decode(body)
    except MalformedMessage:
        return
    assert decode(encode(message)) == message
