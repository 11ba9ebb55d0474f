"""Two workers in processes of their own, over UCX tcp."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.engine_adapters.nixl.conftest import Start
from tests.engine_adapters.nixl.workers import PeerProcess
from tests.engine_adapters.tcp_proxy import Proxy

Pair = tuple[PeerProcess, PeerProcess]
BLOCKS = 64


def test_random_block_tables_of_several_groups_arrive_as_they_were(pair: Pair) -> None:
    prefill, decode = pair
    picks = random.Random(1)
    for seed in range(12):
        request = f"table-{seed}"
        counts = [picks.randint(1, 20), picks.randint(0, 9)]
        source = [picks.sample(range(BLOCKS), count) for count in counts]
        target = [picks.sample(range(BLOCKS), count) for count in counts]
        prefill.call("fill", seed=seed, blocks=source)
        prefill.call("offer", request=request, runs=[[0, ids] for ids in source])
        decode.call("want", request=request, address=prefill.address, runs=[[0, ids] for ids in target])
        assert decode.event_of(request) == ("Arrived", "")
        assert prefill.event_of(request) == ("Sent", "")
        assert decode.call("matches", seed=seed, blocks=target, firsts=[0, 0])


def test_part_that_is_not_there_already_is_all_that_is_written(pair: Pair) -> None:
    prefill, decode = pair
    prefill.call("fill", seed=50, blocks=[[1, 2, 3, 4], [9, 8]])
    decode.call("fill", seed=51, blocks=[list(range(BLOCKS)), list(range(BLOCKS))])
    prefill.call("offer", request="part", runs=[[0, [1, 2, 3, 4]], [2, [9, 8]]])
    decode.call("want", request="part", address=prefill.address, runs=[[2, [40, 30]], [3, [20]]])
    assert decode.event_of("part") == ("Arrived", "")
    assert decode.call("matches", seed=50, blocks=[[40, 30], [20]], firsts=[2, 1])
    assert decode.call("matches", seed=51, blocks=[list(range(30)), list(range(20))], firsts=[0, 0])
    assert decode.call("matches", seed=51, blocks=[list(range(41, BLOCKS)), list(range(21, BLOCKS))], firsts=[41, 21])


def test_request_may_be_wanted_before_it_is_computed(pair: Pair) -> None:
    prefill, decode = pair
    decode.call("want", request="early", address=prefill.address, runs=[[0, [5, 6]], [0, []]])
    prefill.call("fill", seed=60, blocks=[[8, 7], []])
    prefill.call("offer", request="early", runs=[[0, [8, 7]], [0, []]])
    assert decode.event_of("early") == ("Arrived", "")
    assert decode.call("matches", seed=60, blocks=[[5, 6], []], firsts=[0, 0])


def test_blocks_that_the_offer_lacks_are_told_and_the_offer_stays(pair: Pair) -> None:
    prefill, decode = pair
    prefill.call("offer", request="short", runs=[[0, [1, 2]], [0, []]])
    decode.call("want", request="short", address=prefill.address, runs=[[1, [5, 6]], [0, []]])
    kind, reason = decode.event_of("short")
    assert kind == "Failed"
    assert "groups 0 are not here" in reason
    prefill.call("withdraw", request="short")
    assert prefill.event_of("short") == ("Unsent", "it was withdrawn")


def test_nothing_is_offered_in_time_and_nothing_needs_to_be_closed(pair: Pair) -> None:
    prefill, decode = pair
    decode.call("want", request="late", address=prefill.address, runs=[[0, [5]], [0, []]], deadline_s=0.3)
    kind, reason = decode.event_of("late")
    assert kind == "Failed"
    assert reason in (
        "it did not arrive by its deadline",
        "the prefill worker stopped: the prefill was not ready in time",
    )
    assert decode.call("stats")["agents_closed"] == 0


def test_offer_that_nobody_wants_ends_at_its_deadline(pair: Pair) -> None:
    prefill, _ = pair
    prefill.call("offer", request="unwanted", runs=[[0, [1]], [0, []]], deadline_s=0.2)
    assert prefill.event_of("unwanted") == ("Unsent", "it was not copied by its deadline")


def test_decode_that_cancels_gets_its_blocks_back_by_the_prefills_word(pair: Pair) -> None:
    prefill, decode = pair
    decode.call("want", request="cancelled", address=prefill.address, runs=[[0, [5]], [0, []]])
    decode.call("cancel", request="cancelled")
    assert decode.event_of("cancelled") == ("Failed", "it was cancelled")
    assert decode.call("stats")["agents_closed"] == 0


def test_prefill_that_withdraws_tells_who_waits(pair: Pair) -> None:
    prefill, decode = pair
    decode.call("want", request="withdrawn", address=prefill.address, runs=[[0, [5]], [0, []]])
    while not any(event[1] == "withdrawn" for event in decode.events):  # the want may still be on its way
        prefill.call("withdraw", request="withdrawn")
    assert decode.event_of("withdrawn") == ("Failed", "the prefill worker stopped: the request was withdrawn")


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([[0, [BLOCKS]], [0, []]], "group 0 has the blocks 0 to 63"),
        ([[0, [1, 1]], [0, []]], "comes twice"),
        ([[0, [1]]], "blocks of 1 groups, there are 2"),
        ([[0, []], [0, []]], "no block is wanted"),
    ],
)
def test_blocks_that_cannot_be_wanted_are_an_error_at_once(pair: Pair, runs: list[object], words: str) -> None:
    prefill, decode = pair
    with pytest.raises(RuntimeError, match=words):
        decode.call("want", request="wrong", address=prefill.address, runs=runs)


def test_name_in_place_of_an_address_and_a_request_twice_are_errors_at_once(pair: Pair) -> None:
    prefill, decode = pair
    with pytest.raises(RuntimeError, match="ValueError"):
        decode.call("want", request="name", address=["localhost", 1], runs=[[0, [1]], [0, []]])
    prefill.call("offer", request="twice", runs=[[0, [1]], [0, []]])
    with pytest.raises(RuntimeError, match="under way already"):
        prefill.call("offer", request="twice", runs=[[0, [1]], [0, []]])
    prefill.call("withdraw", request="twice")
    prefill.event_of("twice")


def test_nobody_at_the_address_fails_the_transfer_and_the_next_ones_for_a_moment(pair: Pair) -> None:
    _, decode = pair
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for request in ("away-1", "away-2"):
        decode.call("want", request=request, address=["127.0.0.1", port], runs=[[0, [1]], [0, []]])
        assert decode.event_of(request)[0] == "Failed"
    assert "not reached a moment ago" in decode.event_of("away-2")[1]


def test_tampered_message_ends_the_connection_and_no_byte_is_written(pair: Pair) -> None:
    """A forger between the two: after the handshake, every piece of the decode worker gets a flipped bit."""
    prefill, decode = pair
    pieces: list[int] = []

    def ask(piece: bytes) -> bytes:
        pieces.append(len(piece))
        return piece[:-1] + bytes([piece[-1] ^ 1]) if len(pieces) > 2 else piece

    prefill.call("fill", seed=70, blocks=[[1], []])
    before = decode.call("digest")
    prefill.call("offer", request="tampered", runs=[[0, [1]], [0, []]])
    with Proxy(prefill.address[1], ask=ask) as proxy:
        decode.call("want", request="tampered", address=["127.0.0.1", proxy.port], runs=[[0, [33]], [0, []]])
        assert decode.event_of("tampered")[0] == "Failed"
    assert len(pieces) >= 3
    assert decode.call("digest") == before
    prefill.call("withdraw", request="tampered")
    assert prefill.event_of("tampered") == ("Unsent", "it was withdrawn")


def test_replayed_handshake_is_refused(pair: Pair) -> None:
    prefill, decode = pair
    recorded: list[bytes] = []

    def ask(piece: bytes) -> bytes:
        recorded.append(piece)
        return piece

    prefill.call("offer", request="recorded", runs=[[0, [1]], [0, []]])
    with Proxy(prefill.address[1], ask=ask) as proxy:
        decode.call("want", request="recorded", address=["127.0.0.1", proxy.port], runs=[[0, [33]], [0, []]])
        assert decode.event_of("recorded") == ("Arrived", "")
    refused = prefill.call("stats")["refused_peers"]
    with socket.create_connection(prefill.address) as mallory:
        mallory.sendall(recorded[0])
        assert next(frames(mallory))
        mallory.sendall(b"".join(recorded[1:]))
        answers = list(frames(mallory))
    assert answers[0].startswith(b"\x92\xc2")  # [false, reason]
    assert b"does not have the tenant's key" in answers[0]
    prefill.until_stats(lambda stats: stats["refused_peers"] == refused + 1)


def frames(sock: socket.socket) -> Iterator[bytes]:
    """The frames until the peer closes."""
    sock.settimeout(30)
    with sock.makefile("rb") as stream:
        while len(head := stream.read(4)) == 4:
            yield stream.read(*struct.unpack(">I", head))


def test_endless_first_frame_is_refused_from_its_length(pair: Pair) -> None:
    prefill, _ = pair
    with socket.create_connection(prefill.address) as mallory:
        mallory.settimeout(30)
        mallory.sendall(struct.pack(">I", 1 << 30))
        assert mallory.recv(1) == b""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"secret": "another secret"}, "does not have the tenant's key"),
        ({"space": "ee" * 32}, "the space of group 0 differs"),
        ({"layers_turned": True}, "the order of layers of group 0 differs"),
        ({"ranks": 2}, "the number of tensor-parallel ranks differs: 1 here, 2 there"),
    ],
)
def test_worker_of_another_tenant_or_another_memory_is_refused(
    pair: Pair, start: Start, options: dict[str, object], words: str
) -> None:
    prefill, _ = pair
    decode = start(**options)
    request = f"refused-{words}"
    prefill.call("offer", request=request, runs=[[0, [1]], [0, []]])
    before = decode.call("digest")
    decode.call("want", request=request, address=prefill.address, runs=[[0, [1]], [0, []]])
    kind, reason = decode.event_of(request)
    assert kind == "Failed"
    assert words in reason
    assert decode.call("digest") == before
    assert decode.call("stats")["agents_closed"] == 0
    prefill.call("withdraw", request=request)
    assert prefill.event_of(request)[0] == "Unsent"


def test_closed_worker_ends_what_it_had_and_takes_nothing_more(pair: Pair, start: Start) -> None:
    prefill, _ = pair
    decode = start()
    decode.call("want", request="closing", address=prefill.address, runs=[[0, [1]], [0, []]])
    decode.call("close")
    assert decode.event_of("closing") == ("Failed", "the worker was closed")
    with pytest.raises(RuntimeError, match="Overloaded"):
        decode.call("want", request="after", address=prefill.address, runs=[[0, [1]], [0, []]])
    decode.call("close")
