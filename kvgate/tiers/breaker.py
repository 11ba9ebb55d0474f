"""A tier that is left alone while it is away, and found again by asking it now and then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from kvgate.errors import CorruptCopy, NotAdmitted, NotInTier, TierBusy, TierError, TierFull, TierSkipped
from kvgate.tiers.base import Copy, Name, Record, SharedTier
from kvgate.tiers.circuit import Circuit, Health
from kvgate.tiers.rules import TierRules
from kvgate.tiers.wrapper import RELEASING, Operation, T, Work, Wrapper

logger = logging.getLogger(__name__)

_ANSWERS = (NotInTier, NotAdmitted, TierFull, CorruptCopy)
"""Errors by which a tier shows that it is there."""

_NOBODY = Name("kvgate", "kvgate", "is-it-there")


class Breaker(Wrapper):
    """Raises TierSkipped at once while the tier is away: after `rules.failures` transient errors in a row.

    The trials that find it again are lookups of the breaker's own, every `rules.retry_after`: no caller waits for one,
    and a tier is found again when nobody asks for it. A tier that is away at the start is started later.
    """

    def __init__(self, tier: SharedTier, rules: TierRules, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(tier)
        self._circuit = Circuit(rules.failures, rules.retry_after, clock)
        self._started = False
        self._trials: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health:
        """How the tier is now."""
        return self._circuit.health

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See Tier. Raises TierError only for what waiting does not mend."""
        try:
            await self.tier.start(found)
            self._started = True
        except TierError as error:
            if not error.transient:
                raise
            self._circuit.trip(str(error))
            self._note_away()

    async def close(self) -> None:
        """See Tier."""
        if self._trials is not None:
            self._trials.cancel()
            await asyncio.gather(self._trials, return_exceptions=True)
        await super().close()

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """See Wrapper."""
        if operation in RELEASING:
            return await work()
        if self._circuit.state != "closed":
            raise TierSkipped(f"the {self.name} tier is away: {self._circuit.health.error}")
        period = self._circuit.period
        try:
            result = await work()
        except _ANSWERS:
            self._circuit.succeeded(period)
            raise
        except TierBusy:
            raise
        except TierError as error:
            self._fail(period, error) if error.transient else self._note(error)
            raise
        self._circuit.succeeded(period)
        return result

    def _note(self, error: TierError) -> None:
        """Tell the operator of an error that waiting does not mend."""
        if self._circuit.health.error != str(error):
            logger.warning("the %s tier failed: %s", self.name, error)
        self._circuit.note(str(error))

    def _fail(self, period: int, error: TierError) -> None:
        was_closed = self._circuit.state == "closed"
        self._circuit.failed(period, str(error))
        if was_closed and self._circuit.state == "open":
            self._note_away()

    def _note_away(self) -> None:
        logger.warning("the %s tier is away: %s", self.name, self._circuit.health.error)
        if self._trials is None or self._trials.done():
            self._trials = asyncio.create_task(self._try_until_found())

    async def _try_until_found(self) -> None:
        began = time.monotonic()
        while self._circuit.state != "closed":
            await asyncio.sleep(self._circuit.due_s())
            if self._circuit.try_now():
                await self._try()
        logger.info("the %s tier is back after %.1f s", self.name, time.monotonic() - began)

    async def _try(self) -> None:
        period = self._circuit.period
        try:
            if not self._started:
                await self.tier.start(_found_nothing)
                self._started = True
            await self.tier.lookup([_NOBODY])
        except _ANSWERS:
            self._circuit.succeeded(period)
        except TierBusy:
            pass
        except TierError as error:
            self._circuit.failed(period, str(error))
        except Exception:
            logger.exception("the %s tier cannot be tried", self.name)
        else:
            self._circuit.succeeded(period)
        finally:
            self._circuit.left(period)


def _found_nothing(_: Iterable[tuple[Record, Copy]]) -> None:
    """What a shared tier reports at its start."""
