"""Leases that clients hold: entries kept from eviction until a deadline.

Invariants
1. A lease ends once: by its tenant's release or by its deadline.
2. Every entry of an open lease has that lease counted in `entry.leases`.
"""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvgate.errors import NoSuchLease, Overloaded
from kvgate.store.index import Entry


@dataclass(frozen=True, slots=True)
class _Held:
    tenant: str
    entries: tuple[Entry, ...]


class LeaseTable:
    """Open leases by a name that cannot be guessed. Synchronous and pure.

    keep, let_go: called with the entries of a lease when it begins and ends
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float],
        keep: Callable[[Sequence[Entry]], None],
        let_go: Callable[[Sequence[Entry]], None],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._keep = keep
        self._let_go = let_go
        self._held: dict[str, _Held] = {}
        self._deadlines: list[tuple[float, str]] = []

    def grant(self, tenant: str, entries: Sequence[Entry], lease_s: float) -> str:
        """Hold `entries` for `lease_s` seconds; the lease's name. Raises Overloaded when too many leases are open."""
        self.expire()
        if len(self._held) >= self._limit:
            raise Overloaded(f"{self._limit} leases are open; release some, or ask for shorter ones")
        name = secrets.token_hex(16)
        self._keep(entries)
        self._held[name] = _Held(tenant, tuple(entries))
        heapq.heappush(self._deadlines, (self._clock() + lease_s, name))
        return name

    def release(self, tenant: str, name: str) -> None:
        """End a lease. Raises NoSuchLease, also when it is another tenant's."""
        held = self._held.get(name)
        if held is None or held.tenant != tenant:
            raise NoSuchLease("there is no such lease; it may have ended")
        self._drop(name)

    def expire(self) -> None:
        """End the leases whose deadline has passed."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, name = heapq.heappop(self._deadlines)
            if name in self._held:
                self._drop(name)

    def count(self, tenant: str | None = None) -> int:
        """How many leases are open, of one tenant or of all."""
        return len(self._held) if tenant is None else sum(held.tenant == tenant for held in self._held.values())

    def _drop(self, name: str) -> None:
        self._let_go(self._held.pop(name).entries)
        if len(self._deadlines) > 2 * len(self._held) + 64:
            self._deadlines = [item for item in self._deadlines if item[1] in self._held]
            heapq.heapify(self._deadlines)
