"""pin: objects are kept from eviction. A prefix gets a rule, for objects to come as well."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

from kvgate.errors import PinRefused
from kvgate.store.index import Entry
from kvgate.store.job_kinds.base import Work
from kvgate.store.retention import Change, Pin


class PinJob:
    """See Kind."""

    name: ClassVar[str] = "pin"
    options: ClassVar[Mapping[str, bool]] = {"pin": False, "pin_s": False}
    moves: ClassVar[bool] = False
    home: ClassVar[int | None] = None

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pin = Pin[work.options.get("pin", "hard").upper()]
        pin_s = work.options.get("pin_s")
        until_ms = None if pin_s is None else time.time_ns() // 1_000_000 + round(pin_s * 1000)
        self._change = Change(pin=self._pin, pin_until_ms=until_ms)

    async def begin(self) -> None:
        """See Kind."""
        chosen = self._work.selection
        if chosen.keys is None:
            await self._work.keeper.keep_prefix(self._work.tenant, chosen.bucket, chosen.prefix, self._change)

    async def do(self, entry: Entry) -> None:
        """See Kind."""
        if self._work.selection.keys is None:
            self._work.retention.refresh(entry)
            refused = entry.pin.strength < self._pin.strength
        else:
            tenant, bucket, key = entry.record[:3]
            refused = await self._work.keeper.keep(tenant, bucket, [key], self._change) == ["refused"]
        if refused:
            raise PinRefused("there is no room for more hard pins (store.retention.pinned_share)")

    def why_not(self, key: str, entry: Entry | None) -> str:
        """See Kind."""
        if entry is None:
            return "there is no such object"
        return "" if entry.pin.strength >= self._pin.strength else f"its pin is {entry.pin.name.lower()}"
