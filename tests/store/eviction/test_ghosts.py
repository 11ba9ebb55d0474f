"""Ghosts are exactly the newest that are wanted, whatever size the tables have had."""

from __future__ import annotations

import pytest

from kvgate.store.eviction.ghosts import Ghosts
from kvgate.store.eviction.sketch import Sketch


def test_what_was_seen_again_is_known_until_it_is_forgotten() -> None:
    ghosts = Ghosts()
    assert ghosts.seen(0) == 0
    ghosts.see(0)
    assert ghosts.seen(0) == 1
    ghosts.see(0)
    ghosts.see(0)
    assert ghosts.seen(0) == 2
    assert ghosts.forget(0) == 2
    assert ghosts.forget(0) == ghosts.seen(0) == 0


def test_the_oldest_are_forgotten_first_and_nothing_younger_with_them() -> None:
    ghosts = Ghosts()
    ghosts.fit(1000)
    limit = ghosts.limit
    assert 1000 <= limit <= 1250
    for identity in range(10_000):
        ghosts.see(identity)
    known = [identity for identity in range(10_000) if ghosts.seen(identity)]
    assert min(known) >= 10_000 - limit
    assert len(known) > 0.98 * limit


@pytest.mark.parametrize(("before", "after"), [(10, 1000), (300, 400), (1000, 100), (1000, 10)])
def test_another_size_forgets_nothing_that_is_wanted(before: int, after: int) -> None:
    ghosts = Ghosts()
    ghosts.fit(before)
    for identity in range(2000):
        ghosts.see(identity)
    known = [identity for identity in range(2000) if ghosts.seen(identity)]
    ghosts.fit(after)
    for identity in known[-(after // 2) :]:
        assert ghosts.seen(identity)
    for identity in range(2000, 2000 + after // 4):
        ghosts.see(identity)
    for identity in known[-(after // 2) :]:
        assert ghosts.seen(identity)
    for identity in range(3000, 8000):
        ghosts.see(identity)
    assert max(after, 64) <= ghosts.limit <= max(4 * after, 64)
    assert not any(ghosts.seen(identity) for identity in range(2000))


def test_a_ghost_takes_about_twenty_bytes() -> None:
    ghosts = Ghosts()
    ghosts.fit(100_000)
    for identity in range(1000):
        ghosts.see(identity)
    assert ghosts.nbytes < 25 * 100_000


def test_a_sketch_counts_what_is_seen_often_and_lets_it_fade() -> None:
    sketch = Sketch()
    sketch.fit(1000)
    for _ in range(10):
        sketch.see(7)
    assert sketch.estimate(7) == 10
    assert sketch.nbytes <= 8 * 1000
    for identity in range(100, 20_000):
        sketch.see(identity)
    assert sketch.estimate(7) <= 8
