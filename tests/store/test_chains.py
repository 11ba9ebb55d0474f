"""A chain that is written after it was asked for goes tail first, however it is read then."""

from __future__ import annotations

import pytest

from kvgate.store.chains import Chains
from kvgate.store.eviction.lru import LRU
from kvgate.store.index import Bucket, Entry, Index
from kvgate.store.residents import Residents
from kvgate.tiers.base import Record

SPACE = "5" * 64
HASHES = [bytes([number]) * 32 for number in range(1, 7)]


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.index = Index()
        self.index.add_bucket("t", Bucket("b", 0))
        self.residents = Residents(0, LRU)
        self.chains = Chains(self.index, self.residents.arrange, lambda: self.now)

    def write(self, *hashes: bytes) -> None:
        for each in hashes:
            entry = Entry(Record("t", "b", f"kv/{SPACE}/{each.hex()}", 1, 0, 0), ("copy",))
            self.index.put(entry)
            self.residents.insert(entry)

    def order(self) -> list[int]:
        return [int(entry.record.key[-2:], 16) for entry in self.residents.victims(lambda _: True)]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.chains.arrange_written()


@pytest.fixture
def world() -> World:
    return World()


def test_once_the_last_link_is_there_the_tail_goes_first(world: World) -> None:
    world.write(HASHES[0])
    world.chains.expect("t", "b", SPACE, b"".join(HASHES[:4]))
    world.write(*HASHES[1:3], HASHES[5])
    world.pass_time(1)
    assert world.order() == [1, 2, 3, 6]
    world.write(HASHES[3])
    world.pass_time(1)
    world.pass_time(3)
    assert world.order() == [6, 4, 3, 2, 1]
    assert len(world.chains) == 0


def test_a_chain_that_is_never_finished_is_arranged_as_far_as_it_goes(world: World) -> None:
    world.chains.expect("t", "b", SPACE, b"".join(HASHES))
    world.write(*HASHES[:3])
    for _ in range(40):
        world.pass_time(1)
    assert world.order() == [3, 2, 1]
    assert len(world.chains) == 0


def test_what_is_waited_for_is_bounded(world: World) -> None:
    for number in range(3000):
        world.chains.expect("t", "b", SPACE, number.to_bytes(32, "big"))
    assert len(world.chains) == 1024
    for number in range(40):
        world.chains.expect("t", "b", SPACE, bytes([number]) * (1 << 20))
    assert len(world.chains) <= 16
    for _ in range(40):
        world.pass_time(1)
    assert len(world.chains) == 0


def test_a_bucket_that_is_gone_meanwhile_ends_the_wait(world: World) -> None:
    world.chains.expect("t", "b", SPACE, b"".join(HASHES))
    world.index.remove_bucket("t", "b")
    world.pass_time(31)
    world.pass_time(3)
    assert len(world.chains) == 0
