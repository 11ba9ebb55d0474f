"""Which tenant gives when a tier needs room: floors, weights and limits.

Invariants
1. For another's sake, no tenant gives while it has no more than its floor. Nor is one brought below its floor, unless
   by the last object that it gives to a tenant which has not got its own floor yet.
2. Among those that may give, the one with the most bytes for its weight gives first; who asks is counted with what it
   asks for, and gives last while it stays within its floor. So a full tier comes to where every tenant has its floor,
   or as much for its weight as every other, whichever is more.
3. Nobody is asked to give while there is room, except a tenant over its limit, for its own sake: what nobody else
   wants, anyone may have.

Bytes are those of bodies. Synchronous and pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from kvgate.auth.limits import Share
from kvgate.auth.tenants import Tenant
from kvgate.errors import ConfigError

_EQUAL = Share()


class Shares:
    """The parts that tenants have of one tier. Those that nothing is known of have a weight of 1, and no more."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}

    def load(self, tier: str, capacity_nbytes: int | None, tenants: Iterable[Tenant]) -> None:
        """Take what the configuration says of a tier. Raises ConfigError for floors that do not fit into it."""
        self._shares = {tenant.name: tenant.share(tier) for tenant in tenants}
        check_floors(tier, capacity_nbytes, {name: share.floor_nbytes for name, share in self._shares.items()})

    def of(self, tenant: str) -> Share:
        """What a tenant may have."""
        return self._shares.get(tenant, _EQUAL)

    def weight(self, tenant: str) -> float:
        """By which a tenant has its part, of the tier and of what is written to it."""
        return self.of(tenant).weight

    def excess(self, tenant: str, used_nbytes: int, nbytes: int) -> int:
        """By how much `nbytes` more would pass a tenant's limit; 0 when they fit."""
        limit = self.of(tenant).limit_nbytes
        return 0 if limit is None else max(0, used_nbytes + nbytes - limit)

    def givers(self, used: Mapping[str, int], asker: str | None, nbytes: int) -> Givers:
        """Who gives in turn so that `asker` gets `nbytes`, or, for None, nobody in particular.

        used: the bytes that each tenant has now
        """
        return Givers(self, used, asker, nbytes)

    def fair_nbytes(self, tenant: str, capacity_nbytes: int) -> int:
        """What a tenant has of a tier when every tenant of the configuration wants as much as it can get."""
        shares = {**self._shares, tenant: self.of(tenant)}
        low, high = 0.0, capacity_nbytes / min(share.weight for share in shares.values())
        for _ in range(64):
            level = (low + high) / 2
            if sum(_at_level(share, level) for share in shares.values()) > capacity_nbytes:
                high = level
            else:
                low = level
        return min(capacity_nbytes, round(_at_level(shares[tenant], low)))


class Givers:
    """Tenants in the order in which they give. See the module."""

    def __init__(self, shares: Shares, used: Mapping[str, int], asker: str | None, nbytes: int) -> None:
        self._shares = shares
        self._used = dict(used)
        self._asker = asker
        self._asks_within_floor = False
        if asker is not None:
            self._used[asker] = self._used.get(asker, 0) + nbytes
            self._asks_within_floor = self._used[asker] <= shares.of(asker).floor_nbytes
        self._order = [self._place(tenant) for tenant in used if self._may_give(tenant)]
        heapq.heapify(self._order)

    def next(self) -> str | None:
        """Who gives now, unless its objects may not go; None when nobody does any more.

        To be followed by `give`, or by nothing where the tenant has nothing to give.
        """
        return heapq.heappop(self._order)[2] if self._order else None

    def give(self, tenant: str, nbytes: int) -> bool:
        """Let the tenant that `next` named give an object; False when it keeps it, and gives no more."""
        left = self._used[tenant] - nbytes
        floor = self._shares.of(tenant).floor_nbytes
        if tenant != self._asker and left < floor and not (self._asks_within_floor and self._used[tenant] > floor):
            return False
        self._used[tenant] = left
        if self._may_give(tenant):
            heapq.heappush(self._order, self._place(tenant))
        return True

    def _may_give(self, tenant: str) -> bool:
        return tenant == self._asker or self._used[tenant] >= self._shares.of(tenant).floor_nbytes

    def _place(self, tenant: str) -> tuple[bool, float, str]:
        last = tenant == self._asker and self._asks_within_floor
        return last, -self._used[tenant] / self._shares.of(tenant).weight, tenant


def check_floors(tier: str, capacity_nbytes: int | None, floors: Mapping[str, int]) -> None:
    """Raises ConfigError, which names the keys, where a tier has no room for all floors together."""
    if capacity_nbytes is not None and (total := sum(floors.values())) > capacity_nbytes:
        keys = ", ".join(f"tenants.{name}.tiers.{tier}.floor" for name, floor in floors.items() if floor)
        raise ConfigError(f"{keys}: {total} bytes together, and the tier has {capacity_nbytes}")


def _at_level(share: Share, level: float) -> float:
    """What a tenant has where every tenant has `level` bytes for each unit of its weight, or its floor."""
    most = max(float(share.floor_nbytes), share.weight * level)
    return most if share.limit_nbytes is None else min(most, share.limit_nbytes)
