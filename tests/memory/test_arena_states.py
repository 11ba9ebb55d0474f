"""The arena against a model: any sequence of operations by several owners keeps every promise it makes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvgate.errors import ArenaFull
from kvgate.memory import PAGE_NBYTES, Arena, Lease

PAGE = PAGE_NBYTES
MiB = 1 << 20
OWNERS = ("acme", "bolt", "coda")
LENGTHS = st.one_of(
    st.integers(0, 3 * PAGE),
    st.integers(1, 64).map(lambda pages: pages * PAGE),
    st.integers(1, 8 * MiB),
    st.sampled_from([MiB, 4 * MiB, 8 * MiB]),
)


def memfds() -> int:
    """How many descriptors of memory segments this process has."""
    links = (f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd"))
    return sum(os.path.islink(link) and os.readlink(link).startswith("/memfd:") for link in links)


@dataclass(eq=False)
class Held:
    """What the model knows of a slot."""

    owner: str
    nbytes: int
    number: int
    leases: list[Lease]

    @property
    def pages_nbytes(self) -> int:
        return -(-self.nbytes // PAGE) * PAGE


def first_words(lease: Lease) -> list[npt.NDArray[np.uint64]]:
    """The first word of every page, as writable arrays; a last piece too short for a word is left out."""
    return [np.frombuffer(view[: len(view) // 8 * 8], np.uint64)[::512] for view in lease.views if len(view) >= 8]


class ArenaStates(RuleBasedStateMachine):
    @initialize(capacity=st.sampled_from([32 * MiB, 40 * MiB + PAGE, 64 * MiB]), segment=st.sampled_from([1, 4, 64]))
    def open(self, capacity: int, segment: int) -> None:
        self.descriptors = memfds()
        self.arena = Arena(capacity, segment * MiB)
        self.slots: list[Held] = []
        self.count = 0

    def any_slot(self, position: int) -> Held:
        return self.slots[position % len(self.slots)]

    def tag(self, held: Held) -> int:
        return (OWNERS.index(held.owner) + 1) << 56 | held.number << 32

    def stamp(self, held: Held, old_pages: int = 0) -> None:
        """Mark the pages behind the first `old_pages`, which must hold zeros or this owner's own marks until now."""
        page = 0
        for words in first_words(held.leases[0]):
            new = words[max(old_pages - page, 0) :]
            assert np.isin(new >> np.uint64(56), [0, self.tag(held) >> 56]).all(), "another owner's bytes"
            new[:] = np.arange(page + len(words) - len(new), page + len(words), dtype=np.uint64) + np.uint64(
                self.tag(held)
            )
            page += len(words)

    def verify(self, held: Held) -> None:
        for lease in held.leases:
            assert lease.nbytes == held.nbytes == sum(map(len, lease.views))
            page = 0
            for words in first_words(lease):
                assert (words == np.arange(page, page + len(words), dtype=np.uint64) + np.uint64(self.tag(held))).all()
                page += len(words)

    @rule(owner=st.sampled_from(OWNERS), nbytes=LENGTHS)
    def reserve(self, owner: str, nbytes: int) -> None:
        headroom = self.arena.headroom(owner)
        if -(-nbytes // PAGE) * PAGE > headroom:
            with pytest.raises(ArenaFull):
                self.arena.reserve(owner, nbytes)
            return
        self.count += 1
        held = Held(owner, nbytes, self.count, [self.arena.reserve(owner, nbytes)])
        self.stamp(held)
        self.slots.append(held)

    @rule(owner=st.sampled_from(OWNERS))
    def reserve_all_there_is(self, owner: str) -> None:
        headroom = self.arena.headroom(owner)
        with pytest.raises(ArenaFull):
            self.arena.reserve(owner, headroom + 1)
        lease = self.arena.reserve(owner, headroom)
        assert self.arena.headroom(owner) == 0
        lease.trim(0)
        lease.release()

    @precondition(lambda self: self.slots)
    @rule(position=st.integers(0, 99))
    def share(self, position: int) -> None:
        held = self.any_slot(position)
        held.leases.append(held.leases[0].share())

    @precondition(lambda self: self.slots)
    @rule(position=st.integers(0, 99), nbytes=LENGTHS)
    def extend(self, position: int, nbytes: int) -> None:
        held = self.any_slot(position)
        longer = Held(held.owner, held.nbytes + nbytes, held.number, held.leases)
        if len(held.leases) > 1:
            with pytest.raises(RuntimeError):
                held.leases[0].extend(nbytes)
        elif longer.pages_nbytes - held.pages_nbytes > self.arena.headroom(held.owner):
            with pytest.raises(ArenaFull):
                held.leases[0].extend(nbytes)
        else:
            old_pages = sum(map(len, first_words(held.leases[0])))
            held.leases[0].extend(nbytes)
            held.nbytes += nbytes
            self.stamp(held, old_pages)
        self.verify(held)

    @precondition(lambda self: self.slots)
    @rule(position=st.integers(0, 99), fraction=st.floats(0, 1))
    def trim(self, position: int, fraction: float) -> None:
        held = self.any_slot(position)
        nbytes = int(held.nbytes * fraction)
        if len(held.leases) > 1:
            with pytest.raises(RuntimeError):
                held.leases[0].trim(nbytes)
        else:
            held.leases[0].trim(nbytes)
            held.nbytes = nbytes
        self.verify(held)

    @precondition(lambda self: self.slots)
    @rule(position=st.integers(0, 99), forget=st.booleans())
    def end_a_lease(self, position: int, forget: bool) -> None:
        held = self.any_slot(position)
        self.verify(held)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            lease = held.leases.pop()
            if not forget:
                lease.release()
            del lease
        if not held.leases:
            self.slots.remove(held)

    @precondition(lambda self: self.slots)
    @rule(owner=st.sampled_from(OWNERS))
    def an_owner_leaves(self, owner: str) -> None:
        for held in [held for held in self.slots if held.owner == owner]:
            self.verify(held)
            for lease in held.leases:
                lease.release()
            self.slots.remove(held)

    @invariant()
    def bytes_are_conserved(self) -> None:
        assert self.arena.used_nbytes == sum(held.pages_nbytes for held in self.slots) <= self.arena.capacity_nbytes
        assert self.arena.lease_count == sum(len(held.leases) for held in self.slots)

    @invariant()
    def segments_have_one_owner_and_headroom_is_exact(self) -> None:
        sizes = {owner: {segment.id: segment.nbytes for segment in self.arena.segments(owner)} for owner in OWNERS}
        assert (
            self.arena.segment_count == len({i for ids in sizes.values() for i in ids}) == sum(map(len, sizes.values()))
        )
        taken = dict.fromkeys(OWNERS, 0)
        used: dict[str, set[int]] = {owner: set() for owner in OWNERS}
        for held in self.slots:
            taken[held.owner] += held.pages_nbytes
            used[held.owner] |= {extent.segment_id for extent in held.leases[0].extents}
        for owner in OWNERS:
            assert used[owner] <= sizes[owner].keys()
            assert self.arena.used_by(owner) == taken[owner]
            of_others = sum(sizes[other][i] for other in OWNERS if other != owner for i in used[other])
            assert self.arena.headroom(owner) == self.arena.capacity_nbytes - of_others - taken[owner]

    def teardown(self) -> None:
        for held in self.slots:
            self.verify(held)
            for lease in held.leases:
                lease.release()
        self.slots.clear()
        assert self.arena.used_nbytes == self.arena.lease_count == 0
        for owner in OWNERS:
            assert self.arena.headroom(owner) == self.arena.capacity_nbytes
        for owner in OWNERS:  # what was freed has coalesced: every segment is one run again
            sizes = sorted((segment.nbytes for segment in self.arena.segments(owner)), reverse=True)
            whole = [self.arena.reserve(owner, nbytes) for nbytes in sizes]
            assert all(len(lease.extents) == 1 for lease in whole)
            for lease in whole:
                lease.release()
        self.arena.close()
        assert memfds() == self.descriptors


ArenaStates.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None, derandomize=True)
TestArenaStates = ArenaStates.TestCase
