"""Placement: the parts that carry out where copies lie, put together.

copies      which tiers hold what
room        what is evicted so that something else fits
promotion   from lower tiers to memory, when something is read
demotion    from memory to lower tiers, in the background or before a PUT is answered
backlog     what is still on its way down
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import Copies
from kvgate.store.demotion import Demotion
from kvgate.store.eviction.base import EvictionPolicy
from kvgate.store.index import Entry, Index
from kvgate.store.promotion import Promotion
from kvgate.store.quota import Quota
from kvgate.store.room import Room
from kvgate.tiers.base import Tier
from kvgate.tiers.host import HostTier


class Placement:
    """See the module."""

    def __init__(
        self,
        memory: HostTier,
        lower: Sequence[Tier],
        index: Index,
        quota: Quota,
        policy: Callable[[], EvictionPolicy[Entry]],
        metrics: Metrics,
    ) -> None:
        self.backlog = Backlog()
        self.copies = Copies(memory, lower, index, quota, policy, metrics)
        self.room = Room(self.copies, self.backlog, metrics)
        self.promotion = Promotion(self.copies, self.room, metrics)
        self.demotion = Demotion(self.copies, self.room, self.backlog, metrics)
