"""What is pinned, what has ended, and what no call or rule can get past."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvgate.errors import ConfigError, TooManyMarks
from kvgate.store.index import Bucket, Entry, Index
from kvgate.store.retention import (
    MAX_TTL_S,
    NEVER_MS,
    TTL,
    Change,
    Mark,
    Pin,
    Retention,
    RetentionConfig,
    Rule,
    parse_ttl,
)
from kvgate.tiers.base import Record

NOW_MS = 1_700_000_000_000
PLACE = ("t", "b")


class World:
    """An index with retention, and a clock that stands still."""

    def __init__(self, *, capacity: float = 1000, quotas: dict[str, int | None] | None = None, **options: Any) -> None:
        self.now_ms = NOW_MS
        self.retention = Retention(RetentionConfig(**options), now_ms=lambda: self.now_ms, capacity=lambda: capacity)
        self.retention.set_quotas(quotas or {"t": None})
        self.index = Index(self.retention)
        for tenant in ("t", "u"):
            self.index.add_bucket(tenant, Bucket("b", 0))

    def put(self, key: str, nbytes: int = 1, tenant: str = "t", bucket: str = "b", **attributes: str) -> Entry:
        names = {name.replace("_", "-"): value for name, value in attributes.items()}
        entry = Entry(Record(tenant, bucket, key, nbytes, 0, self.now_ms, names), ("copy",))
        self.index.put(entry)
        return entry

    def put_for(self, key: str, ttl: str, **more: Any) -> Entry:
        return self.put(key, **{TTL: ttl}, **more)

    def mark(self, entry: Entry, **change: Any) -> bool:
        return self.retention.mark(entry, Change(**change))[1]

    def rule(self, prefix: str, **change: Any) -> None:
        self.retention.put_rule(PLACE, self.retention.rule(PLACE, prefix, Change(**change)))

    def keys(self) -> list[str]:
        return [record.key for record in self.index.list("t", "b", "", "", "", 1000).records]


# --- ends -------------------------------------------------------------------------------------------------------------


def test_what_a_put_gave_an_hour_is_gone_after_it_and_not_a_moment_before() -> None:
    world = World()
    entry = world.put_for("k", "1h")
    world.put("stays")
    world.now_ms += 3_600_000 - 1
    assert world.index.get("t", "b", "k") is entry
    assert world.retention.take_due(10) == []
    world.now_ms += 1
    assert world.index.get("t", "b", "k") is None
    assert world.keys() == ["stays"]
    assert world.retention.take_due(10) == [entry]


def test_what_is_written_anew_begins_to_age_again() -> None:
    world = World()
    world.put_for("k", "10")
    world.now_ms += 9000
    new = world.put_for("k", "10")
    world.now_ms += 9000
    assert world.index.get("t", "b", "k") is new
    assert world.retention.take_due(10) == []
    newest = world.put("k")
    world.now_ms += 1_000_000
    assert world.index.get("t", "b", "k") is newest
    assert world.retention.take_due(10) == []


def test_the_most_specific_says_when_an_object_ends() -> None:
    world = World()
    world.rule("", ttl_ms=1_000_000)
    world.rule("a/", ttl_ms=5_000_000)
    plain, deeper, own = world.put("b/1"), world.put("a/1"), world.put_for("a/2", "10")
    ends = world.retention.ends_ms
    assert [ends(entry) for entry in (plain, deeper, own)] == [NOW_MS + 1_000_000, NOW_MS + 5_000_000, NOW_MS + 10_000]
    world.mark(own, ttl_ms=20_000)
    assert ends(own) == NOW_MS + 20_000
    world.mark(own, ttl_ms=0)
    assert ends(own) is None
    world.now_ms += 10_000_000
    assert world.keys() == ["a/2"]


def test_an_end_by_a_call_is_of_the_version_that_was_there() -> None:
    world = World()
    entry = world.put("k")
    world.mark(entry, ttl_ms=1000, pin=Pin.SOFT)
    world.now_ms += 500
    new = world.put("k")
    world.now_ms += 10_000
    assert world.index.get("t", "b", "k") is new
    assert new.pin is Pin.SOFT
    assert world.retention.outdated == [(PLACE, "k")]
    assert world.retention.marked(PLACE, "k") == Mark(Pin.SOFT)


def test_a_rule_counts_for_what_was_there_before_it() -> None:
    world = World()
    world.put("a/1")
    world.now_ms += 60_000
    world.put("a/2")
    world.rule("a/", ttl_ms=30_000)
    assert world.keys() == ["a/2"]
    world.rule("a/", ttl_ms=0)
    assert world.keys() == ["a/1", "a/2"]
    assert list(world.retention.rules("t")) == []


def test_leases_and_hard_pins_put_the_removal_off() -> None:
    world = World()
    leased, pinned, softly = (world.put_for(key, "1") for key in ("leased", "pinned", "softly"))
    leased.leases = 1
    world.mark(pinned, pin=Pin.HARD)
    world.mark(softly, pin=Pin.SOFT)
    world.now_ms += 5000
    assert world.keys() == ["pinned"]  # a hard pin keeps it; what is leased is found by nobody else
    assert world.retention.take_due(10) == [softly]
    leased.leases = 0
    assert world.retention.take_due(10) == []
    world.now_ms += 1000
    assert world.retention.take_due(10) == [leased]
    world.mark(pinned, pin=Pin.NONE)
    assert world.index.get("t", "b", "pinned") is None
    world.now_ms += 60_000
    assert world.retention.take_due(10) == [pinned]


def test_manifests_and_parts_of_uploads_have_no_end() -> None:
    world = World()
    world.index.add_bucket("t", Bucket("_uploads", 0))
    manifest = world.put_for("kv/" + "0" * 64 + "/manifest.json", "1")
    part = world.put_for("1/00001", "1", bucket="_uploads")
    world.rule("", ttl_ms=1)
    world.now_ms += 10**9
    assert world.index.get("t", "b", manifest.record.key) is manifest
    assert world.index.get("t", "_uploads", "1/00001") is part
    assert world.retention.take_due(10) == []


def test_a_listing_goes_on_behind_thousands_that_have_ended() -> None:
    world = World()
    for number in range(12_000):
        world.put(f"a/{number:05}")
    world.rule("a/", ttl_ms=1)
    world.now_ms += 5
    world.put("b")
    first = world.index.list("t", "b", "", "/", "", 10)
    assert (first.records, first.prefixes, first.truncated) == ([], [], True)
    second = world.index.list("t", "b", "", "/", first.next_after, 10)
    assert [record.key for record in second.records] == ["b"]
    assert not second.truncated


def test_a_run_of_chunks_ends_before_one_that_has_ended() -> None:
    world = World()
    hashes = [bytes([number]) * 32 for number in range(4)]
    space = "0" * 64
    for number, each in enumerate(hashes):
        world.put_for(f"kv/{space}/{each.hex()}", "1" if number == 2 else "1h")
    world.now_ms += 2000
    assert len(world.index.leading_chunks("t", "b", space, b"".join(hashes))) == 2


@pytest.mark.parametrize(
    ("text", "ttl_ms"),
    [("1", 1000), ("0.5", 500), ("500ms", 500), ("90m", 5_400_000), ("7d", 604_800_000), ("1e3", None)],
)
def test_lifetimes_are_seconds_or_have_a_unit(text: str, ttl_ms: int | None) -> None:
    if ttl_ms is None:
        with pytest.raises(ValueError, match="duration"):
            parse_ttl(text)
    else:
        assert parse_ttl(text) == ttl_ms


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", str(MAX_TTL_S * 2), "1 fortnight", "nan"])
def test_other_lifetimes_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_ttl(text)
    world = World()
    assert world.retention.ends_ms(world.put_for("k", text)) is None  # as an object of another gateway's might say


# --- pins -------------------------------------------------------------------------------------------------------------


def test_a_pin_of_a_key_holds_for_what_comes() -> None:
    world = World()
    world.mark(world.put("k"), pin=Pin.HARD)
    new = world.put("k", 7)
    assert new.pinned
    assert world.retention.usage("t") == (1, 7, 1)
    world.index.remove(new)
    assert world.retention.usage("t") == (0, 0, 1)
    assert world.put("k", 3).pinned
    world.index.remove(world.index.get("t", "b", "k"))  # type: ignore[arg-type]
    assert world.retention.forget(PLACE, "k")
    assert not world.put("k").pin


def test_the_strongest_pin_counts() -> None:
    world = World()
    world.rule("a/", pin=Pin.SOFT)
    world.rule("a/b/", pin=Pin.HARD)
    soft, hard = world.put("a/1"), world.put("a/b/1")
    assert (soft.pin, hard.pin) == (Pin.SOFT, Pin.HARD)
    world.mark(hard, pin=Pin.SOFT)
    assert hard.pin is Pin.HARD
    world.mark(soft, pin=Pin.HARD)
    assert soft.pin is Pin.HARD
    world.mark(soft, pin=Pin.NONE)
    assert soft.pin is Pin.SOFT


def test_pins_end_at_their_deadlines() -> None:
    world = World()
    entry = world.put("k")
    world.mark(entry, pin=Pin.HARD, pin_until_ms=NOW_MS + 1000)
    world.rule("r/", pin=Pin.SOFT, pin_until_ms=NOW_MS + 2000)
    assert world.retention.pin_ends_ms(entry) == NOW_MS + 1000
    assert world.retention.ended_pins() == []
    world.now_ms += 1000
    assert world.retention.ended_pins() == [(PLACE, "k", False)]
    world.retention.refresh(entry)
    assert not entry.pin
    world.mark(entry, pin=Pin.HARD, pin_until_ms=NOW_MS + 1500)
    world.mark(entry, pin=Pin.HARD)
    world.now_ms += 1000
    assert world.retention.ended_pins() == [(PLACE, "r/", True)]
    assert world.retention.pin_ends_ms(entry) == math.inf


def test_hard_pins_take_their_share_and_no_more() -> None:
    world = World(capacity=100, pinned_share=0.5)
    first, second = world.put("1", 40), world.put("2", 20)
    assert world.mark(first, pin=Pin.HARD)
    assert not world.mark(second, pin=Pin.HARD)
    assert not second.pin
    assert world.mark(second, pin=Pin.SOFT)
    world.rule("p/", pin=Pin.HARD)
    assert world.put("p/1", 10).pin is Pin.HARD
    assert world.put("p/2", 1).pin is Pin.SOFT  # beyond its share
    assert world.put("1", 60).pin is Pin.SOFT  # a new version that is larger
    assert world.retention.pinned_nbytes == 10


def test_a_quota_bounds_pins_as_well() -> None:
    world = World(capacity=1000, pinned_share=0.5, quotas={"t": 100})
    assert world.retention.limit_nbytes("t") == 50
    assert not world.mark(world.put("1", 51), pin=Pin.HARD)
    assert world.mark(world.put("2", 50), pin=Pin.HARD)


def test_one_of_several_tenants_leaves_as_much_as_it_gets() -> None:
    world = World(capacity=200, pinned_share=0.5, quotas={"t": None, "u": None})
    assert not world.mark(world.put("1", 51), pin=Pin.HARD)
    assert world.mark(world.put("2", 50), pin=Pin.HARD)
    assert world.retention.limit_nbytes("u") == 25
    assert world.retention.limit_nbytes("t") == 50


def test_there_are_so_many_marks_and_rules_and_no_more() -> None:
    world = World(max_marks=1, max_rules=1)
    entry = world.put("1")
    world.mark(entry, pin=Pin.SOFT)
    world.mark(entry, ttl_ms=1000)
    with pytest.raises(TooManyMarks, match="max_marks"):
        world.mark(world.put("2"), pin=Pin.SOFT)
    world.mark(world.put("2"), pin=Pin.NONE)
    world.rule("a", ttl_ms=1)
    world.rule("a", pin=Pin.SOFT)
    with pytest.raises(TooManyMarks, match="max_rules"):
        world.rule("b", ttl_ms=1)


def test_deadlines_that_were_replaced_are_not_kept_for_ever() -> None:
    world = World()
    entry = world.put("k")
    for number in range(10_000):
        world.mark(entry, pin=Pin.HARD, pin_until_ms=NOW_MS + 1000 + number)
    assert len(world.retention._deadlines) < 5000
    world.now_ms += 100_000
    assert world.retention.ended_pins() == [(PLACE, "k", False)]


@pytest.mark.parametrize(
    "options", [{"pinned_share": 1.1}, {"pinned_share": -0.1}, {"max_marks": -1}, {"max_rules": 10**5}]
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RetentionConfig(**options)


# --- whatever is asked ------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "ab", "abc", "b", "kv/" + "0" * 64 + "/manifest.json"])
PREFIXES = st.sampled_from(["", "a", "ab", "b", "kv/"])
TTLS = st.none() | st.sampled_from([0, 1, 1500, 4000, 70_000])
PINS = st.none() | st.sampled_from(list(Pin))


class RetentionStates(RuleBasedStateMachine):
    """Any calls in any order leave pins, ends and numbers as a look at every entry would have them."""

    @initialize(share=st.sampled_from([0.0, 0.3, 1.0]))
    def begin(self, share: float) -> None:
        self.world = World(capacity=100, pinned_share=share)
        self.wanted: dict[str, tuple[Pin, int | None]] = {}

    def current(self) -> list[Entry]:
        return list(self.world.index.objects("t", "b").values())

    @rule(key=KEYS, nbytes=st.integers(0, 40), ttl=st.none() | st.sampled_from(["1", "3s", "bad"]))
    def put(self, key: str, nbytes: int, ttl: str | None) -> None:
        self.world.put(key, nbytes, **({} if ttl is None else {TTL: ttl}))

    @rule(key=KEYS, forget=st.booleans())
    def remove(self, key: str, *, forget: bool) -> None:
        entry = self.world.index.objects("t", "b").get(key)
        if entry is not None:
            self.world.index.remove(entry)
            if forget:
                self.world.retention.forget(PLACE, key)

    @rule(key=KEYS, pin=PINS, until=st.none() | st.integers(1, 5000), ttl=TTLS)
    def mark(self, key: str, pin: Pin | None, until: int | None, ttl: int | None) -> None:
        entry = self.world.index.get("t", "b", key)
        if entry is not None:
            until_ms = None if until is None else self.world.now_ms + until
            self.world.mark(entry, pin=pin, pin_until_ms=until_ms, ttl_ms=ttl)

    @rule(prefix=PREFIXES, pin=PINS, ttl=TTLS)
    def set_rule(self, prefix: str, pin: Pin | None, ttl: int | None) -> None:
        self.world.rule(prefix, pin=pin, ttl_ms=ttl)
        self.refresh_all()

    @rule(ms=st.sampled_from([1, 700, 3000, 61_000]))
    def pass_time(self, ms: int) -> None:
        self.world.now_ms += ms
        self.world.retention.ended_pins()
        self.refresh_all()

    @rule(entry_of=KEYS, leases=st.integers(0, 1))
    def lease(self, entry_of: str, leases: int) -> None:
        entry = self.world.index.objects("t", "b").get(entry_of)
        if entry is not None:
            entry.leases = leases

    @rule()
    def remove_due(self) -> None:
        for entry in self.world.retention.take_due(100):
            assert entry.current
            assert not entry.leases
            assert not entry.pinned
            assert self.world.retention.is_over(entry)
            self.world.index.remove(entry)
            self.world.retention.forget(PLACE, entry.record.key)

    def refresh_all(self) -> None:
        for entry in self.current():
            self.world.retention.refresh(entry)

    @invariant()
    def the_sums_are_those_of_the_entries(self) -> None:
        retention = self.world.retention
        hard = [entry for entry in self.current() if entry.pin is Pin.HARD and "manifest" not in entry.record.key]
        nbytes = sum(entry.record.nbytes for entry in hard)
        assert retention.usage("t")[:2] == (len(hard), nbytes)
        assert nbytes <= retention.limit_nbytes("t")
        assert retention.usage("t")[2] == len(retention.marks("t", "b"))

    @invariant()
    def pins_are_at_most_what_was_asked(self) -> None:
        for entry in self.current():
            if "manifest" not in entry.record.key:
                assert entry.pin.strength <= self.world.retention.wanted(entry.record).strength

    @invariant()
    def the_index_shows_what_has_not_ended(self) -> None:
        shown = [
            key for key, entry in self.world.index.objects("t", "b").items() if not self.world.retention.is_over(entry)
        ]
        assert self.world.keys() == shown
        assert all(
            (self.world.index.get("t", "b", entry.record.key) is entry) == (entry.record.key in shown)
            for entry in self.current()
        )

    @invariant()
    def what_ends_by_itself_is_waited_for(self) -> None:
        retention = self.world.retention
        timed = {entry for entry in self.current() if retention._own_end_ms(entry.record) not in (None, NEVER_MS)}
        waiting = [entry for entries in retention._due.values() for entry in entries]
        assert len(waiting) == len(set(waiting))
        assert set(waiting) == timed
        assert retention._put_off.keys() <= timed
        known = retention._buckets.get(PLACE)
        assert (known.timed if known else 0) == len(timed)


TestRetentionStates = RetentionStates.TestCase
TestRetentionStates.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@settings(deadline=None)
@given(st.lists(st.tuples(PREFIXES, st.sampled_from(list(Pin)), st.sampled_from([0, 5, 900])), max_size=8), KEYS)
def test_the_longest_prefix_with_a_lifetime_decides(rules: list[tuple[str, Pin, int]], key: str) -> None:
    world = World()
    for prefix, pin, ttl_ms in rules:
        world.rule(prefix, pin=pin, ttl_ms=ttl_ms)
    last = {prefix: Rule(prefix, pin, None, ttl_ms or None) for prefix, pin, ttl_ms in rules}
    fitting = [each for each in last.values() if key.startswith(each.prefix) and each.ttl_ms]
    entry = world.put(key)
    expected = max(fitting, key=lambda each: len(each.prefix)).ttl_ms if fitting and "manifest" not in key else None
    assert world.retention.ends_ms(entry) == (None if expected is None else NOW_MS + expected)
