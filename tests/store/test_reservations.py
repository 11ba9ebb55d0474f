"""Reservations: whatever writers do, slices never overlap, and what is held is let go once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvgate.chunk.form import stored_form
from kvgate.chunk.layout import Layout
from kvgate.errors import NoSuchReservation, ObjectTooLarge, Overloaded, SliceConflict
from kvgate.store.reservations import Reservation, Reservations, Slice

STORED = stored_form("raw", Layout(3, 2, 2, 1, 1, "I8"))
CELLS = [(layer, head) for layer in range(3) for head in range(2)]
MOST, LIMIT_NBYTES, NBYTES = 3, 60, 10

slices = st.builds(
    lambda layers, heads: Slice(*layers, *heads),
    st.sampled_from([(first, stop) for first in range(3) for stop in range(first + 1, 4)]),
    st.sampled_from([(0, 1), (1, 2), (0, 2)]),
)


def cells(part: Slice) -> set[tuple[int, int]]:
    return {
        (layer, head)
        for layer in range(part.first_layer, part.stop_layer)
        for head in range(part.first_head, part.stop_head)
    }


class Model(RuleBasedStateMachine):
    """Beside each reservation, what is known of every cell: missing, being received, or received."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.gone: list[Reservation] = []
        self.table = Reservations(MOST, LIMIT_NBYTES, lambda: self.now, self.gone.append)
        self.all: list[Reservation] = []
        self.deadlines: dict[str, float] = {}
        self.live: set[str] = set()
        self.coming: dict[str, list[Slice]] = {}
        self.came: dict[str, dict[Slice, int]] = {}
        self.cut: Counter[tuple[str, Slice]] = Counter()
        self.completing: set[str] = set()
        self.shared: dict[str, Reservation] = {}

    def held(self, tenant: str | None = None) -> list[Reservation]:
        return [each for each in self.all if each not in self.gone and tenant in (None, each.tenant)]

    def expired(self) -> None:
        self.live -= {name for name in self.live if self.deadlines[name] <= self.now}

    @rule(tenant=st.sampled_from("ab"), lease_s=st.integers(1, 5), writer=st.sampled_from(["", "w", "x"]))
    def open(self, tenant: str, lease_s: int, writer: str) -> None:
        self.table.expire()
        self.expired()
        if writer:
            writer = f"{tenant} {writer}"
            joined = self.table.join(writer, lease_s)
            before = self.shared.get(writer)
            usable = before is not None and before.name in self.live | self.completing
            assert joined is (before if usable else None)
            if joined is not None:
                self.deadlines[joined.name] = max(self.deadlines[joined.name], self.now + lease_s)
                assert self.table.left_s(joined) == max(0, self.deadlines[joined.name] - self.now)
                return
        own = len(self.held(tenant))
        left = LIMIT_NBYTES - NBYTES * len(self.held())
        fits = own < MOST and left >= NBYTES and (not own or (own + 1) * NBYTES <= left - NBYTES)
        try:
            new = self.table.open(tenant, STORED, NBYTES, lease_s, writer or None)
        except Overloaded:
            assert not fits
            return
        assert fits
        self.table.let_go(new)
        self.all.append(new)
        if writer:
            self.shared[writer] = new
        self.live.add(new.name)
        self.deadlines[new.name] = self.now + lease_s
        self.coming[new.name], self.came[new.name] = [], {}

    @rule(data=st.data(), part=slices)
    def begin(self, data: st.DataObject, part: Slice) -> None:
        if not self.all:
            return
        each = data.draw(st.sampled_from(self.all))
        if each.name not in self.live:
            with pytest.raises(NoSuchReservation):
                self.table.begin(each, part, lambda: None)
            return
        name = each.name
        taken = [other for other in (*self.coming[name], *self.came[name]) if cells(other) & cells(part)]
        try:
            before = self.table.begin(each, part, lambda: self.cut.update([(name, part)]))
        except SliceConflict:
            assert taken
            assert part not in self.came[name]
            return
        if before is None:
            assert not taken
            self.coming[name].append(part)
        else:
            assert before == self.came[name][part]

    @rule(data=st.data(), crc64nvme=st.none() | st.integers(0, 9))
    def end(self, data: st.DataObject, crc64nvme: int | None) -> None:
        under_way = [(each, part) for each in self.all for part in self.coming[each.name]]
        if not under_way:
            return
        each, part = data.draw(st.sampled_from(under_way))
        self.coming[each.name].remove(part)
        complete = self.table.end(each, part, crc64nvme)
        if each.name in self.live and crc64nvme is not None:
            self.came[each.name][part] = crc64nvme
            assert complete == (set().union(*map(cells, self.came[each.name])) == set(CELLS))
        else:
            assert not complete
        if complete:
            self.live.discard(each.name)
            self.completing.add(each.name)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        if self.completing:
            name = data.draw(st.sampled_from(sorted(self.completing)))
            self.completing.discard(name)
            self.table.let_go(next(each for each in self.all if each.name == name))

    @rule(data=st.data(), tenant=st.sampled_from("ab"))
    def abort(self, data: st.DataObject, tenant: str) -> None:
        if not self.all:
            return
        each = data.draw(st.sampled_from(self.all))
        self.table.expire()
        self.expired()
        if each.name not in self.live or each.tenant != tenant:
            with pytest.raises(NoSuchReservation):
                self.table.find(tenant, each.name)
            return
        self.table.abort(self.table.find(tenant, each.name))
        self.live.discard(each.name)

    @rule(tenant=st.sampled_from("ab"), writer=st.sampled_from(["w", "x"]))
    def give_up(self, tenant: str, writer: str) -> None:
        self.table.expire()
        self.expired()
        each = self.shared.get(f"{tenant} {writer}")
        expected = each is not None and each.name in self.live and not self.coming[each.name]
        assert self.table.give_up(f"{tenant} {writer}") == expected
        if expected and each is not None:
            self.live.discard(each.name)

    @rule(step_s=st.integers(0, 3))
    def wait(self, step_s: int) -> None:
        self.now += step_s
        open_before = len(self.live)
        self.expired()
        assert self.table.expire() == open_before - len(self.live)

    @invariant()
    def what_ended_is_let_go_once_and_not_while_it_is_used(self) -> None:
        assert len(set(self.gone)) == len(self.gone)
        for each in self.all:
            used = each.name in self.live or self.coming[each.name] or each.name in self.completing
            assert (each in self.gone) == (not used)
            if each.name not in self.live:
                for part in self.coming[each.name]:
                    assert self.cut[each.name, part] >= 1, "a slice under way was not ended with its reservation"

    @invariant()
    def bytes_are_counted_until_they_are_let_go(self) -> None:
        assert self.table.nbytes == NBYTES * len(self.held()) <= LIMIT_NBYTES
        for tenant in "ab":
            assert self.table.count(tenant) == len(self.held(tenant)) <= MOST

    @invariant()
    def what_cannot_be_joined_any_more_is_forgotten(self) -> None:
        assert len(self.table._shared) <= sum(each.name in self.live | self.completing for each in self.all)
        assert len(self.table._deadlines) <= 2 * len(self.live) + 66


