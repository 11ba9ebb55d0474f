"""Who lies in a tier, and who goes first when room is needed.

Each tenant has an eviction order of its own. The next victim comes from the tenant that takes the most of the tier, so
that a flood of one tenant's objects pushes out that tenant's own, not a small neighbour's.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from kvgate.store.eviction.base import EvictionPolicy
from kvgate.store.index import Entry


class Residents:
    """The entries that have a copy in one tier, by tenant, in eviction order. Synchronous and pure."""

    def __init__(self, policy: Callable[[], EvictionPolicy[Entry]]) -> None:
        self._policy = policy
        self._orders: dict[str, EvictionPolicy[Entry]] = {}
        self._nbytes: dict[str, int] = {}

    def insert(self, entry: Entry) -> None:
        """Add an entry that has got a copy in the tier."""
        record = entry.record
        if record.tenant not in self._orders:
            self._orders[record.tenant] = self._policy()
            self._nbytes[record.tenant] = 0
        self._orders[record.tenant].insert(entry, record.nbytes)
        self._nbytes[record.tenant] += record.nbytes

    def touch(self, entry: Entry) -> None:
        """Note a use of an entry."""
        self._orders[entry.record.tenant].touch(entry)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that has lost its copy in the tier."""
        record = entry.record
        self._orders[record.tenant].remove(entry)
        self._nbytes[record.tenant] -= record.nbytes

    def victims(self, may_go: Callable[[Entry], bool], tenant: str | None = None) -> Iterator[Entry]:
        """The entries to evict, in turn, among those for which `may_go`, of one tenant or of all.

        Taking an entry changes nothing here; the residents may not change while the iterator is used.
        """
        owners = list(self._orders) if tenant is None else [owner for owner in [tenant] if owner in self._orders]
        largest = [(-self._nbytes[owner], owner) for owner in owners]
        heapq.heapify(largest)
        orders = {owner: self._orders[owner].victims() for owner in owners}
        while largest:
            negative_nbytes, owner = heapq.heappop(largest)
            for entry in orders[owner]:
                if may_go(entry):
                    yield entry
                    heapq.heappush(largest, (negative_nbytes + entry.record.nbytes, owner))
                    break

    def usage(self, tenant: str) -> tuple[int, int]:
        """How many objects of a tenant have a copy here, and their bytes."""
        order = self._orders.get(tenant)
        return (len(order), self._nbytes[tenant]) if order is not None else (0, 0)

    def total(self) -> int:
        """How many objects have a copy here."""
        return sum(len(order) for order in self._orders.values())
