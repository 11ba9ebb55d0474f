"""What is on its way into a tier, by tenant, so that many uploads at once do not pass a limit together."""

from __future__ import annotations

from array import array
from collections import Counter

from kvgate.memory.lease import Lease
from kvgate.tiers.base import Copy, Record, Upload


class Incoming:
    """Bytes on their way into one tier, by tenant."""

    def __init__(self) -> None:
        self._nbytes: Counter[str] = Counter()

    def of(self, tenant: str) -> int:
        """How many are on their way for a tenant."""
        return self._nbytes[tenant]

    def add(self, tenant: str, nbytes: int) -> None:
        """Count more, or with a negative number fewer."""
        self._nbytes[tenant] += nbytes


class CountedUpload:
    """An upload whose bytes count as incoming until it has ended.

    nbytes: those that have been counted already; what is written beyond them is counted as it comes
    """

    def __init__(self, upload: Upload, incoming: Incoming, tenant: str, nbytes: int) -> None:
        self._upload = upload
        self._incoming = incoming
        self._tenant = tenant
        self._counted = nbytes
        self._written = 0

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        self._written += stop - start
        if self._written > self._counted:
            self._incoming.add(self._tenant, self._written - self._counted)
            self._counted = self._written
        await self._upload.write(lease, start, stop)

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload."""
        try:
            return await self._upload.finish(record, blocks)
        finally:
            self._end()

    async def abort(self) -> None:
        """See Upload."""
        self._end()
        await self._upload.abort()

    def _end(self) -> None:
        self._incoming.add(self._tenant, -self._counted)
        self._counted = 0
