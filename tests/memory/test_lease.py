"""The right to a slot's bytes: length, sharing, resizing, and its end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from kvgate.errors import ArenaFull, LeaseReleased
from kvgate.memory import PAGE_NBYTES, Arena, Lease

PAGE = PAGE_NBYTES


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 * PAGE, 8 * PAGE)
    yield arena
    assert arena.used_nbytes == 0
    assert arena.lease_count == 0
    arena.close()


def content(lease: Lease) -> bytes:
    return b"".join(lease.views)


def fill(lease: Lease, body: bytes) -> None:
    for view in lease.views:
        view[:] = body[: len(view)]
        body = body[len(view) :]
    assert not body


def test_views_hold_exactly_the_bytes_asked_for(arena: Arena) -> None:
    for nbytes in (0, 1, PAGE - 1, PAGE, PAGE + 1, 8 * PAGE + 1, 17 * PAGE):
        with arena.reserve("a", nbytes) as lease:
            assert lease.owner == "a"
            assert lease.nbytes == nbytes
            assert sum(map(len, lease.views)) == nbytes
            assert len(lease.views) == len(lease.extents)
            assert sum(extent.nbytes for extent in lease.extents) == -(-nbytes // PAGE) * PAGE


def test_slices_give_any_range_in_order(arena: Arena) -> None:
    with arena.reserve("a", 20 * PAGE + 7) as lease:
        assert len(lease.extents) == 3
        body = bytes(i * 7 % 251 for i in range(lease.nbytes))
        fill(lease, body)
        cuts = (0, 1, 8 * PAGE - 1, 8 * PAGE, 8 * PAGE + 1, 16 * PAGE, lease.nbytes - 1, lease.nbytes)
        for start in cuts:
            for stop in (cut for cut in cuts if cut >= start):
                pieces = lease.slices(start, stop)
                assert b"".join(pieces) == body[start:stop]
                assert all(pieces)
        for start, stop in ((-1, 3), (3, 2), (0, lease.nbytes + 1)):
            with pytest.raises(ValueError, match="do not lie in"):
                lease.slices(start, stop)


def test_slot_stays_until_its_last_lease_is_released(arena: Arena) -> None:
    first = arena.reserve("a", PAGE)
    first.views[0][:4] = b"kept"
    second = first.share()
    third = second.share()
    assert arena.lease_count == 3
    first.release()
    first.release()
    third.release()
    assert arena.used_nbytes == PAGE
    assert content(second)[:4] == b"kept"
    second.release()


def test_every_use_after_release_is_an_error(arena: Arena) -> None:
    lease = arena.reserve("a", PAGE)
    sharer = lease.share()
    lease.release()
    for use in (
        lambda: lease.owner,
        lambda: lease.nbytes,
        lambda: lease.extents,
        lambda: lease.views,
        lambda: lease.slices(0, 0),
        lease.share,
        lambda: lease.extend(1),
        lambda: lease.trim(0),
        lease.__enter__,
    ):
        with pytest.raises(LeaseReleased):
            use()
    assert sharer.nbytes == PAGE
    sharer.release()


def test_views_kept_past_the_last_release_cannot_touch_the_next_slot(arena: Arena) -> None:
    lease = arena.reserve("a", PAGE)
    view = lease.views[0]
    lease.release()
    with pytest.raises(ValueError, match="released memoryview"):
        view[0] = 1


def test_extend_keeps_the_bytes_and_grows_in_place_when_it_can(arena: Arena) -> None:
    with arena.reserve("a", 10) as lease:
        fill(lease, b"0123456789")
        lease.extend(PAGE - 10)
        lease.extend(3 * PAGE)
        assert [extent.nbytes for extent in lease.extents] == [4 * PAGE]
        neighbour = arena.reserve("a", 4 * PAGE)
        lease.extend(PAGE + 1)
        assert [extent.nbytes for extent in lease.extents] == [4 * PAGE, 2 * PAGE]
        assert lease.nbytes == sum(map(len, lease.views)) == 5 * PAGE + 1
        assert content(lease)[:10] == b"0123456789"
        neighbour.release()


def test_empty_lease_can_be_extended(arena: Arena) -> None:
    with arena.reserve("a", 0) as lease:
        assert (lease.extents, lease.views) == ((), ())
        lease.extend(0)
        lease.extend(5)
        assert [len(view) for view in lease.views] == [5]


def test_refused_extend_leaves_the_lease_as_it_was(arena: Arena) -> None:
    with arena.reserve("a", 5) as lease:
        fill(lease, b"12345")
        before = lease.extents
        with pytest.raises(ArenaFull):
            lease.extend(64 * PAGE)
        assert (lease.nbytes, lease.extents, content(lease)) == (5, before, b"12345")
        with pytest.raises(ValueError):
            lease.extend(-1)


def test_trim_gives_back_whole_pages(arena: Arena) -> None:
    with arena.reserve("a", 20 * PAGE) as lease:
        fill(lease, b"abcd" * (5 * PAGE))
        lease.trim(9 * PAGE + 1)
        assert arena.used_nbytes == 10 * PAGE
        assert content(lease) == (b"abcd" * (5 * PAGE))[: 9 * PAGE + 1]
        lease.trim(9 * PAGE + 1)
        with pytest.raises(ValueError):
            lease.trim(9 * PAGE + 2)
        with pytest.raises(ValueError):
            lease.trim(-1)
        lease.trim(0)
        assert (lease.extents, lease.views) == ((), ())
        assert arena.used_nbytes == 0


def test_shared_slot_cannot_change_its_size(arena: Arena) -> None:
    with arena.reserve("a", PAGE) as lease:
        with lease.share():
            with pytest.raises(RuntimeError, match="2 leases"):
                lease.extend(1)
            with pytest.raises(RuntimeError, match="2 leases"):
                lease.trim(1)
        lease.extend(1)


def test_forgotten_lease_warns_and_returns_its_pages(arena: Arena) -> None:
    lease = arena.reserve("acme", 3 * PAGE)
    with pytest.warns(ResourceWarning, match="12288 bytes of 'acme'"):
        del lease
    assert arena.used_nbytes == 0


def test_forgotten_lease_returns_its_pages_even_if_collected_under_the_lock(arena: Arena) -> None:
    cycle = [arena.reserve("a", PAGE)]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle
    with pytest.warns(ResourceWarning), arena._lock:
        gc.collect()
    assert arena.used_nbytes == 0
