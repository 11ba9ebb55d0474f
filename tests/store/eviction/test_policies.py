"""What every policy has in common, and the order of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvgate import plugins
from kvgate.store.eviction.arc import ARC
from kvgate.store.eviction.base import EvictionPolicy
from kvgate.store.eviction.duel import Duel
from kvgate.store.eviction.fifo import FIFO
from kvgate.store.eviction.lfu import LFU
from kvgate.store.eviction.lru import LRU
from kvgate.store.eviction.mru import MRU
from kvgate.store.eviction.s3_fifo import S3FIFO
from kvgate.store.eviction.second_touch import SecondTouch
from kvgate.store.eviction.w_tinylfu import WTinyLFU
from tests.contracts.eviction_policy import EvictionPolicyContract

POLICIES: dict[str, Callable[..., EvictionPolicy[Any]]] = {
    "arc": ARC,
    "duel": Duel,
    "fifo": FIFO,
    "lfu": LFU,
    "lru": LRU,
    "mru": MRU,
    "s3-fifo": S3FIFO,
    "second-touch": SecondTouch,
    "w-tinylfu": WTinyLFU,
}


class TestFIFO(EvictionPolicyContract):
    policy = FIFO


class TestLRU(EvictionPolicyContract):
    policy = LRU


class TestMRU(EvictionPolicyContract):
    policy = MRU


class TestLFU(EvictionPolicyContract):
    policy = LFU


class TestS3FIFO(EvictionPolicyContract):
    policy = S3FIFO


class TestARC(EvictionPolicyContract):
    policy = ARC


class TestWTinyLFU(EvictionPolicyContract):
    policy = WTinyLFU


class TestSecondTouch(EvictionPolicyContract):
    policy = SecondTouch


class TestDuel(EvictionPolicyContract):
    policy = Duel


def test_every_policy_is_an_entry_point() -> None:
    assert {name: plugins.load("kvgate.eviction", name) for name in plugins.names("kvgate.eviction")} == POLICIES


def filled(policy: EvictionPolicy[int], keys: range) -> EvictionPolicy[int]:
    for key in keys:
        policy.note(key)
        policy.insert(key, 1)
    return policy


def read(policy: EvictionPolicy[int], key: int, capacity: int) -> bool:
    """One request of a cache behind the policy; whether it was a hit."""
    if key in policy:
        policy.touch(key)
        return True
    policy.note(key)
    full = len(policy) >= capacity
    if policy.admit(key, full=full):
        if full:
            policy.evict(next(iter(policy.victims())))
        policy.insert(key, 1)
    return False


@pytest.mark.parametrize("policy", [LRU, SecondTouch, Duel])
def test_of_a_chain_that_was_used_the_tail_goes_first(policy: Callable[[], EvictionPolicy[int]]) -> None:
    order = filled(policy(), range(6))
    assert order.touch_all([1, 2, 3, 99]) == [99]
    assert list(order.victims()) == [0, 4, 5, 3, 2, 1]


@pytest.mark.parametrize("policy", [LRU, SecondTouch, Duel])
def test_a_chain_that_was_written_head_first_is_arranged_to_go_tail_first(
    policy: Callable[[], EvictionPolicy[int]],
) -> None:
    order = filled(policy(), range(6))
    order.arrange([2, 3, 77, 4, 5])
    assert list(order.victims()) == [0, 1, 5, 4, 3, 2]


def test_fifo_does_not_care_for_uses() -> None:
    order = filled(FIFO(), range(4))
    order.touch(0)
    order.touch_all([1, 2])
    assert list(order.victims()) == [0, 1, 2, 3]


def test_mru_lets_the_newest_go_first_and_of_a_chain_the_tail() -> None:
    order = filled(MRU(), range(4))
    order.touch_all([0, 1])
    assert list(order.victims()) == [1, 0, 3, 2]


def test_lfu_lets_the_least_used_go_first_and_of_those_the_oldest() -> None:
    order = filled(LFU(), range(4))
    for key in (0, 0, 1, 3, 1):
        order.touch(key)
    assert list(order.victims()) == [2, 3, 0, 1]


@pytest.mark.parametrize("policy", [S3FIFO, ARC, WTinyLFU, SecondTouch, Duel])
def test_a_scan_does_not_push_out_what_is_used_again_and_again(policy: Callable[[], EvictionPolicy[int]]) -> None:
    cache, popular = policy(), range(80)
    for _ in range(5):
        for key in popular:
            read(cache, key, 100)
    for key in range(1000, 11_000):
        read(cache, key, 100)
        if key % 200 == 0:
            for each in popular:
                read(cache, each, 100)
    assert sum(key in cache for key in popular) >= 70


def test_s3_fifo_brings_what_comes_back_from_the_ghosts_to_the_main_queue() -> None:
    order = filled(S3FIFO(), range(20))
    assert next(order.victims()) == 0
    order.evict(0)
    order.note(0)
    order.insert(0, 1)
    assert list(order.victims())[-1] == 0


def test_arc_gives_the_queue_more_room_whose_ghosts_come_back() -> None:
    order = filled(ARC(), range(10))
    for key in range(5):
        order.touch(key)
    for _ in range(3):  # the oldest of those used once gives way and comes back at once
        victim = next(order.victims())
        order.evict(victim)
        order.insert(victim, 1)
    assert next(iter(order.victims())) == 0, "those used again give way now"


def test_w_tinylfu_admits_what_was_seen_more_often_than_the_victim() -> None:
    order = filled(WTinyLFU(), range(200))
    assert not order.admit(1000, full=True)
    for _ in range(3):
        order.note(1000)
    assert order.admit(1000, full=True)


def test_second_touch_admits_what_was_used_before() -> None:
    order = filled(SecondTouch(), range(100))
    order.note(1000)
    assert not order.admit(1000, full=True)
    order.note(1000)
    assert order.admit(1000, full=True)
    order.insert(1000, 1)
    order.remove(1000)
    assert not order.admit(1000, full=True), "what is deleted and comes back is new"


def test_second_touch_admits_what_it_evicted_as_soon_as_it_is_used_again() -> None:
    order = filled(SecondTouch(), range(100))
    order.evict(0)
    assert not order.admit(0, full=True)
    order.note(0)
    assert order.admit(0, full=True)


def test_second_touch_forgets_what_was_seen_long_ago() -> None:
    order = filled(SecondTouch(), range(100))
    order.note(1000)
    for key in range(2000, 2600):
        order.note(key)
    order.note(1000)
    assert not order.admit(1000, full=True)


def test_duel_follows_the_load() -> None:
    cache: Duel[int] = Duel()
    key, capacity = 1_000_000, 500
    for turn in range(60):  # a few popular keys among many that never come back: the second touch keeps the popular
        for each in range(300):
            read(cache, each, capacity)
        for _ in range(300):
            read(cache, key := key + 1, capacity)
        if turn > 40:
            assert not cache.admits_all
    for turn in range(60):  # everything comes back once, soon, and never again: the second touch is always too late
        for each in (*range(key, key + 200), *range(key, key + 200)):
            read(cache, each, capacity)
        key += 200
        if turn > 40:
            assert cache.admits_all


def test_the_shadows_of_many_keys_see_a_part_of_them() -> None:
    cache = filled(Duel(), range(40_000))
    assert isinstance(cache, Duel)
    assert cache.shadow_keys <= 3 * 8192
    cache.evict(0)
    for key in range(100_000, 120_000):
        read(cache, key, 40_000)
    assert 0 < cache.shadow_keys <= 2 * 8192
