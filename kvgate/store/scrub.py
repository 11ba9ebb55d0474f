"""The scrubber: reads the copies that nobody reads, so that a bad one is found while there is another to mend it from.

Invariants
1. A pass looks at every object that is there from its beginning to its end, in the order of tenants, buckets and keys.
   It goes on after a restart where it was, give or take what it looked at in _SAVE_EVERY_S.
2. It reads at most `rate` bytes a second, and gives way to requests: while objects are on their way to or from lower
   tiers, it takes at most one step of _STEP_NBYTES in _MOST_PAUSE_S. It uses none of the memory that holds chunks.
3. What it finds bad is dropped as a read would drop it, and written anew where another tier holds the object.

What it tells of an object is the first 8 hex digits of a hash.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvgate.chunk.key import ChunkKey, ManifestKey, parse_key
from kvgate.config import KiB, MiB, Seconds, Size, option
from kvgate.errors import ConfigError, CorruptCopy, InvalidKey, NotInTier, TierError
from kvgate.memory.arena import Arena
from kvgate.memory.digest import combine_blocks
from kvgate.metrics import Metrics
from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry, Index
from kvgate.store.placement import Placement
from kvgate.tiers.base import Copy, Inspected, Name

logger = logging.getLogger(__name__)

_STEP_NBYTES = 4 * MiB
_LEAST_NBYTES = 64 * KiB
"""What a small object counts for: to open a file costs more than to read it."""

_MOST_PAUSE_S = 1.0
_LOOK_AGAIN_S = 0.02
_PAGE = 256
_SAVE_EVERY_S = 10.0
_RESUME_AFTER_S = 30.0
_STRAY_AGE_S = 3600.0
_MAX_FINDINGS = 32
_OWNER = "scrub"

What = Literal["corrupt", "gone"]
Outcome = Literal["repaired", "elsewhere", "lost"]


@dataclass(frozen=True)
class ScrubConfig:
    """How the copies that nobody reads are verified."""

    rate: Size = option(
        default=Size(16 * MiB),
        help="bytes a second that are read to verify copies, an object counting as 64KiB at least; 0 verifies none",
    )
    interval: Seconds = option(
        default=Seconds(7 * 86400.0),
        help="how often a pass over all copies begins, or as soon as the last one has ended where that took longer; "
        "with 0 only when it is asked for",
    )
    shared: bool = option(
        default=False, help="whether copies in shared tiers are verified too, where reads may cost money"
    )

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise ConfigError(f"interval: expected 0 or more, got {self.interval:g}")


@dataclass
class Pass:
    """One pass over all copies: when (ms since the epoch; `ended_ms` is 0 while it goes on) and what it found.

    total_nbytes: what there was to read when it began
    copies, nbytes: verified so far
    corrupt, gone: bad copies; `gone` are those that the index named and the tier did not have
    unread:      copies whose tier failed, so that nothing is known of them
    repaired:    written anew from another tier; elsewhere: another tier has the object; lost: none has
    strays:      files that were no copy of anything, and have been set aside
    findings:    the last bad copies
    """

    began_ms: int
    total_nbytes: int
    ended_ms: int = 0
    copies: int = 0
    nbytes: int = 0
    corrupt: int = 0
    gone: int = 0
    unread: int = 0
    repaired: int = 0
    elsewhere: int = 0
    lost: int = 0
    strays: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


class Scrubber:
    """See the module. All methods run on the event loop."""

    def __init__(
        self,
        *,
        index: Index,
        placement: Placement,
        config: ScrubConfig,
        metrics: Metrics,
        state: Path | None,
        clock: Callable[[], float] = time.time,
        stray_age_s: float = _STRAY_AGE_S,
    ) -> None:
        """
        state: the file that keeps progress and the last report; None keeps neither
        clock: seconds since the epoch
        stray_age_s: how long a file must have been a stray before it is set aside
        """
        self._index = index
        self._placement = placement
        self._config = config
        self._metrics = metrics
        self._state = state
        self._clock = clock
        self._stray_age_s = stray_age_s
        tiers = placement.copies.tiers
        self._ranks = [rank for rank, tier in enumerate(tiers) if config.shared or not tier.shared]
        self._since_ms = self._now_ms()  # when the first pass began, or the interval before it
        self._running: Pass | None = None
        self._last: Pass | None = None
        self._cursor: Name | None = None
        self._asked = asyncio.Event()
        self._free_at_s = 0.0  # on the loop's clock: when the rate allows the next step
        self._saved_at_s = 0.0

    # --- what an operator asks ----------------------------------------------------------------------------------------

    def begin_now(self) -> bool:
        """Begin a pass at once; False when one goes on, or there are none (`rate: 0`)."""
        if not self._config.rate or self._running is not None:
            return False
        self._asked.set()
        return True

    def report(self) -> Mapping[str, Any]:
        """What is going on, and what the last pass found, as plain values."""
        config, aside = self._config, {}
        for tier in self._placement.copies.tiers:
            if isinstance(tier, Inspected):
                files, nbytes = tier.kept_aside()
                aside[tier.name] = {"files": files, "nbytes": nbytes}
        state = "off" if not config.rate else "running" if self._running is not None else "idle"
        due_s = self._due_s()
        return {
            "state": state,
            "tiers": [self._placement.copies.tiers[rank].name for rank in self._ranks],
            "rate": config.rate,
            "interval_s": config.interval,
            "pass_s": self._pass_s(),
            "next_ms": None if due_s is None or state != "idle" else int(due_s * 1000),
            "running": None if self._running is None else dataclasses.asdict(self._running),
            "last": None if self._last is None else dataclasses.asdict(self._last),
            "quarantine": aside,
        }

    def collect(self) -> None:
        """Bring the gauges of the metrics up to date."""
        running = self._running
        share = 0.0 if running is None else min(1.0, running.nbytes / max(1, running.total_nbytes))
        self._metrics.scrub_progress.set(share)
        self._metrics.scrub_last_end.set(0 if self._last is None else self._last.ended_ms / 1000)
        for tier in self._placement.copies.tiers:
            if isinstance(tier, Inspected):
                self._metrics.quarantine_bytes.labels(tier.name).set(tier.kept_aside()[1])

    # --- the passes ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make a pass again and again, until cancelled. After `load`."""
        if not self._config.rate:
            return
        try:
            while True:
                await self._wait_until_due()
                try:
                    await self._pass()
                except Exception:
                    logger.exception("a scrub failed")
                    self._running, self._cursor = None, None
        finally:
            if self._state is not None:
                _write(self._state, self._content())  # a few kilobytes, at the very end

    async def _wait_until_due(self) -> None:
        due_s = self._due_s()
        left_s = None if due_s is None else max(0.0, due_s - self._clock())
        if self._running is not None:
            left_s = _RESUME_AFTER_S  # first the gateway has to get ready
        try:
            async with asyncio.timeout(left_s):
                await self._asked.wait()
        except TimeoutError:
            pass
        self._asked.clear()

    def _due_s(self) -> float | None:
        """When the next pass is to begin, in seconds since the epoch; None when only on demand."""
        return self._since_ms / 1000 + self._config.interval if self._config.interval else None

    async def _pass(self) -> None:
        now_ms = self._now_ms()
        if self._running is None:
            self._running, self._cursor, self._since_ms = Pass(now_ms, self._there_nbytes()), None, now_ms
        running = self._running
        logger.info("a scrub of %d bytes begins", running.total_nbytes - running.nbytes)
        with _Window() as window:
            while page := self._index.after(self._cursor, _PAGE):
                for entry in page:
                    for rank in self._ranks:
                        await self._inspect(running, entry, rank, window)
                    self._cursor = Name(*entry.record[:3])
                    await self._save_sometimes()
        for rank in self._ranks:
            tier = self._placement.copies.tiers[rank]
            if isinstance(tier, Inspected):
                running.strays += await tier.set_strays_aside(self._stray_age_s)
        running.ended_ms = self._now_ms()
        self._last, self._running, self._cursor = running, None, None
        self._metrics.scrub_strays.inc(running.strays)
        self._metrics.scrub_passes.inc()
        await self._save()
        bad = running.corrupt + running.gone
        logger.info("the scrub has ended: %d copies verified, %d bad, %d lost", running.copies, bad, running.lost)

    async def _inspect(self, running: Pass, entry: Entry, rank: int, window: _Window) -> None:
        """Verify one copy, and act where it is bad."""
        copy = entry.copies[rank]
        if copy is None or not entry.current:
            return
        try:
            if rank == MEMORY:
                await self._verify_in_memory(running, entry, copy)
            else:
                await self._verify_below(running, entry, rank, copy, window)
        except (CorruptCopy, NotInTier) as error:
            if entry.current and entry.copies[rank] is copy:  # else it has been dropped while it was read
                await self._found(running, entry, rank, copy, error)
        except TierError as error:
            running.unread += 1
            self._count(rank, "unread")
            logger.warning("a copy in the %s tier could not be verified: %s", self._name(rank), error)
        else:
            running.copies += 1
            self._count(rank, "good")

    async def _verify_in_memory(self, running: Pass, entry: Entry, copy: Copy) -> None:
        memory, record = self._placement.copies.memory, entry.record
        for start in range(0, max(record.nbytes, 1), _STEP_NBYTES):
            stop = min(start + _STEP_NBYTES, record.nbytes)
            await self._pace(stop - start)
            (await memory.lease(record, copy, start, stop)).release()
            self._read(running, stop - start)

    async def _verify_below(self, running: Pass, entry: Entry, rank: int, copy: Copy, window: _Window) -> None:
        tier, record = self._placement.copies.tiers[rank], entry.record
        await self._pace(min(record.nbytes, _STEP_NBYTES))
        reader = tier.inspect(record, copy) if isinstance(tier, Inspected) else tier.open(record, copy)
        blocks: array[int] = array("Q")
        try:
            for start in range(0, max(record.nbytes, 1), _STEP_NBYTES):
                count = min(_STEP_NBYTES, record.nbytes - start)
                if start:
                    await self._pace(count)
                with window.lease.share() as lease:
                    blocks += await reader.read_into(start, lease, count)
                self._read(running, count)
        finally:
            await reader.close()
        if combine_blocks(blocks, record.nbytes) != record.crc64nvme:
            raise CorruptCopy("the bytes do not match the digest of the whole")

    # --- what is bad --------------------------------------------------------------------------------------------------

    async def _found(self, running: Pass, entry: Entry, rank: int, copy: Copy, error: TierError) -> None:
        what: What = "corrupt" if isinstance(error, CorruptCopy) else "gone"
        self._placement.copies.drop_bad_copy(entry, rank, copy, error)
        outcome = await self._mend(entry, rank)
        self._count(rank, what)
        self._metrics.scrub_outcomes.labels(outcome).inc()
        for name in (what, outcome):
            setattr(running, name, getattr(running, name) + 1)
        kind, digits = _identity(entry.record.key)
        finding = {"at_ms": self._now_ms(), "tier": self._name(rank), "kind": kind, "hash": digits}
        running.findings = [*running.findings, {**finding, "what": what, "outcome": outcome}][-_MAX_FINDINGS:]
        logger.warning(
            "scrub: the copy of %s %s in the %s tier was %s: %s", kind, digits, self._name(rank), what, outcome
        )

    async def _mend(self, entry: Entry, rank: int) -> Outcome:
        """Write a copy anew that has been dropped from a lower tier, from what another tier holds."""
        copies = self._placement.copies
        copies.lease(entry)
        try:
            if rank != MEMORY and entry.current and await self._bring_to_memory(entry):
                copy: Copy = entry.copies[MEMORY]
                with await copies.memory.lease(entry.record, copy, 0, entry.record.nbytes) as lease:
                    mover = self._placement.mover
                    await mover.publish(entry, rank, await mover.write(entry, rank, lease, copy.blocks))
                return "repaired" if entry.has_copy(rank) else "elsewhere"
        except (CorruptCopy, NotInTier) as error:  # of memory: a tier that is written to raises neither
            copies.drop_bad_copy(entry, MEMORY, copy, error)
        except TierError as error:
            logger.warning("a bad copy in the %s tier could not be replaced: %s", self._name(rank), error)
        finally:
            copies.unlease(entry)
        return "elsewhere" if entry.current else "lost"

    async def _bring_to_memory(self, entry: Entry) -> bool:
        """Whether memory holds the object, from whichever lower tier has a good copy. Raises TierError."""
        while not entry.has_copy(MEMORY):
            before = entry.copies
            below = next((rank for rank in self._placement.copies.lower_ranks if before[rank] is not None), None)
            if below is None:
                return False
            await self._placement.promotion.promote(entry, below)
            if entry.copies == before:  # no room
                return False
        return True

    # --- pace and progress --------------------------------------------------------------------------------------------

    async def _pace(self, nbytes: int) -> None:
        """Wait until the rate allows `nbytes` more, and a while longer for those who move objects now."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        delay_s = max(0.0, self._free_at_s - now_s)
        self._free_at_s = max(self._free_at_s, now_s) + max(nbytes, _LEAST_NBYTES) / self._config.rate
        await asyncio.sleep(delay_s)
        for _ in range(round(_MOST_PAUSE_S / _LOOK_AGAIN_S)):
            if not self._is_busy():
                break
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_busy(self) -> bool:
        return self._placement.backlog.count > 0 or self._placement.promotion.count > 0

    def _read(self, running: Pass, nbytes: int) -> None:
        running.nbytes += nbytes
        self._metrics.scrub_bytes.inc(nbytes)

    def _count(self, rank: int, result: str) -> None:
        self._metrics.scrub_copies.labels(self._name(rank), result).inc()

    def _there_nbytes(self) -> int:
        residents = self._placement.copies.residents
        return sum(residents[rank].total_nbytes() for rank in self._ranks)

    def _pass_s(self) -> float | None:
        """How long a pass over all that is there takes when nothing delays it."""
        if not self._config.rate:
            return None
        residents = self._placement.copies.residents
        objects = sum(residents[rank].total() for rank in self._ranks)
        return max(self._there_nbytes(), objects * _LEAST_NBYTES) / self._config.rate

    def _name(self, rank: int) -> str:
        return self._placement.copies.tiers[rank].name

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # --- what survives ------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take over what an earlier run has kept."""
        if self._state is None:
            return
        try:
            found = json.loads(await asyncio.to_thread(self._state.read_bytes))
            self._since_ms = int(found["since_ms"])
            self._last, self._running = (
                None if found[name] is None else Pass(**found[name]) for name in ("last", "running")
            )
            self._cursor = None if found["cursor"] is None else Name(*found["cursor"])
        except FileNotFoundError:
            return
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            logger.warning("what the scrubber kept cannot be read (%s); it begins anew", type(error).__name__)

    def _content(self) -> bytes:
        passes = {name: None if each is None else dataclasses.asdict(each) for name, each in self._passes()}
        return json.dumps({"since_ms": self._since_ms, "cursor": self._cursor, **passes}).encode()

    def _passes(self) -> list[tuple[str, Pass | None]]:
        return [("last", self._last), ("running", self._running)]

    async def _save_sometimes(self) -> None:
        if asyncio.get_running_loop().time() - self._saved_at_s >= _SAVE_EVERY_S:
            await self._save()

    async def _save(self) -> None:
        self._saved_at_s = asyncio.get_running_loop().time()
        if self._state is not None:
            try:
                await asyncio.to_thread(_write, self._state, self._content())
            except (OSError, RuntimeError) as error:  # no room on the disk, or no thread
                logger.warning("the scrubber's progress could not be saved: %s", error)


class _Window:
    """Memory to read through, apart from that of the chunks. A context manager."""

    def __init__(self) -> None:
        self._arena = Arena(_STEP_NBYTES, _STEP_NBYTES)
        self.lease = self._arena.reserve(_OWNER, _STEP_NBYTES)

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.release()
        self._arena.close()


def _identity(key: str) -> tuple[str, str]:
    """What kind of object a key names, and 8 hex digits by which those who know the key can tell that it is meant."""
    try:
        named = parse_key(key)
    except InvalidKey:
        named = None
    if isinstance(named, ChunkKey):
        return "chunk", named.hash[:8]
    if isinstance(named, ManifestKey):
        return "manifest", named.space[:8]
    return "object", hashlib.sha256(key.encode()).hexdigest()[:8]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)
