"""Placement: the parts that carry out where copies lie, put together.

copies      which tiers hold what
room        what is evicted so that something else fits
promotion   from lower tiers to memory, when something is read
mover       one copy made from another, in whichever tier
demotion    to lower tiers, in the background
recoder     a copy made anew in place, compressed or not
backlog     what private tiers are still to get
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgate.metrics import Metrics
from kvgate.store.backlog import Backlog
from kvgate.store.copies import Copies
from kvgate.store.demotion import Demotion
from kvgate.store.mover import Mover
from kvgate.store.promotion import Promotion
from kvgate.store.recoder import Recoder
from kvgate.store.room import Room

if TYPE_CHECKING:
    from kvgate.store.config import StoreConfig


class Placement:
    """See the module."""

    def __init__(self, copies: Copies, metrics: Metrics, config: StoreConfig) -> None:
        self.backlog = Backlog()
        self.copies = copies
        self.room = Room(copies, self.backlog, metrics)
        self.promotion = Promotion(copies, self.room, metrics)
        self.mover = Mover(copies, self.room, self.promotion, config)
        self.recoder = Recoder(copies, self.room, self.promotion)
        self.demotion = Demotion(copies, self.mover, self.backlog, metrics)
        self.room.spill_to = self.demotion.spill
        self.room.waiting_for = self.demotion.waiting
        self.promotion.fill_in = self.demotion.fill_in
