from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvgate.auth.limits import TierShareConfig
from kvgate.auth.tenants import Tenant
from kvgate.config import MiB, Size
from kvgate.errors import ConfigError
from kvgate.store.eviction.lru import LRU
from kvgate.store.index import Entry
from kvgate.store.residents import Residents
from kvgate.store.shares import Shares
from kvgate.tiers.base import Record

TIER = "disk"


def tenant(name: str, limit: int | None = None, floor: int = 0, weight: float = 1.0) -> Tenant:
    share = TierShareConfig(Size(limit * MiB) if limit is not None else None, Size(floor * MiB), weight)
    return Tenant(name, tiers={TIER: share})


def shares_of(*tenants: Tenant, capacity: int | None = None) -> Shares:
    shares = Shares()
    shares.load(TIER, capacity, tenants)
    return shares


def gives(shares: Shares, used: dict[str, int], asker: str | None, nbytes: int, each: int = MiB) -> list[str]:
    """Who gives objects of `each` bytes until `nbytes` have been given; in MiB but for `each`."""
    left = {name: mib * MiB for name, mib in used.items()}
    givers = shares.givers(left, asker, nbytes * MiB)
    order: list[str] = []
    while len(order) * each < nbytes * MiB and (name := givers.next()) is not None:
        if left[name] and givers.give(name, each):
            left[name] -= each
            order.append(name)
    return order


def test_who_has_the_most_for_its_weight_gives_first() -> None:
    shares = shares_of(tenant("heavy", weight=3), tenant("light"))
    assert gives(shares, {"heavy": 6, "light": 4}, None, 2) == ["light", "light"]
    assert gives(shares, {"heavy": 9, "light": 2}, None, 2) == ["heavy", "heavy"]
    assert gives(shares, {"heavy": 0, "nobody": 3}, None, 1) == ["nobody"], "who is not configured weighs 1"


def test_who_asks_is_counted_with_what_it_asks_for() -> None:
    shares = shares_of(tenant("one"), tenant("two"))
    assert gives(shares, {"one": 5, "two": 5}, "one", 1) == ["one"], "at its share it replaces its own"
    assert gives(shares, {"one": 4, "two": 6}, "one", 1) == ["two"]


def test_a_floor_is_never_taken_for_another() -> None:
    shares = shares_of(tenant("safe", floor=4), tenant("flood", weight=1000))
    assert gives(shares, {"safe": 4, "flood": 6}, "flood", 2) == ["flood", "flood"]
    assert gives(shares, {"safe": 6, "flood": 4}, "flood", 4) == ["safe", "safe", "flood", "flood"]
    assert gives(shares, {"safe": 4, "flood": 0}, "flood", 1) == [], "nobody gives: the newcomer gets nothing"


def test_who_is_within_its_floor_gives_last() -> None:
    shares = shares_of(tenant("safe", floor=4, weight=1e-3), tenant("flood", weight=1000))
    assert gives(shares, {"safe": 3, "flood": 7}, "safe", 1) == ["flood"]
    assert gives(shares, {"safe": 3, "flood": 0}, "safe", 1) == ["safe"]


def test_a_large_object_gives_way_to_a_floor_and_to_nothing_else() -> None:
    shares = shares_of(tenant("large", floor=5), tenant("small", floor=5), tenant("other"))
    assert gives(shares, {"large": 10, "small": 0}, "small", 1, each=10 * MiB) == ["large"]
    assert gives(shares, {"large": 10, "other": 0}, "other", 1, each=10 * MiB) == []


def test_a_limit_bounds_what_comes() -> None:
    shares = shares_of(tenant("bounded", limit=8))
    assert shares.excess("bounded", 6 * MiB, 2 * MiB) == 0
    assert shares.excess("bounded", 6 * MiB, 3 * MiB) == MiB
    assert shares.excess("unbounded", 1 << 60, 1 << 60) == 0


def test_floors_must_fit_into_the_tier() -> None:
    tenants = [tenant("one", floor=6), tenant("two", floor=5), tenant("three")]
    with pytest.raises(ConfigError, match=r"tenants\.one\.tiers\.disk\.floor, tenants\.two\.tiers\.disk\.floor"):
        shares_of(*tenants, capacity=10 * MiB)
    shares_of(*tenants, capacity=11 * MiB)
    shares_of(*tenants, capacity=None)


def test_fair_share_is_what_is_left_when_everyone_wants_all() -> None:
    shares = shares_of(tenant("a", floor=50), tenant("b", weight=3), tenant("c", limit=10), capacity=100 * MiB)
    fair = {name: round(shares.fair_nbytes(name, 100 * MiB) / MiB, 3) for name in "abc"}
    assert fair == {"a": 50, "b": 40, "c": 10}


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0.1, 10)), min_size=1, max_size=5),
    st.integers(200, 400),
)
@settings(max_examples=25, deadline=None)
def test_a_full_tier_comes_to_the_fair_shares(parts: list[tuple[int, float]], capacity: int) -> None:
    """Everyone writes objects of 1 MiB for ever: in the end each has its fair share, to within two objects."""
    tenants = [tenant(f"t{number}", floor=floor, weight=weight) for number, (floor, weight) in enumerate(parts)]
    shares = shares_of(*tenants, capacity=capacity * MiB)
    used = {each.name: 0 for each in tenants}
    for turn in range(6 * capacity):
        asker = tenants[turn % len(tenants)].name
        if sum(used.values()) == capacity:
            givers = shares.givers({name: mib * MiB for name, mib in used.items()}, asker, MiB)
            while (giver := givers.next()) is not None and not (used[giver] and givers.give(giver, MiB)):
                pass
            assert giver is not None
            used[giver] -= 1
        used[asker] += 1
    for each in tenants:
        assert abs(used[each.name] - shares.fair_nbytes(each.name, capacity * MiB) / MiB) <= 2


