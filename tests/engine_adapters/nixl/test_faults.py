"""Workers that die, freeze or go silent in the middle of a transfer, over UCX tcp.

A decode worker that is frozen takes nothing more out of its sockets, so that a write of more than those hold stays
under way for as long as a test needs.
"""

from __future__ import annotations

import random
import time
from typing import Any

from tests.engine_adapters.nixl.conftest import Start
from tests.engine_adapters.nixl.workers import PeerProcess

LARGE: dict[str, Any] = {"blocks": 16, "block_nbytes": 512 << 10}
PATIENT: dict[str, Any] = {"heartbeat": 1.0, "heartbeat_timeout": 120.0, "confirm_within": 120.0, "deadline": 120.0}
ALL = [[0, list(range(16))], [0, list(range(16))]]
SOURCE = [list(range(16)), list(range(16))]
LATE_S = 1.0
"""How long late bytes are waited for."""


def begin(prefill: PeerProcess, decode: PeerProcess, request: str = "r", deadline_s: float | None = None) -> None:
    """A write that is under way, into a decode worker that is frozen."""
    prefill.call("fill", seed=1, blocks=SOURCE)
    decode.call("want", request=request, address=prefill.address, runs=ALL, deadline_s=deadline_s)
    prefill.until_stats(lambda stats: stats["sessions"] >= 1)
    time.sleep(0.3)  # the want is on its way
    decode.stop()
    prefill.call("offer", request=request, runs=ALL)
    prefill.until_stats(lambda stats: stats["writes"] == 1)
    time.sleep(0.3)  # sockets fill


def no_byte_lands_any_more(decode: PeerProcess) -> None:
    before = decode.call("digest")
    time.sleep(LATE_S)
    assert decode.call("digest") == before


def test_decode_killed_in_mid_transfer_gives_the_prefill_its_blocks_back(start: Start) -> None:
    prefill, decode = start(**LARGE, config=PATIENT), start(**LARGE, config=PATIENT)
    begin(prefill, decode)
    decode.kill()
    assert prefill.event_of("r")[0] == "Unsent"
    prefill.until_stats(lambda stats: stats["held_blocks"] == stats["writes"] == stats["sessions"] == 0)
    other = start(**LARGE, config=PATIENT)
    prefill.call("offer", request="next", runs=ALL)
    other.call("want", request="next", address=prefill.address, runs=ALL)
    assert other.event_of("next") == ("Arrived", "")
    assert other.call("matches", seed=1, blocks=SOURCE, firsts=[0, 0])


def test_prefill_killed_in_mid_transfer_fails_the_transfer_when_nothing_can_land_any_more(start: Start) -> None:
    prefill, decode = start(**LARGE, config=PATIENT), start(**LARGE, config=PATIENT)
    begin(prefill, decode)
    prefill.kill()
    decode.go_on()
    assert decode.event_of("r")[0] == "Failed"
    no_byte_lands_any_more(decode)
    stats = decode.call("stats")
    assert (stats["agents_closed"], stats["held_blocks"], stats["sessions"]) == (1, 0, 0)
    other = start(**LARGE, config=PATIENT)
    other.call("fill", seed=2, blocks=SOURCE)
    other.call("offer", request="next", runs=ALL)
    decode.call("want", request="next", address=other.address, runs=ALL)
    assert decode.event_of("next") == ("Arrived", "")
    assert decode.call("matches", seed=2, blocks=SOURCE, firsts=[0, 0])


def test_blocks_of_a_stalled_prefill_are_held_past_the_deadline_until_our_agent_is_closed(start: Start) -> None:
    config = PATIENT | {"confirm_within": 3.0}
    prefill, decode = start(**LARGE, config=PATIENT), start(**LARGE, config=config)
    begin(prefill, decode, deadline_s=3.0)
    prefill.stop()
    decode.go_on()
    decode.until_stats(lambda stats: stats["held_blocks"] == 32)
    assert decode.events == []
    assert decode.event_of("r") == ("Failed", "it did not arrive by its deadline")
    decode.until_stats(lambda stats: stats["held_blocks"] == 0 and stats["agents_closed"] == 1)
    before = decode.call("digest")
    prefill.go_on()
    assert prefill.event_of("r")[0] == "Unsent"
    time.sleep(LATE_S)
    assert decode.call("digest") == before
    prefill.call("offer", request="next", runs=ALL)
    decode.call("want", request="next", address=prefill.address, runs=ALL)
    assert decode.event_of("next") == ("Arrived", "")
    assert decode.call("matches", seed=1, blocks=SOURCE, firsts=[0, 0])


def test_prefill_that_confirms_ends_the_quarantine_and_no_agent_is_closed(start: Start) -> None:
    prefill, decode = start(**LARGE, config=PATIENT), start(**LARGE, config=PATIENT)
    begin(prefill, decode, deadline_s=3.0)
    prefill.stop()
    decode.go_on()
    decode.until_stats(lambda stats: stats["held_blocks"] == 32)
    prefill.go_on()
    assert decode.event_of("r") == ("Failed", "it did not arrive by its deadline")
    no_byte_lands_any_more(decode)
    assert decode.call("stats")["agents_closed"] == 0
    assert decode.call("stats")["held_blocks"] == 0


