"""What is learnt from the order in which clients name keys."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvgate.store import runs as runs_module
from kvgate.store.runs import Runs

ONE = [f"one-{number}" for number in range(40)]
OTHER = [*ONE[:5], *(f"other-{number}" for number in range(5, 40))]
"""Two sequences that share a prefix of five chunks."""


class Stream:
    """Names keys of one series, after a pause and then at an even pace."""

    def __init__(self, limit: int = 1000) -> None:
        self.runs = Runs(limit)
        self.now = 0.0

    def name(self, *keys: str, series: str = "s", pause_s: float = 0.0, every_s: float = 0.001) -> None:
        self.now += pause_s
        for key in keys:
            self.now += every_s
            self.runs.observe(series, key, self.now)

    def ahead(self, key: str, count: int = 4, series: str = "s") -> list[str]:
        return self.runs.ahead(series, key, count)


def test_what_was_named_twice_in_order_is_expected_in_order() -> None:
    stream = Stream()
    stream.name(*ONE)
    assert stream.ahead(ONE[0]) == [ONE[1]], "one sighting is a guess, good for one key"
    stream.name(*ONE)
    assert stream.ahead(ONE[0]) == ONE[1:5]
    assert stream.ahead(ONE[37], 8) == ONE[38:]
    assert stream.ahead("never named") == []


def test_ranges_of_one_object_are_one_step() -> None:
    stream = Stream()
    for _ in range(2):
        for key in ONE[:4]:
            stream.name(key, key, key)
    assert stream.ahead(ONE[0]) == ONE[1:4]


def test_a_lookup_that_ends_in_a_miss_and_its_puts_are_one_run() -> None:
    stream = Stream()
    stream.name(*ONE[:6])  # HEADs; the last is a miss
    stream.name(*ONE[5:10], every_s=1.5)  # what has been computed, one by one
    stream.name(*ONE[:10], pause_s=5)
    assert stream.ahead(ONE[3], 9) == ONE[4:10]


def test_a_shared_prefix_leads_to_every_branch_the_latest_first() -> None:
    stream = Stream()
    for _ in range(2):
        stream.name(*ONE[:8])
        stream.name(*OTHER[:8])
    assert stream.ahead(ONE[3]) == [ONE[4], OTHER[5], ONE[5], OTHER[6]]
    stream.name(*ONE[:8])
    assert stream.ahead(ONE[3]) == [ONE[4], ONE[5], OTHER[5], ONE[6]]


def test_sequences_that_take_turns_are_told_apart_once_each_was_seen_alone() -> None:
    stream = Stream()
    mixed = [key for pair in zip(ONE[5:15], OTHER[5:15], strict=True) for key in pair]
    stream.name(*mixed)
    for _ in range(2):
        stream.name(*ONE[5:15])
        stream.name(*OTHER[5:15])
    assert stream.ahead(ONE[5], 5) == ONE[6:11]
    assert stream.ahead(OTHER[5], 5) == OTHER[6:11]


def test_a_run_that_is_well_known_outlasts_another_order() -> None:
    stream = Stream()
    for _ in range(3):
        stream.name(*ONE[:10])
        stream.name(*OTHER[5:10], pause_s=3)
    stream.name(*[key for pair in zip(ONE[5:10], OTHER[5:10], strict=True) for key in pair])
    assert stream.ahead(ONE[5], 5) == [OTHER[5], *ONE[6:10]], "OTHER[5] is a guess"
    assert stream.ahead(OTHER[5], 4) == OTHER[6:10]


def test_an_order_that_does_not_come_again_is_given_up() -> None:
    stream = Stream()
    for _ in range(2):
        stream.name(ONE[0], ONE[1])
    for other in OTHER[10:14]:
        stream.name(other, ONE[1], pause_s=3)
    assert stream.ahead(ONE[0]) == []


def test_keys_looked_up_at_once_are_sorted_out_by_the_first_that_come_in_order() -> None:
    stream = Stream()
    scrambled = [ONE[number] for number in (2, 0, 1, 5, 3, 4, 7, 6)]
    stream.name(*scrambled)
    stream.name(*ONE[:8])
    stream.name(*ONE[:8])
    assert stream.ahead(ONE[1], 5) == ONE[2:7]


def test_what_comes_after_a_pause_begins_something_new() -> None:
    stream = Stream()
    stream.name(*ONE[:3])
    stream.name(*OTHER[10:13], pause_s=3)
    assert stream.ahead(ONE[2]) == []


def test_a_run_that_is_looked_up_and_then_read_is_no_loop() -> None:
    stream = Stream()
    for _ in range(3):
        stream.name(*ONE[:4], pause_s=3)
        stream.name(*ONE[:4])
    assert stream.ahead(ONE[3]) == [ONE[0]], "a guess, and nothing behind it"


def test_series_share_nothing() -> None:
    stream = Stream()
    for _ in range(2):
        stream.name(*ONE[:5], series="rank 0")
    stream.name(ONE[0], series="rank 1")
    assert stream.ahead(ONE[0], series="rank 0") == ONE[1:5]
    assert stream.ahead(ONE[0], series="rank 1") == []


def test_forgets_what_was_named_least_recently() -> None:
    stream = Stream(limit=10)
    for _ in range(2):
        stream.name(*ONE[:8])
    stream.name("x", "y", "z")
    assert len(stream.runs) == 10
    assert stream.ahead(ONE[0]) == []
    assert stream.ahead(ONE[1]) == ONE[2:6]


names = st.sampled_from([f"k{number}" for number in range(12)])
series = st.sampled_from(["a", "b", "c"])


class RunsStates(RuleBasedStateMachine):
    """Any order of keys, against the invariants of the module."""

    LIMIT = 20

    def __init__(self) -> None:
        super().__init__()
        self.runs = Runs(self.LIMIT)
        self.now = 0.0
        self.order: list[tuple[str, str]] = []  # what was named, the latest last

    @rule(series=series, name=names, pause_s=st.sampled_from([0.0, 0.1, 3.0]))
    def observe(self, series: str, name: str, pause_s: float) -> None:
        self.now += pause_s
        self.runs.observe(series, name, self.now)
        if (series, name) in self.order:
            self.order.remove((series, name))
        self.order.append((series, name))

    @rule(series=series, keys=st.permutations([f"k{number}" for number in range(12)]), count=st.integers(2, 12))
    def observe_run_twice(self, series: str, keys: list[str], count: int) -> None:
        for _ in range(2):
            for key in keys[:count]:
                self.observe(series, key, 0.0)

    @rule(series=series, name=names, count=st.integers(0, 9))
    def ahead(self, series: str, name: str, count: int) -> None:
        answer = self.runs.ahead(series, name, count)
        assert len(answer) == len(set(answer)) <= count
        assert name not in answer
        assert {(series, each) for each in answer} <= set(self.order[-self.LIMIT :])

    @invariant()
    def remembers_the_latest(self) -> None:
        assert list(self.runs._keys) == self.order[-self.LIMIT :]
        assert len(self.runs) <= self.LIMIT

    @invariant()
    def links_are_mutual_and_within_one_series(self) -> None:
        for place, key in self.runs._keys.items():
            assert place == (key.series, key.name)
            assert len(key.following) <= runs_module._FANOUT
            assert len(set(key.following)) == len(key.following)
            assert all(following.previous is key for following in key.following)
            assert (key.seen == 0) == (key.previous is None)
            assert key.seen <= runs_module._CERTAIN
            if key.previous is not None:
                assert key in key.previous.following
                assert key.previous.series == key.series
                assert self.runs._keys.get((key.series, key.previous.name)) is key.previous


TestRunsStates = RunsStates.TestCase
TestRunsStates.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
