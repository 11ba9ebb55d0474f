"""A gateway whose remote tier fails in every way: what its clients see, and how soon all is well again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.remotes import FAULTS, REMOTES
from tests.faults.scenario import LOOKUP_S, SPACE, TIMEOUT_S, Pair, gateway_pair

FAULT_S = 1.2
SLACK_S = 0.1
RECOVERY_S = 5.0
AWAY = {"cut at once", "RST at once", "503", "blackhole", "refuse", "delay 5 s"}
"""Under these, nothing at all comes from the remote tier."""

UNNOTICED = {("redis", "corrupt requests")}
"""Redis stores what arrives: whoever reads notices, and the object is a miss."""

MOST = [name for name in FAULTS if name not in {"delay 200 ms", "cut at once", "RST in the body", "truncate the head"}]
FEW = ["cut in the body", "corrupt answers", "503", "blackhole", "refuse"]
"""All of them are in the table of docs/reliability.md, and each tier alone is tried under all of them."""


@pytest.fixture(scope="module")
def with_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("gateways")
    with REMOTES["redis"](folder) as remote, gateway_pair(remote, folder) as pair:
        yield pair


@pytest.fixture(scope="module")
def with_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("gateways")
    with REMOTES["s3"](folder) as remote, gateway_pair(remote, folder) as pair:
        yield pair


@pytest.mark.parametrize("name", MOST)
def test_clients_of_a_gateway_whose_redis_fails(with_redis: Pair, name: str) -> None:
    hold_to_its_promises(with_redis, name)


@pytest.mark.parametrize("name", FEW)
def test_clients_of_a_gateway_whose_s3_store_fails(with_s3: Pair, name: str) -> None:
    hold_to_its_promises(with_s3, name)


def hold_to_its_promises(pair: Pair, name: str) -> None:
    outcome = pair.live_through(name, FAULT_S)

    assert outcome.wrong == []
    assert outcome.local.results.keys() == {"200"}
    assert outcome.puts.results.keys() == {"200"}
    assert outcome.remote.results.keys() <= {"200", "404", "503", "cut"}
    assert outcome.matches.results.keys() <= {"hit", "miss"}
    assert outcome.ready
    if name in AWAY:
        assert outcome.away
        assert outcome.remote.results.keys() <= {"404", "503"}

    # What is read from memory waits for the same event loop, on the same machine, and for nothing else.
    machine_s = SLACK_S + 2 * outcome.local.longest_s
    assert outcome.matches.longest_s <= LOOKUP_S + machine_s
    read_s = 0.0 if name in AWAY else TIMEOUT_S + SPACE.layout.nbytes / (32 << 20)
    assert outcome.remote.longest_s <= LOOKUP_S + read_s + machine_s
    assert outcome.recovery_s <= RECOVERY_S
    if (pair.remote.kind, name) not in UNNOTICED:
        assert outcome.not_written == 0
