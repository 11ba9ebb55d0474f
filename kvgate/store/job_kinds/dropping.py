"""A copy is dropped from one tier, and the object stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvgate.store.copies import Copies
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Skipped


async def drop(copies: Copies, entry: Entry, rank: int, kept: Sequence[int]) -> None:
    """Drop an entry's copy in a tier, durably, while one of the tiers `kept` has one. Raises Skipped, TierError."""
    if not entry.current or not entry.has_copy(rank):
        return
    if entry.leases:
        raise Skipped("in use: leased or being read")
    if not entry.has_copy(*kept):
        raise Skipped(f"its only copy is in the {copies.tiers[rank].name} tier")
    for task in copies.drop_copy(entry, rank):
        error = await asyncio.shield(task)
        if error is not None:
            raise error
