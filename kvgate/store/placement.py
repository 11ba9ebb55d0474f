"""Placement: the parts that carry out where copies lie, put together.

copies      which tiers hold what
room        what is evicted so that something else fits
promotion   from lower tiers to memory, when something is read
demotion    from memory to lower tiers, in the background or before a PUT is answered
backlog     what is still on its way down
"""

from __future__ import annotations

from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import Copies
from kvgate.store.demotion import Demotion
from kvgate.store.promotion import Promotion
from kvgate.store.room import Room


class Placement:
    """See the module."""

    def __init__(self, copies: Copies, metrics: Metrics) -> None:
        self.backlog = Backlog()
        self.copies = copies
        self.room = Room(copies, self.backlog, metrics)
        self.promotion = Promotion(copies, self.room, metrics)
        self.demotion = Demotion(copies, self.room, self.backlog, metrics)
