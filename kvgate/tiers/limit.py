"""A tier that does a few operations at a time; the others wait their turn, in order, for a bounded time."""

from __future__ import annotations

import asyncio

from kvgate.errors import TierBusy
from kvgate.tiers.base import SharedTier
from kvgate.tiers.rules import TierRules
from kvgate.tiers.turns import Turn, Turns
from kvgate.tiers.wrapper import RELEASING, Operation, T, Work, Wrapper

_WAITING = 8
"""Operations that may wait, for each one that may be under way."""

_WAIT_SHARE = 0.5
"""The part of an operation's time that it may wait for its turn. What is left is the tier's own: an operation that only
waited ends with TierBusy, and nobody takes the tier for away because it has much to do."""


class Limit(Wrapper):
    """At most `rules.operations` operations at once, and `rules.in_flight` bytes, but always one operation.

    What is over that waits. Raises TierBusy when too many wait, and for one that waited too long. A turn lasts until
    the operation has really ended.
    """

    def __init__(self, tier: SharedTier, rules: TierRules) -> None:
        super().__init__(tier)
        self.turns = Turns(rules.operations, rules.in_flight, _WAITING * rules.operations)
        self._rules = rules

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """See Wrapper."""
        if operation in RELEASING:
            return await work()
        turn = self.turns.join(nbytes)
        try:
            if not turn.on:
                allowed_s = self._rules.allowed_s(nbytes, lookup=operation == "lookup")
                await _wait(turn, allowed_s * _WAIT_SHARE)
            return await work()
        finally:
            self.turns.leave(turn)


async def _wait(turn: Turn, timeout_s: float) -> None:
    """Raises TierBusy when the turn does not come in time."""
    on = asyncio.Event()
    turn.begun = on.set
    try:
        async with asyncio.timeout(timeout_s):
            await on.wait()
    except TimeoutError:
        if not turn.on:
            raise TierBusy("the tier has too much to do to come to this in time") from None
