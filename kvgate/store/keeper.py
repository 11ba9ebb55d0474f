"""What owners ask to be kept, or to go: their pins and ends are remembered in a file, and carried out.

`retention` decides. What an answer says is in the file before; what has ended is found by nobody from that moment on,
and is removed here within a few seconds, a step at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from kvgate.errors import NoSuchBucket, TierError
from kvgate.metrics import Metrics
from kvgate.store.copies import Copies
from kvgate.store.durable import DurableFile, Statement
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry, Index
from kvgate.store.retention import NEVER_MS, Change, Mark, Pin, Place, Retention, Rule

logger = logging.getLogger(__name__)

SCHEMA = """
create table marks (
    tenant text not null, bucket text not null, key text not null, pin integer not null, pin_until_ms integer,
    expires_ms integer, version_ms integer not null, primary key (tenant, bucket, key)
) without rowid;
create table rules (
    tenant text not null, bucket text not null, prefix text not null, pin integer not null, pin_until_ms integer,
    ttl_ms integer, primary key (tenant, bucket, prefix)
) without rowid;
"""
_PUT_MARK = "insert or replace into marks values (?, ?, ?, ?, ?, ?, ?)"
_DROP_MARK = "delete from marks where tenant = ? and bucket = ? and key = ?"
_PUT_RULE = "insert or replace into rules values (?, ?, ?, ?, ?, ?)"
_DROP_MARKS = "delete from marks where tenant = ? and bucket = ?"
_DROP_RULES = "delete from rules where tenant = ? and bucket = ?"
_DROP_RULE = "delete from rules where tenant = ? and bucket = ? and prefix = ?"

_EVERY_S = 1.0
_STEP = 500
"""Objects looked at, or removed, before others have their turn."""

State = Literal["done", "missing", "refused"]
"""What has become of one object that a call named; refused is a hard pin for which there is no room."""


@dataclass(frozen=True, slots=True)
class RetentionUsage:
    """What a tenant has asked to be kept, and may."""

    pinned_objects: int
    pinned_nbytes: int
    pinned_limit_nbytes: int | None
    marks: int
    rules: list[tuple[str, Rule]]


class Keeper:
    """Carries out retention. All methods run on the event loop."""

    def __init__(
        self,
        *,
        index: Index,
        retention: Retention,
        copies: Copies,
        file: DurableFile,
        remove: Callable[[Entry], None],
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        """remove: makes an entry invisible, gives back its quota, and has what was said of its key forgotten"""
        self._index, self._retention, self._copies, self._file = index, retention, copies, file
        self._remove, self._metrics, self._now_ms = remove, metrics, now_ms
        self._loaded = asyncio.Event()
        self._next_sweep_ms: dict[Place, int] = {}

    # --- what owners ask ----------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, bucket: str, keys: Sequence[str], change: Change) -> list[State]:
        """Change what is said of objects, so that it survives; for each key what became of it.

        Raises NoSuchBucket, TooManyMarks and TierError, where those before may have been changed.
        """
        self._index.bucket(tenant, bucket)
        states: list[State] = []
        for start in range(0, len(keys), _STEP):
            states += await self._keep(tenant, bucket, keys[start : start + _STEP], change)
            await asyncio.sleep(0)
        return states

    async def _keep(self, tenant: str, bucket: str, keys: Sequence[str], change: Change) -> list[State]:
        states: list[State] = []
        before: list[tuple[Entry, Mark]] = []
        try:
            for key in keys:
                entry = self._index.get(tenant, bucket, key)
                if entry is None:
                    states.append("missing")
                    continue
                mark, fits = self._retention.mark(entry, change)
                states.append("done" if fits else "refused")
                if fits:
                    before.append((entry, mark))
        finally:
            try:
                await self._file.write([self._statement(entry.record[:2], entry.record.key) for entry, _ in before])
            except TierError:
                for entry, mark in reversed(before):
                    if entry.current:
                        self._retention.put_mark(entry.record[:2], entry.record.key, mark, entry)
                raise
        return states

    async def unpin(self, tenant: str, bucket: str, keys: Sequence[str]) -> None:
        """Take the pins of keys away, of those too that nothing lies under. Raises NoSuchBucket, TierError."""
        place = tenant, bucket
        for start in range(0, len(keys), _STEP):
            objects, statements = self._index.objects(tenant, bucket), []
            for key in keys[start : start + _STEP]:
                mark = self._retention.marked(place, key)
                if mark.pin:
                    self._retention.put_mark(
                        place, key, replace(mark, pin=Pin.NONE, pin_until_ms=None), objects.get(key)
                    )
                    statements.append(self._statement(place, key))
            await self._file.write(statements)

    async def keep_prefix(self, tenant: str, bucket: str, prefix: str, change: Change) -> Rule:
        """Change the rule of a prefix, so that it survives; the rule that there is then, empty for none.

        A lifetime holds at once. Pins are given to the objects that are there by `refresh_prefix`.
        Raises NoSuchBucket, TooManyMarks, TierError.
        """
        self._index.bucket(tenant, bucket)
        place = tenant, bucket
        rule = self._retention.rule(place, prefix, change)
        before = self._retention.rule(place, prefix, Change())
        self._retention.put_rule(place, rule)
        self._next_sweep_ms.pop(place, None)
        if rule == Rule(prefix):
            statement: Statement = _DROP_RULE, (*place, prefix)
        else:
            statement = _PUT_RULE, (*place, prefix, int(rule.pin), rule.pin_until_ms, rule.ttl_ms)
        try:
            await self._file.write([statement])
        except TierError:
            if self._retention.rule(place, prefix, Change()) == rule:
                self._retention.put_rule(place, before)
            raise
        return rule

    async def refresh_prefix(self, tenant: str, bucket: str, prefix: str) -> None:
        """Give every object under a prefix the pin that it should have, a step at a time."""
        after, more = "", True
        while more:
            try:
                page = self._index.list(tenant, bucket, prefix, "", after, _STEP)
            except NoSuchBucket:
                return
            after, more = page.next_after, page.truncated
            for record in page.records:
                entry = self._index.get(tenant, bucket, record.key)
                if entry is not None:
                    self._retention.refresh(entry)
            await asyncio.sleep(0)

    def refresh_soon(self, tenant: str, bucket: str, prefix: str) -> None:
        """`refresh_prefix` in the background."""
        self._copies.spawn(self.refresh_prefix(tenant, bucket, prefix))

    async def forget(self, entry: Entry) -> None:
        """Forget what was said of the key of an entry that its owner has deleted. Raises TierError."""
        place, key = entry.record[:2], entry.record.key
        if self._retention.forget(place, key):
            await self._file.write([self._statement(place, key)])

    def forget_later(self, entry: Entry) -> None:
        """`forget`, in the file at the next step: until then a crash leaves a pin on a key that nothing has."""
        place, key = entry.record[:2], entry.record.key
        if self._retention.forget(place, key):
            self._retention.outdated.append((place, key))

    async def forget_bucket(self, tenant: str, bucket: str) -> None:
        """Forget what was said of a bucket that is deleted."""
        await self._file.write([(_DROP_MARKS, (tenant, bucket)), (_DROP_RULES, (tenant, bucket))])

    def usage(self, tenant: str) -> RetentionUsage:
        """The tenant's own numbers and rules."""
        objects, nbytes, marks = self._retention.usage(tenant)
        limit = self._retention.limit_nbytes(tenant)
        rules = list(self._retention.rules(tenant))
        return RetentionUsage(objects, nbytes, None if limit == float("inf") else int(limit), marks, rules)

    # --- life ---------------------------------------------------------------------------------------------------------

    def load(self, timed: Sequence[Entry]) -> None:
        """Take over what survived, for the objects that have. Blocks.

        timed: entries whose PUT gave them an end
        """
        self._file.open()
        for tenant, bucket, prefix, pin, pin_until_ms, ttl_ms in self._file.rows("select * from rules"):
            self._retention.put_rule((tenant, bucket), Rule(prefix, Pin(pin), pin_until_ms, ttl_ms))
        marked = self._file.rows("select * from marks")
        for tenant, bucket, key, pin, pin_until_ms, expires_ms, version_ms in marked:
            mark = Mark(Pin(pin), pin_until_ms, expires_ms, version_ms)
            self._retention.put_mark((tenant, bucket), key, mark, None)
        appeared = set(timed)
        for entry in timed:
            self._retention.appeared(entry)
        for tenant, bucket, key, *_ in marked:
            current: Entry | None = None
            with contextlib.suppress(NoSuchBucket):
                current = self._index.objects(tenant, bucket).get(key)
            if current is not None:
                if current not in appeared:
                    self._retention.appeared(current)
            elif not self._retention.marked((tenant, bucket), key).pin:
                self._retention.forget((tenant, bucket), key)
                self._retention.outdated.append(((tenant, bucket), key))
        self._loaded.set()

    def close(self) -> None:
        """Wait for what is being written."""
        self._file.close()

    async def run(self) -> None:
        """Give pinned prefixes their due after a start, then do every second what time brings, until cancelled."""
        await self._loaded.wait()
        for (tenant, bucket), rule in self._retention.pinning_rules():
            await self.refresh_prefix(tenant, bucket, rule.prefix)
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.step()
            except Exception:
                logger.exception("a step of retention failed")

    async def step(self) -> None:
        """End the pins whose deadline has come, and remove what has ended."""
        await self._end_pins()
        while due := self._retention.take_due(_STEP):
            await self._delete(due)
            await asyncio.sleep(0)
        for place in self._retention.places_with_ttl():
            if self._next_sweep_ms.get(place, 0) <= self._now_ms():
                await self._sweep(place)
        if outdated := self._retention.outdated[:_STEP]:
            del self._retention.outdated[: len(outdated)]
            await self._file.write([self._statement(*each) for each in outdated])

    async def remove_ended(self, tenant: str, bucket: str) -> None:
        """Remove what has ended in a bucket that looks empty, so that it is. Raises NoSuchBucket."""
        if not self._retention.watches(tenant, bucket):
            return
        objects, after = self._index.objects(tenant, bucket), ""
        while page := list(islice(objects.irange(after or None, inclusive=(False, False)), _STEP)):
            ended = [entry for entry in map(objects.__getitem__, page) if self._retention.is_over(entry)]
            if len(ended) < len(page):
                return  # it does not look empty
            await self._delete(ended)
            await asyncio.sleep(0)
            after = page[-1]

    async def _end_pins(self) -> None:
        for place, name, is_prefix in self._retention.ended_pins():
            change = Change(pin=Pin.NONE)
            try:
                if is_prefix:
                    await self.keep_prefix(*place, name, change)
                    await self.refresh_prefix(*place, name)
                elif (entry := self._index.get(*place, name)) is not None:
                    self._retention.mark(entry, change)
                    await self._file.write([self._statement(place, name)])
                elif self._retention.forget(place, name):
                    await self._file.write([self._statement(place, name)])
            except NoSuchBucket:
                continue

    async def _sweep(self, place: Place) -> None:
        """Remove what the rules of a bucket have brought to its end, and note when to look again.

        That is when the next one ends, but never so soon that looking takes more than a twentieth of the time.
        """
        began_ms = self._now_ms()
        soonest_ms = NEVER_MS
        for rule in self._retention.rules_of(place):
            if rule.ttl_ms is None:
                continue
            soonest_ms = min(soonest_ms, began_ms + rule.ttl_ms)  # of what is written from now on
            try:
                objects = self._index.objects(*place)
            except NoSuchBucket:
                return
            after = ""
            while page := list(islice(objects.irange(max(after, rule.prefix), inclusive=(not after, True)), _STEP)):
                entries = [objects[key] for key in page if key.startswith(rule.prefix)]
                over = [entry for entry in entries if self._retention.is_over(entry)]
                ends_ms = [self._retention.ends_ms(entry) or NEVER_MS for entry in entries]
                soonest_ms = min([soonest_ms, *(end_ms for end_ms in ends_ms if end_ms > began_ms)])
                if not await self._delete(over):
                    soonest_ms = began_ms  # what is leased now
                if len(entries) < len(page):
                    break
                after = page[-1]
                await asyncio.sleep(0)
        took_ms = self._now_ms() - began_ms
        self._next_sweep_ms[place] = max(soonest_ms, self._now_ms() + max(1000, 20 * took_ms))

    async def _delete(self, entries: Sequence[Entry]) -> bool:
        """Remove entries that have ended, but for those that are leased; whether there were none of these."""
        tasks = []
        for entry in entries:
            if not entry.current or entry.leases:
                continue
            self._remove(entry)
            tasks += self._copies.drop(entry)
            self._copies.ghosts.note(entry.record, Fate.EXPIRED)
            self._metrics.expired.inc()
        if tasks:
            await asyncio.wait(tasks)
        return not any(entry.current for entry in entries)

    def _statement(self, place: Place, key: str) -> Statement:
        """What makes the file say of a key what is said of it now."""
        mark = self._retention.marked(place, key)
        if mark == Mark():
            return _DROP_MARK, (*place, key)
        row = (*place, key, int(mark.pin), mark.pin_until_ms, mark.expires_ms, mark.version_ms)
        return _PUT_MARK, row
