"""The page accounting alone: placement, coalescing, and that no mixture of sizes wears it out."""

from __future__ import annotations

import random

import pytest

from kvgate.errors import ArenaFull
from kvgate.memory.allocator import PAGE_NBYTES, Allocator, Extent, whole_pages

PAGE = PAGE_NBYTES


def reserve(allocator: Allocator, owner: str, pages: int) -> tuple[Extent, ...]:
    return allocator.grow(owner, (), pages * PAGE).extents


def holes(allocator: Allocator, owner: str, *pages: int) -> list[Extent]:
    """Free runs of these lengths, with one reserved page behind each."""
    slots = []
    for n in pages:
        slots.append(reserve(allocator, owner, n))
        reserve(allocator, owner, 1)
    for slot in slots:
        allocator.shrink(slot, 0)
    return [slot[0] for slot in slots]


def test_reservation_takes_the_smallest_run_that_holds_it() -> None:
    allocator = Allocator(100 * PAGE, 100 * PAGE)
    wide, snug, tight = holes(allocator, "a", 9, 5, 3)
    assert reserve(allocator, "a", 4) == (snug._replace(nbytes=4 * PAGE),)
    assert reserve(allocator, "a", 3) == (tight,)
    assert reserve(allocator, "a", 9) == (wide,)


def test_reservation_that_fits_no_run_uses_the_largest_runs_first() -> None:
    allocator = Allocator(16 * PAGE, 16 * PAGE)
    three, six, four = holes(allocator, "a", 3, 6, 4)
    assert reserve(allocator, "a", 12) == (six, four, three._replace(nbytes=2 * PAGE))
    assert allocator.headroom("a") == PAGE


def test_new_segment_is_preferred_to_splitting() -> None:
    allocator = Allocator(64 * PAGE, 32 * PAGE)
    holes(allocator, "a", 10, 10, 9)
    growth = allocator.grow("a", (), 12 * PAGE)
    assert growth.extents == (Extent(1, 0, 12 * PAGE),)
    assert growth.opened == {1: 32 * PAGE}


def test_slot_larger_than_a_segment_spans_several() -> None:
    allocator = Allocator(100 * PAGE, 32 * PAGE)
    growth = allocator.grow("a", (), 100 * PAGE)
    assert [extent.nbytes // PAGE for extent in growth.extents] == [32, 32, 32, 4]
    assert growth.opened == {0: 32 * PAGE, 1: 32 * PAGE, 2: 32 * PAGE, 3: 4 * PAGE}


def test_slot_grows_into_the_free_run_behind_it_first() -> None:
    allocator = Allocator(64 * PAGE, 64 * PAGE)
    slot = reserve(allocator, "a", 4)
    behind = reserve(allocator, "a", 6)
    reserve(allocator, "a", 1)
    allocator.shrink(behind, 0)
    slot = allocator.grow("a", slot, 5 * PAGE).extents
    assert slot == (Extent(0, 0, 9 * PAGE),)
    slot = allocator.grow("a", slot, 3 * PAGE).extents
    assert slot == (Extent(0, 0, 10 * PAGE), Extent(0, 11 * PAGE, 2 * PAGE))


def test_shrinking_frees_the_pages_behind() -> None:
    allocator = Allocator(32 * PAGE, 16 * PAGE)
    slot = reserve(allocator, "a", 24)
    slot = allocator.shrink(slot, 5 * PAGE)
    assert slot == (Extent(0, 0, 5 * PAGE),)
    assert allocator.used_nbytes == 5 * PAGE
    assert allocator.headroom("b") == 16 * PAGE
    assert allocator.shrink(slot, 0) == ()
    assert allocator.headroom("b") == 32 * PAGE


def test_other_owners_spare_is_retired_and_comes_back_under_a_new_id() -> None:
    allocator = Allocator(32 * PAGE, 16 * PAGE)
    slots = [reserve(allocator, "a", 16), reserve(allocator, "a", 16)]
    for slot in reversed(slots):
        allocator.shrink(slot, 0)
    growth = allocator.grow("b", (), PAGE)
    assert growth.retired == [1]  # the one that emptied first
    assert growth.opened == {2: 16 * PAGE}
    assert allocator.segment_ids("a") == [0]
    assert allocator.headroom("a") == 16 * PAGE
    assert allocator.headroom("b") == 31 * PAGE


def test_own_spare_is_used_again() -> None:
    allocator = Allocator(32 * PAGE, 16 * PAGE)
    allocator.shrink(reserve(allocator, "a", 3), 0)
    growth = allocator.grow("a", (), 16 * PAGE)
    assert growth == ((Extent(0, 0, 16 * PAGE),), {}, [])


def test_refused_growth_takes_nothing() -> None:
    allocator = Allocator(32 * PAGE, 16 * PAGE)
    slot = reserve(allocator, "a", 1)
    with pytest.raises(ArenaFull, match="can still have"):
        allocator.grow("b", (), 17 * PAGE)
    with pytest.raises(ArenaFull):
        allocator.grow("a", slot, 32 * PAGE)
    assert allocator.used_nbytes == PAGE
    assert allocator.headroom("b") == 16 * PAGE
    assert allocator.segment_ids("b") == []


def test_owners_without_segments_are_forgotten() -> None:
    allocator = Allocator(PAGE, PAGE)
    for tenant in range(1000):
        allocator.shrink(reserve(allocator, f"tenant-{tenant}", 1), 0)
    assert len(allocator._owners) == 1


def test_mixed_sizes_never_fragment_the_capacity_to_death() -> None:
    """200,000 operations around 95 % occupancy: all that headroom allows succeeds, no page has two slots."""
    random_ = random.Random(2)
    capacity_nbytes, segment_nbytes = 512 << 20, 64 << 20
    allocator = Allocator(capacity_nbytes, segment_nbytes)
    maps: dict[int, bytearray] = {}
    slots: list[tuple[Extent, ...]] = []
    used_nbytes = 0

    def mark(extents: tuple[Extent, ...], value: int) -> None:
        for segment_id, offset, nbytes in extents:
            pages = slice(offset // PAGE, (offset + nbytes) // PAGE)
            assert maps[segment_id].count(1 - value, pages.start, pages.stop) == nbytes // PAGE
            maps[segment_id][pages] = bytes([value]) * (nbytes // PAGE)

    for _ in range(200_000):
        nbytes = whole_pages(int(PAGE * 2 ** random_.uniform(0, 11)))
        if used_nbytes + nbytes <= capacity_nbytes * 0.95:
            assert nbytes <= allocator.headroom("a")
            growth = allocator.grow("a", (), nbytes)
            maps |= {segment_id: bytearray(size // PAGE) for segment_id, size in growth.opened.items()}
            assert sum(extent.nbytes for extent in growth.extents) == nbytes
            mark(growth.extents, 1)
            slots.append(growth.extents)
            used_nbytes += nbytes
        else:
            position = random_.randrange(len(slots))
            slots[position], slots[-1] = slots[-1], slots[position]
            extents = slots.pop()
            mark(extents, 0)
            allocator.shrink(extents, 0)
            used_nbytes -= sum(extent.nbytes for extent in extents)
        assert allocator.used_nbytes == used_nbytes

    for extents in slots:
        allocator.shrink(extents, 0)
    assert allocator.headroom("b") == capacity_nbytes
    whole = [allocator.grow("a", (), segment_nbytes).extents for _ in range(8)]
    assert sorted(whole) == [(Extent(i, 0, segment_nbytes),) for i in range(8)]