TestReservations = Model.TestCase
TestReservations.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def test_missing_bytes_are_those_of_the_slices_that_have_not_come() -> None:
    table = Reservations(1, 100, lambda: 0.0, lambda _: None)
    each = table.open("a", STORED, NBYTES, 1)
    assert each.missing_nbytes == STORED.nbytes
    table.begin(each, Slice(0, 2, 0, 1), lambda: None)
    assert not table.end(each, Slice(0, 2, 0, 1), 0)
    assert each.missing_nbytes == STORED.nbytes - 4


def test_chunk_that_can_never_be_reserved_is_told_apart() -> None:
    with pytest.raises(ObjectTooLarge):
        Reservations(1, 9, lambda: 0.0, lambda _: None).open("a", STORED, 10, 1)


def test_number_of_slices_is_bounded() -> None:
    stored = stored_form("raw", Layout(4096, 2, 2, 1, 1, "I8"))
    table = Reservations(1, 1 << 20, lambda: 0.0, lambda _: None)
    each = table.open("a", stored, stored.nbytes, 1)
    for layer in range(4096):
        part = Slice(layer, layer + 1, 0, 1)
        each.received[part] = 0
    with pytest.raises(SliceConflict, match="at most 4096"):
        table.begin(each, Slice(0, 1, 1, 2), lambda: None)
