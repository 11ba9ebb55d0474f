"""Who lies in a tier, and who goes first when room is needed.

Each tenant has an eviction order of its own; `shares` says whose turn it is, so that a flood of one tenant's objects
pushes out that tenant's own, not a small neighbour's.

Entries that have not been used since the gateway started are cold, and go before every entry that has been used. Those
with a pin have an order of their own, and go last: so they need not be passed over each time.

A tier may be asked before something is written to it (`admits`): its policy may find that not worth a write, and a
budget for writes may be spent. Every use of an object that the tier does not hold is told with `note`, so that the
policy knows what comes back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from kvgate.store.cold import Cold
from kvgate.store.eviction.base import EvictionPolicy, Identity
from kvgate.store.index import Entry
from kvgate.store.shares import Shares
from kvgate.store.write_budget import WriteBudget

Policy = Callable[[Identity[Entry]], EvictionPolicy[Entry]]
"""The class of an eviction policy."""

Refusal = Literal["policy", "budget"]
"""Why an object is not written to a tier."""


def identity(entry: Entry) -> int:
    """What an entry has in common with another one of the same key."""
    return hash(entry.record.key)  # the text keeps it once it is known; equal keys of two buckets pass for one


class Residents:
    """The entries that have a copy in one tier, by tenant, in eviction order. Synchronous and pure.

    rank:   the tier's, by which an entry says whether it still has its copy
    room:   how many bytes an object of a tenant could have in the tier without any eviction
    budget: what may be written to the tier; None for no limit
    """

    def __init__(
        self,
        rank: int,
        policy: Policy,
        room: Callable[[str], int] = lambda _: sys.maxsize,
        budget: WriteBudget | None = None,
    ) -> None:
        self._rank = rank
        self._policy = policy
        self.shares = Shares()
        self._room = room
        self._budget = budget
        self.remembers = policy(identity).remembers
        """Whether `note` has an effect."""
        self._orders: dict[str, EvictionPolicy[Entry]] = {}
        self._kept: dict[str, EvictionPolicy[Entry]] = {}  # those with a pin
        self._cold: dict[str, Cold] = {}
        self._nbytes: dict[str, int] = {}
        self._objects: dict[str, int] = {}

    def insert(self, entry: Entry) -> None:
        """Add an entry that has got a copy in the tier."""
        record = entry.record
        tenant, nbytes = record.tenant, record.nbytes
        self._add(tenant, 1, nbytes)
        (self._kept if entry.pin else self._orders)[tenant].insert(entry, nbytes)

    def load(self, tenant: str, cold: Cold, objects: int, nbytes: int) -> None:
        """Add the entries of one tenant that have survived a restart, and take `cold` over."""
        self._add(tenant, objects, nbytes)
        self._cold[tenant] = cold

    def touch(self, entry: Entry) -> None:
        """Note a use of an entry."""
        for order in (self._orders[entry.record.tenant], self._kept[entry.record.tenant]):
            if entry in order:
                order.touch(entry)
                return
        order = self._order_for(entry)
        order.note(entry)
        order.insert(entry, entry.record.nbytes)

    def touch_all(self, tenant: str, entries: Sequence[Entry]) -> None:
        """`touch` of many entries of one tenant, the links of a chain, head first."""
        if not entries:
            return
        order = self._orders[tenant]
        if unknown := order.touch_all(entries):
            for entry in unknown:
                self.touch(entry)
            order.arrange(entries)

    def arrange(self, tenant: str, entries: Sequence[Entry]) -> None:
        """Have the links of a chain, head first, go in the order of a chain; those without a copy here are ignored."""
        if tenant in self._orders:
            self._orders[tenant].arrange(entries)

    def note(self, entry: Entry) -> None:
        """Note a use of an entry that has no copy in the tier."""
        if self.remembers:
            self._add(entry.record.tenant, 0, 0)
            self._orders[entry.record.tenant].note(entry)

    def admits(self, entry: Entry) -> Refusal | None:
        """None if an entry that has no copy in the tier should be written to it now, else the reason why not.

        To be asked right before the write, of which the use has been noted: None takes it from the budget, which
        `return_budget` gives back for a write that fails. What is pinned is always written.
        """
        record = entry.record
        if entry.pin:
            return None
        self._add(record.tenant, 0, 0)
        over_limit = self.shares.excess(record.tenant, self._nbytes[record.tenant], record.nbytes) > 0
        full = over_limit or record.nbytes > self._room(record.tenant)
        if not self._orders[record.tenant].admit(entry, full=full):
            return "policy"
        if self._budget is not None and not self._budget.take(record.nbytes):
            return "budget"
        return None

    def return_budget(self, entry: Entry) -> None:
        """Give back what `admits` took for an entry that was not written after all."""
        if self._budget is not None and not entry.pin:
            self._budget.give_back(entry.record.nbytes)

    def repin(self, entry: Entry) -> None:
        """Put an entry whose pin has changed where it belongs; it counts as used now."""
        tenant = entry.record.tenant
        for order in (self._orders[tenant], self._kept[tenant]):
            order.remove(entry)
        self._order_for(entry).insert(entry, entry.record.nbytes)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that has lost its copy in the tier."""
        record = entry.record
        tenant, nbytes = record.tenant, record.nbytes
        for order in (self._orders[tenant], self._kept[tenant]):
            if entry.current:  # it gives way here, and may come back
                order.evict(entry)
            else:
                order.remove(entry)
        self._nbytes[tenant] -= nbytes
        self._objects[tenant] -= 1

    def victims(self, may_go: Callable[[Entry], bool], asker: str | None = None, nbytes: int = 0) -> Iterator[Entry]:
        """The entries to evict, in turn, among those for which `may_go`, so that `asker` gets `nbytes`.

        asker: None for nobody in particular
        Taking an entry changes nothing here; the residents may not change while the iterator is used.
        """
        givers = self.shares.givers(self._nbytes, asker, nbytes)
        orders: dict[str, Iterator[Entry]] = {}
        while (owner := givers.next()) is not None:
            if owner not in orders:
                orders[owner] = filter(may_go, self._in_order(owner))
            entry = next(orders[owner], None)
            if entry is not None and givers.give(owner, entry.record.nbytes):
                yield entry

    def victims_of(self, tenant: str, may_go: Callable[[Entry], bool]) -> Iterator[Entry]:
        """The entries of one tenant to evict, in turn, as `victims`."""
        return filter(may_go, self._in_order(tenant)) if tenant in self._orders else iter(())

    def usage(self, tenant: str) -> tuple[int, int]:
        """How many objects of a tenant have a copy here, and their bytes."""
        return self._objects.get(tenant, 0), self._nbytes.get(tenant, 0)

    def total(self) -> int:
        """How many objects have a copy here."""
        return sum(self._objects.values())

    def total_nbytes(self) -> int:
        """The bytes of all objects that have a copy here."""
        return sum(self._nbytes.values())

    def _add(self, tenant: str, objects: int, nbytes: int) -> None:
        if tenant not in self._orders:
            self._orders[tenant], self._kept[tenant] = self._policy(identity), self._policy(identity)
            self._nbytes[tenant] = self._objects[tenant] = 0
        self._nbytes[tenant] += nbytes
        self._objects[tenant] += objects

    def _in_order(self, tenant: str) -> Iterator[Entry]:
        order, kept, rank = self._orders[tenant], self._kept[tenant], self._rank
        if (cold := self._cold.get(tenant)) is not None:
            yield from cold.in_order(
                lambda entry: entry.copies[rank] is not None and entry not in order and entry not in kept
            )
        yield from order.victims()
        yield from kept.victims()

    def _order_for(self, entry: Entry) -> EvictionPolicy[Entry]:
        return (self._kept if entry.pin else self._orders)[entry.record.tenant]