def test_frozen_decode_is_found_dead_and_the_prefill_closes_its_agent(start: Start) -> None:
    prefill = start(**LARGE, config=PATIENT | {"heartbeat_timeout": 3.0, "confirm_within": 1.0})
    decode = start(**LARGE, config=PATIENT)
    begin(prefill, decode)
    assert prefill.event_of("r") == ("Unsent", "the peer was silent for 3 s")
    prefill.until_stats(lambda stats: stats["agents_closed"] == 1 and stats["held_blocks"] == 0)
    decode.go_on()
    assert decode.event_of("r")[0] == "Failed"
    no_byte_lands_any_more(decode)


def test_silent_prefill_is_found_dead_though_it_never_began(start: Start) -> None:
    prefill, decode = start(config=PATIENT), start(config=PATIENT | {"heartbeat_timeout": 3.0})
    decode.call("want", request="r", address=prefill.address, runs=[[0, [1]], [0, []]])
    decode.until_stats(lambda stats: stats["sessions"] == 1)
    prefill.stop()
    assert decode.event_of("r") == ("Failed", "the peer was silent for 3 s")
    prefill.go_on()
    prefill.call("offer", request="again", runs=[[0, [1]], [0, []]])
    decode.call("want", request="again", address=prefill.address, runs=[[0, [1]], [0, []]])
    assert decode.event_of("again") == ("Arrived", "")


def test_healthy_transfers_of_an_agent_that_retires_still_arrive(start: Start) -> None:
    config = PATIENT | {"confirm_within": 0.5, "drain_within": 60.0}
    dying, healthy, decode = start(config=PATIENT), start(config=PATIENT), start(config=config)
    decode.call("want", request="of-healthy", address=healthy.address, runs=[[0, [1, 2]], [0, []]])
    decode.call("want", request="of-dying", address=dying.address, runs=[[0, [3]], [0, []]])
    decode.until_stats(lambda stats: stats["sessions"] == 2)
    dying.kill()
    decode.until_stats(lambda stats: stats["held_blocks"] == 1)
    decode.call("want", request="new", address=healthy.address, runs=[[0, [7]], [0, []]])
    healthy.call("fill", seed=3, blocks=[[1, 2], []])
    healthy.call("offer", request="new", runs=[[0, [1]], [0, []]])
    assert decode.event_of("new") == ("Arrived", "")
    assert decode.call("stats")["held_blocks"] == 1
    healthy.call("offer", request="of-healthy", runs=[[0, [1, 2]], [0, []]])
    assert decode.event_of("of-healthy") == ("Arrived", "")
    assert decode.event_of("of-dying")[0] == "Failed"
    assert decode.call("matches", seed=3, blocks=[[1, 2], []], firsts=[0, 0])
    assert decode.call("stats")["agents_closed"] == 1


def test_bytes_that_changed_on_the_way_are_never_reported_as_arrived(start: Start) -> None:
    """The prefill's blocks change while they are being copied, as a defect would have it: the digests do not match."""
    prefill, decode = start(**LARGE, config=PATIENT), start(**LARGE, config=PATIENT)
    begin(prefill, decode)
    prefill.call("fill", seed=9, blocks=SOURCE)
    decode.go_on()
    kind, reason = decode.event_of("r")
    assert kind == "Failed"
    assert "do not match their digests" in reason
    assert decode.call("stats")["corrupt"] == 1


def test_two_hundred_transfers_with_kills_leak_no_block_and_never_report_a_wrong_byte(start: Start) -> None:
    picks = random.Random(7)
    options = {"blocks": 128, "block_nbytes": 16 << 10, "config": {"deadline": 15.0, "heartbeat_timeout": 60.0}}
    decode, prefill, spare = start(**options), start(**options), start(**options)
    arrived = number = 0
    for turn in range(10):
        free = [list(range(128)), list(range(128))]
        for ids in free:
            picks.shuffle(ids)
        sources = [list(range(128)), list(range(128))]
        wanted = {}
        prefill.call("fill", seed=turn, blocks=sources)
        for _ in range(20):
            number += 1
            request, first, count = f"r{number}", picks.randint(0, 120), picks.randint(1, 6)
            count = min(count, 128 - first)
            target = [[free[group].pop() for _ in range(count)] for group in range(2)]
            runs = [[first, list(range(first, first + count))]] * 2
            wanted[request] = (target, first)
            withdrawn = picks.random() < 0.05  # perhaps before it is wanted, so that nobody ever says so
            for do in picks.sample(["offer", "want"], 2):
                if do == "offer":
                    prefill.call("offer", request=request, runs=runs)
                else:
                    arguments = {"address": prefill.address, "runs": [[first, ids] for ids in target]}
                    decode.call("want", request=request, deadline_s=1.0 if withdrawn else None, **arguments)
            if picks.random() < 0.1:
                decode.call("cancel", request=request)
            if withdrawn:
                prefill.call("withdraw", request=request)
        if turn % 3 == 2:
            prefill.kill()
            prefill, spare = spare, start(**options)
        for request, (target, first) in wanted.items():
            kind, _ = decode.event_of(request)
            if kind == "Arrived":
                arrived += 1
                assert decode.call("matches", seed=turn, blocks=target, firsts=[first, first]), request
        stats = decode.call("stats")
        assert (stats["held_blocks"], stats["held_transfers"]) == (0, 0)
    stats = decode.call("stats")
    assert (stats["arrived"], stats["arrived"] + stats["failed"], stats["corrupt"]) == (arrived, 200, 0)
    assert arrived > 100
    prefill.until_stats(lambda stats: stats["writes"] == stats["held_blocks"] == 0)
