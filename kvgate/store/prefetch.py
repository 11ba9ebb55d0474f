"""Prefetch: objects that will probably be read are brought to memory before their GETs come.

What is guessed from the requests of other KV systems' clients, and what engines ask for, has the same limits.

Invariants
1. What is being brought to memory ahead of requests, or lies there unread, takes at most `share` of memory; where it is
   for several tenants, none of them begins more when it has an equal part of that.
2. It stays in memory at most `hold` without being read; then it is dropped, as it was never asked for. Its copy below
   stays.
3. Nothing waits for a prefetch but a GET of the same object, which would have to read it itself. At most `concurrency`
   objects are read at a time, and at most _MAX_QUEUED a tenant wait for it; more are not prefetched.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvgate.config import Seconds, option
from kvgate.errors import ConfigError
from kvgate.metrics import Metrics
from kvgate.store.copies import MEMORY
from kvgate.store.index import Entry
from kvgate.store.placement import Placement

_MAX_QUEUED = 1024


@dataclass(frozen=True)
class PrefetchConfig:
    """What is learnt from the requests of other KV systems' clients, and what is fetched ahead of time."""

    share: float = option(
        default=0.25,
        help="part of memory that may hold objects that were prefetched and not read yet; 0 prefetches none",
    )
    ahead: int = option(default=8, help="how many objects of a run are prefetched behind the one that was asked for")
    concurrency: int = option(default=2, help="objects prefetched at the same time")
    after_match: int = option(
        default=0,
        help="how many chunks of a `match` that lie in lower tiers are prefetched, from the first on; 0 leaves them to "
        "the reads that follow, more hides a slow tier from engines that take their time until they read",
    )
    hold: Seconds = option(default=Seconds(30.0), help="how long a prefetched object waits in memory for its GET")
    keys: int = option(default=50_000, help="keys of a tenant whose order is remembered, each in about half a kilobyte")
    models: int = option(default=100, help="models with metrics of their own; later ones are counted as `other`")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share: expected 0 to 1, got {self.share:g}")
        ranges = {
            "ahead": (0, 256),
            "after_match": (0, 65_536),
            "concurrency": (1, 64),
            "keys": (1, 10_000_000),
            "models": (0, 10_000),
        }
        for key, (lowest, highest) in ranges.items():
            if not lowest <= getattr(self, key) <= highest:
                raise ConfigError(f"{key}: expected {lowest} to {highest}, got {getattr(self, key)}")


@dataclass(slots=True)
class _Guess:
    """An entry that is being prefetched for a tenant, or lies in memory and has not been read; until `deadline`."""

    caller: str
    deadline: float
    arrived: bool = False
    read: bool = False


