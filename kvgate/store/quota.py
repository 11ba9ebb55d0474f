"""How many bytes each tenant's objects have, and may have.

An object counts once with the length of its body, however many tiers hold it. Uploads count from their start, so that
many at once cannot pass the quota together.
"""

from __future__ import annotations

from collections import Counter

from kvgate.errors import QuotaExceeded


class Quota:
    """Bytes by tenant. Synchronous and pure."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def used(self, tenant: str) -> int:
        """Bytes of the tenant's objects and of its uploads in flight."""
        return self._used[tenant]

    def excess(self, tenant: str, limit_nbytes: int | None, nbytes: int) -> int:
        """By how much `nbytes` more would pass the quota; 0 when they fit."""
        return 0 if limit_nbytes is None else max(0, self._used[tenant] + nbytes - limit_nbytes)

    def take(self, tenant: str, limit_nbytes: int | None, nbytes: int) -> None:
        """Count `nbytes` more. Raises QuotaExceeded, with nothing counted."""
        if excess := self.excess(tenant, limit_nbytes, nbytes):
            raise QuotaExceeded(
                f"{nbytes} bytes more would pass the quota of {limit_nbytes} bytes by {excess}; "
                "delete objects or have the quota raised"
            )
        self._used[tenant] += nbytes

    def add(self, tenant: str, nbytes: int) -> None:
        """Count what is there already, whatever the quota says."""
        self._used[tenant] += nbytes

    def give_back(self, tenant: str, nbytes: int) -> None:
        """Count `nbytes` less."""
        self._used[tenant] -= nbytes
