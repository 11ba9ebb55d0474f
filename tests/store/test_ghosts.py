from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvgate.errors import ImmutableConflict, NotAdmitted, QuotaExceeded, StoreFull, TierFull
from kvgate.store.ghosts import Fate, Ghosts
from kvgate.tiers.base import Name

LIMIT = 6


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def name(number: int, tenant: str = "alpha") -> Name:
    return Name(tenant, "bucket", f"k{number}")


def test_says_what_became_of_an_object_last_when_and_in_which_tier() -> None:
    clock = Clock()
    ghosts = Ghosts(LIMIT, clock)
    ghosts.note(name(1), Fate.EVICTED, "disk")
    clock.now += 60
    ghosts.note(name(2), Fate.DELETED)
    first = ghosts.find(*name(1))
    assert first is not None
    assert (first.fate, first.at_ms, first.tier) == (Fate.EVICTED, 1_000_000, "disk")
    ghosts.note(name(1), Fate.REFUSED_BY_QUOTA)
    again = ghosts.find(*name(1))
    assert again is not None
    assert (again.fate, again.at_ms, again.tier) == (Fate.REFUSED_BY_QUOTA, 1_060_000, "")
    assert ghosts.find(*name(3)) is None


def test_one_tenants_ghosts_are_neither_found_nor_forgotten_for_another() -> None:
    ghosts = Ghosts(LIMIT)
    ghosts.note(name(0, "alpha"), Fate.EVICTED, "disk")
    for number in range(100):
        ghosts.note(name(number, "beta"), Fate.DELETED)
    kept = ghosts.find(*name(0, "alpha"))
    assert kept is not None
    assert kept.fate == Fate.EVICTED
    assert ghosts.find(*name(99, "alpha")) is None
    assert ghosts.count("alpha") == 1


def test_the_same_key_in_another_bucket_is_another_object() -> None:
    ghosts = Ghosts(LIMIT)
    ghosts.note(Name("alpha", "one", "k"), Fate.EVICTED, "disk")
    assert ghosts.find("alpha", "two", "k") is None


def test_the_stores_own_buckets_have_no_ghosts() -> None:
    ghosts = Ghosts(LIMIT)
    ghosts.note(Name("alpha", "_uploads", "k"), Fate.DELETED)
    assert ghosts.count("alpha") == 0


def test_without_room_nothing_is_remembered() -> None:
    ghosts = Ghosts(0)
    ghosts.note(name(1), Fate.DELETED)
    assert ghosts.find(*name(1)) is None


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (QuotaExceeded("x"), Fate.REFUSED_BY_QUOTA),
        (NotAdmitted("x"), Fate.REFUSED_BY_ADMISSION),
        (StoreFull("x"), Fate.REFUSED_NO_ROOM),
        (TierFull("x"), Fate.REFUSED_NO_ROOM),
        (ConnectionResetError(), Fate.BROKEN_OFF),
        (ImmutableConflict("x"), None),
    ],
)
def test_the_error_of_an_upload_says_why_it_was_refused(error: Exception, fate: Fate | None) -> None:
    ghosts = Ghosts(LIMIT)
    ghosts.note_refusal(name(1), error)
    found = ghosts.find(*name(1))
    assert (found.fate if found else None) == fate


def test_a_ghost_takes_about_150_bytes_whatever_the_length_of_its_key() -> None:
    ghosts = Ghosts(20_000)
    names = [Name("alpha", "bucket", f"{number:0500}") for number in range(40_000)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for each in names:
        ghosts.note(each, Fate.EVICTED, "disk")
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ghosts.count("alpha") <= 20_000
    assert (after - before) / ghosts.count("alpha") < 200


class GhostStates(RuleBasedStateMachine):
    """Against a list of everything that was ever noted."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ghosts = Ghosts(LIMIT, self.clock)
        self.noted: dict[str, list[tuple[Name, Fate, str, float]]] = {"alpha": [], "beta": []}

    @rule(
        tenant=st.sampled_from(["alpha", "beta"]),
        number=st.integers(0, 12),
        fate=st.sampled_from(list(Fate)),
        tier=st.sampled_from(["", "host", "disk", "s3"]),
    )
    def note(self, tenant: str, number: int, fate: Fate, tier: str) -> None:
        self.ghosts.note(name(number, tenant), fate, tier)
        self.noted[tenant].append((name(number, tenant), fate, tier, self.clock.now))

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def holds_no_more_than_its_limit(self) -> None:
        assert all(self.ghosts.count(tenant) <= LIMIT for tenant in self.noted)

    @invariant()
    def remembers_the_last_half_and_everything_since_it_says(self) -> None:
        for tenant, noted in self.noted.items():
            last = {each[0]: each for each in noted}
            since_s = self.ghosts.since_ms(tenant) / 1000
            recent = {each[0] for each in noted[-LIMIT // 2 :]}
            for each, fate, tier, at_s in last.values():
                found = self.ghosts.find(*each)
                if found is not None:
                    assert (found.fate, found.tier, found.at_ms) == (fate, tier, at_s * 1000)
                else:
                    assert each not in recent
                    assert at_s <= since_s


TestGhostStates = GhostStates.TestCase