class Prefetch:
    """Brings entries to memory ahead of their GETs. All methods run on the event loop, and none of them waits."""

    def __init__(
        self,
        placement: Placement,
        config: PrefetchConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = placement
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._limit_nbytes = int(config.share * placement.copies.memory.limit())
        self._queues: OrderedDict[str, OrderedDict[Entry, float]] = (
            OrderedDict()
        )  # by tenant, the one whose turn it is first
        self._guesses: OrderedDict[Entry, _Guess] = OrderedDict()
        self._unread_nbytes: Counter[str] = Counter()  # by tenant, of the guesses
        self._running = 0

    @property
    def unread_nbytes(self) -> int:
        """Bytes of memory taken for what has not been read."""
        return self._unread_nbytes.total()

    def want(self, caller: str, entries: Iterable[Entry]) -> int:
        """Prefetch entries for a tenant that lie in lower tiers only, in this order, when there is room for them.

        How many of them wait or are being brought to memory now.
        """
        now = self._clock()
        wanted = 0
        for entry in entries:
            if entry in self._guesses or not self._is_below(entry):
                continue
            if not 0 < entry.record.nbytes <= self._limit_nbytes:
                continue
            queue = self._queues.setdefault(caller, OrderedDict())
            if len(queue) < _MAX_QUEUED:
                queue.setdefault(entry, now)
            wanted += entry in queue
        self._start_next()
        return wanted

    def note_read(self, entry: Entry) -> None:
        """Note that an entry is being read by a request."""
        guess = self._guesses.get(entry)
        if guess is None:
            return
        guess.read = True
        if guess.arrived:
            (self._metrics.prefetch_useful if entry.has_copy(MEMORY) else self._metrics.prefetch_wasted).inc()
            self._end(entry)

    def expire(self) -> None:
        """Give up what has waited too long for its GET, or has been evicted, and fetch what there is room for then."""
        now = self._clock()
        for entry, guess in list(self._guesses.items()):
            if not guess.arrived or (entry.has_copy(MEMORY) and now < guess.deadline):
                continue
            self._metrics.prefetch_wasted.inc()
            self._end(entry)
            if entry.has_copy(MEMORY) and entry.has_copy(*self._placement.copies.lower_ranks) and not entry.leases:
                self._placement.copies.drop_copy(entry, MEMORY)
        self._start_next()

    def stop(self) -> None:
        """Begin nothing more."""
        self._limit_nbytes = -1
        self._queues.clear()

    def _start_next(self) -> None:
        """Begin with what is first in the queues, the tenants in turn, as far as the limits allow."""
        stuck = 0  # tenants in a row that can begin nothing now
        while stuck < len(self._queues) and self._running < self._config.concurrency:
            caller, queue = next(iter(self._queues.items()))
            self._queues.move_to_end(caller)
            entry = self._first(queue)
            if entry is None:
                del self._queues[caller]
            elif self._may_start(caller, entry.record.nbytes):
                del queue[entry]
                self._start(caller, entry)
                stuck = 0
            else:
                stuck += 1

    def _first(self, queue: OrderedDict[Entry, float]) -> Entry | None:
        """The first entry of a queue for which it is not too late; the others are taken out."""
        earliest = self._clock() - self._config.hold
        while queue:
            entry, since = next(iter(queue.items()))
            if since >= earliest and entry not in self._guesses and self._is_below(entry):
                return entry
            del queue[entry]
        return None

    def _may_start(self, caller: str, nbytes: int) -> bool:
        callers = len(self._queues.keys() | +self._unread_nbytes)
        return (
            self.unread_nbytes + nbytes <= self._limit_nbytes
            and self._unread_nbytes[caller] + nbytes <= self._limit_nbytes // callers
        )

    def _start(self, caller: str, entry: Entry) -> None:
        self._guesses[entry] = _Guess(caller, self._clock() + self._config.hold)
        self._unread_nbytes[caller] += entry.record.nbytes
        self._running += 1
        self._placement.copies.spawn(self._fetch(entry))

    async def _fetch(self, entry: Entry) -> None:
        try:
            if self._is_below(entry) and not self._placement.promotion.is_running(entry):
                rank = next(rank for rank in self._placement.copies.lower_ranks if entry.copies[rank] is not None)
                await self._placement.promotion.promote(entry, rank)
                self._arrive(entry)
        finally:
            self._running -= 1
            if not self._guesses[entry].arrived:
                self._end(entry)
            self._start_next()

    def _arrive(self, entry: Entry) -> None:
        if not entry.has_copy(MEMORY):  # there was no room, or the copy below was bad
            return
        guess = self._guesses[entry]
        self._metrics.prefetched.inc()
        if guess.read:  # its GET came meanwhile, and has waited less
            self._metrics.prefetch_useful.inc()
        else:
            guess.arrived = True

    def _end(self, entry: Entry) -> None:
        guess = self._guesses.pop(entry)
        self._unread_nbytes[guess.caller] -= entry.record.nbytes

    def _is_below(self, entry: Entry) -> bool:
        """Whether an entry is there, and only in lower tiers."""
        return entry.current and not entry.has_copy(MEMORY)