CAPACITY = 100 * MiB
NAMES = ["a", "b", "c", "d"]
sizes = st.integers(0, 12).map(lambda size: size * MiB)


class TierStates(RuleBasedStateMachine):
    """One tier whose tenants write, use and delete, as `Room` makes room for them."""

    @initialize(
        floors=st.lists(st.integers(0, 25), min_size=3, max_size=3),
        spare=st.lists(st.none() | st.integers(4, 60), min_size=3, max_size=3),
        weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    )
    def begin(self, floors: list[int], spare: list[int | None], weights: list[float]) -> None:
        parts = zip(NAMES, floors, spare, weights, strict=False)  # nothing is said of the last tenant
        tenants = [
            tenant(name, None if more is None else floor + more, floor, weight) for name, floor, more, weight in parts
        ]
        self.residents = Residents(0, LRU)
        self.residents.shares.load(TIER, CAPACITY, tenants)
        self.entries: list[Entry] = []
        self.count = 0

    def used(self, name: str) -> int:
        return sum(entry.record.nbytes for entry in self.entries if entry.record.tenant == name)

    def total(self) -> int:
        return sum(entry.record.nbytes for entry in self.entries)

    def evict(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.residents.remove(entry)
            self.entries.remove(entry)

    def may_go(self, entry: Entry) -> bool:
        return not entry.pinned

    @rule(name=st.sampled_from(NAMES), nbytes=sizes)
    def write(self, name: str, nbytes: int) -> None:
        shares, residents = self.residents.shares, self.residents
        before = {each: self.used(each) for each in NAMES}
        pinned = any(entry.pinned for entry in self.entries)
        gone: list[Entry] = []
        excess = shares.excess(name, before[name], nbytes)
        for entry in residents.victims_of(name, self.may_go):
            if excess <= 0:
                break
            gone.append(entry)
            excess -= entry.record.nbytes
        if excess > 0:
            limit = shares.of(name).limit_nbytes
            assert pinned or (limit is not None and nbytes > limit)
            return
        self.evict(gone)
        shortage = self.total() + nbytes - CAPACITY
        within_floor = self.used(name) + nbytes <= shares.of(name).floor_nbytes
        gone = []
        if shortage > 0:
            for entry in residents.victims(self.may_go, name, nbytes):
                gone.append(entry)
                shortage -= entry.record.nbytes
                if shortage <= 0:
                    break
        if shortage > 0:
            others = sum(shares.of(each).floor_nbytes for each in NAMES if each != name)
            assert pinned or nbytes + others > CAPACITY - 12 * MiB * len(NAMES), "only floors are in the way"
            assert pinned or not within_floor, "who is within its floor gets its room"
            return
        assert not gone or shortage + gone[-1].record.nbytes > 0 or not gone[-1].record.nbytes, (
            "no more than was needed"
        )
        self.evict(gone)
        level = (self.used(name) + nbytes) / shares.of(name).weight
        has_more = any(entry.record.tenant == name and not entry.pinned for entry in self.entries)
        for each in NAMES:
            share, lost = shares.of(each), before[each] - self.used(each)
            if each == name or not lost:
                continue
            last = [entry for entry in gone if entry.record.tenant == each][-1]
            had = self.used(each) + last.record.nbytes
            assert had > share.floor_nbytes, "who has no more than its floor gave"
            assert within_floor or self.used(each) >= share.floor_nbytes, "a floor was taken"
            assert within_floor or not has_more or had / share.weight >= level, "it was not its turn"
        if within_floor and not pinned:
            assert not any(entry.record.tenant == name for entry in gone), "others are over their floors"
        self.count += 1
        added = Entry(Record(name, "b", str(self.count), nbytes, 0, 0), ("copy",))
        self.entries.append(added)
        residents.insert(added)

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        if self.entries:
            self.residents.touch(data.draw(st.sampled_from(self.entries)))

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        if self.entries:
            entry = data.draw(st.sampled_from(self.entries))
            entry.pinned = not entry.pinned

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.entries:
            self.evict([data.draw(st.sampled_from(self.entries))])

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "residents"):
            return
        assert self.total() <= CAPACITY
        for name in NAMES:
            limit = self.residents.shares.of(name).limit_nbytes
            assert limit is None or self.used(name) <= limit
            own = [entry for entry in self.entries if entry.record.tenant == name]
            assert self.residents.usage(name) == (len(own), self.used(name))


TestTierStates = TierStates.TestCase
TestTierStates.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
