from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kvgate.tiers.rendezvous import ranking

PLACES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8, unique=True)


@given(PLACES, st.randoms(), st.text(max_size=20), st.integers(1, 9))
def test_everyone_comes_to_the_same_ranking(places: list[str], chance: object, name: str, most: int) -> None:
    shuffled = list(places)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    order = ranking(places, name, most)
    assert order == ranking(shuffled, name, most)
    assert len(order) == min(most, len(places)) == len(set(order))
    assert set(order) <= set(places)


@given(PLACES, st.text(max_size=20), st.data())
def test_place_that_goes_leaves_the_order_of_the_others(places: list[str], name: str, data: st.DataObject) -> None:
    order = ranking(places, name, 9)
    gone = data.draw(st.sampled_from(places))
    rest = [place for place in places if place != gone]
    assert ranking(rest, name, 9) == [place for place in order if place != gone] if rest else True


def test_names_are_shared_out_evenly() -> None:
    places = [f"http://10.0.0.{number}:9000" for number in range(5)]
    firsts = Counter(ranking(places, f"name {number}", 1)[0] for number in range(10_000))
    assert all(1800 < firsts[place] < 2200 for place in places)
