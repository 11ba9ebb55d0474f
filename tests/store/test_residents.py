from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.limits import TierShareConfig
from kvgate.auth.tenants import Tenant
from kvgate.config import Size
from kvgate.store.cold import AGE_CLASS_BITS, Cold
from kvgate.store.eviction.lru import LRU
from kvgate.store.eviction.second_touch import SecondTouch
from kvgate.store.index import Entry
from kvgate.store.residents import Residents
from kvgate.store.write_budget import WriteBudget
from kvgate.tiers.base import Record


def entry(name: str, nbytes: int = 1, mtime_ms: int = 0, tenant: str = "t") -> Entry:
    return Entry(Record(tenant, "b", name, nbytes, 0, mtime_ms), ("copy",))


def names(residents: Residents, tenant: str | None = None) -> list[str]:
    return [
        victim.record.key
        for victim in (
            residents.victims(lambda _: True) if tenant is None else residents.victims_of(tenant, lambda _: True)
        )
    ]


def residents_with(*entries: Entry) -> Residents:
    residents = Residents(0, LRU)
    for each in entries:
        residents.insert(each)
    return residents


def test_least_recently_used_goes_first() -> None:
    a, b, c = (entry(name) for name in "abc")
    residents = residents_with(a, b, c)
    residents.touch(a)
    assert names(residents) == ["b", "c", "a"]
    residents.remove(c)
    assert names(residents) == ["b", "a"]


def test_what_may_not_go_is_passed_over() -> None:
    residents = residents_with(entry("a"), entry("b"), entry("c"))
    assert [victim.record.key for victim in residents.victims(lambda e: e.record.key != "a")] == ["b", "c"]


def test_tenant_that_takes_the_most_gives_first() -> None:
    small = [entry(f"s{n}", 10, tenant="small") for n in range(3)]
    large = [entry(f"l{n}", 10, tenant="large") for n in range(5)]
    residents = residents_with(*small, *large)
    order = names(residents)
    assert order[:2] == ["l0", "l1"], "until both take as much"
    assert set(order[2:4]) == {"l2", "s0"}
    assert names(residents, "small") == ["s0", "s1", "s2"]
    assert names(residents, "nobody") == []
    assert residents.usage("large") == (5, 50)


@given(st.lists(st.integers(0, 10**7), max_size=40, unique=True), st.data())
def test_survivors_go_by_age_and_before_all_that_has_been_used(ages_ms: list[int], data: st.DataObject) -> None:
    entries = [entry(str(age), mtime_ms=age) for age in ages_ms]
    cold = Cold()
    for each in entries:
        cold.classes[each.record.mtime_ms >> AGE_CLASS_BITS].append(each)
    residents = Residents(0, LRU)
    residents.load("t", cold, len(entries), len(entries))
    used = data.draw(st.lists(st.sampled_from(entries), unique=True)) if entries else []
    removed = data.draw(st.lists(st.sampled_from(entries), unique=True)) if entries else []
    for each in used:
        residents.touch(each)
        names(residents)
    for each in removed:
        each.set_copy(0, None)
        residents.remove(each)
    names(residents)  # to look changes nothing
    expected = sorted((e for e in entries if e not in used), key=lambda e: e.record.mtime_ms) + used
    assert names(residents) == [e.record.key for e in expected if e not in removed]
    assert residents.usage("t") == ((len(entries) - len(removed),) * 2 if entries else (0, 0))


def test_of_a_chain_the_tail_goes_first_also_where_links_were_cold() -> None:
    links = [entry(str(number), mtime_ms=number) for number in range(4)]
    cold = Cold()
    for each in links[1:3]:
        cold.classes[0].append(each)
    residents = residents_with(links[0], links[3])
    residents.load("t", cold, 2, 2)
    residents.touch_all("t", links)
    assert names(residents) == ["3", "2", "1", "0"]


def test_a_lower_tier_admits_what_its_policy_finds_worth_a_write() -> None:
    room = [10]
    residents = Residents(0, SecondTouch, lambda _: room[0])
    first = entry("a", nbytes=5)
    residents.note(first)
    assert residents.admits(first) is None, "there is room"
    room[0] = 4
    assert residents.admits(first) == residents.admits(first) == "policy"
    again = entry("a", nbytes=5)
    residents.note(again)
    assert residents.admits(again) is None, "the same object, written again, has come back"


def test_a_tier_is_full_for_a_tenant_at_its_limit() -> None:
    residents = Residents(0, SecondTouch)
    residents.shares.load("disk", None, [Tenant("t", tiers={"disk": TierShareConfig(limit=Size(8 << 20))})])
    residents.insert(entry("held", nbytes=6 << 20))
    small, large = entry("small", nbytes=2 << 20), entry("large", nbytes=3 << 20)
    residents.note(small)
    residents.note(large)
    assert residents.admits(small) is None
    assert residents.admits(large) == "policy"


def test_what_is_evicted_may_come_back_and_what_is_deleted_is_forgotten() -> None:
    residents = Residents(0, SecondTouch, lambda _: 0)
    evicted, deleted = entry("evicted"), entry("deleted")
    evicted.current = True
    for each in (evicted, deleted):
        residents.note(each)
        residents.insert(each)
        residents.remove(each)
    for name, verdict in (("evicted", None), ("deleted", "policy")):
        back = entry(name)
        residents.note(back)
        assert residents.admits(back) == verdict


def test_a_spent_budget_refuses_all_but_what_is_pinned() -> None:
    now = [0.0]
    residents = Residents(0, LRU, budget=WriteBudget(86_400, 100, lambda: now[0]))
    large = entry("large", nbytes=80)
    assert residents.admits(large) is None
    assert residents.admits(large) == "budget"
    residents.return_budget(large)
    assert residents.admits(large) is None
    pinned = entry("pinned", nbytes=80)
    pinned.pinned = True
    assert residents.admits(pinned) is None
    now[0] = 60.0
    assert residents.admits(large) is None
