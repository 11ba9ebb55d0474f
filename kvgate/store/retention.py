"""Retention: what owners want kept (pins), and when objects end (expiry). Pure decisions.

Invariants
1. A pin is of a key: it holds for the version that is there and for those that come, until it is taken away, the key is
   deleted, or its deadline comes. An expiry is of one version: what is written anew begins to age again.
2. The pin of an entry is the strongest of its key's and of the rules whose prefix its key begins with.
3. When an entry ends is said by the most specific that says anything: a call about the object, its PUT, the rule of the
   longest prefix. While it has a hard pin it does not end.
4. `pinned_nbytes` is the sum over the entries in the index that have a hard pin of an owner's, and within the limits
   of `RetentionConfig`: what would pass them is pinned softly, or refused where a call named it.
5. `_due` holds exactly the entries in the index that have an end of their own (not by a rule).

The store's own pins, on manifests and unfinished uploads, are no business of this module.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from kvgate.chunk.key import KV_PREFIX, RESERVED_PREFIX
from kvgate.config import option, parse_seconds
from kvgate.errors import ConfigError, TooManyMarks
from kvgate.tiers.base import Record

if TYPE_CHECKING:
    from kvgate.store.index import Entry

TTL = "x-amz-meta-kvgate-ttl"
"""The attribute, and the header of an upload, that says how long an object lives."""

NEVER_MS = 1 << 62
"""The end of what a call has said to have none, whatever its PUT and the rules say."""

MAX_TTL_S = 100 * 365 * 86400.0
_LEASED_AGAIN_MS = 1000
_PINNED_AGAIN_MS = 60_000

Place = tuple[str, str]
"""A tenant and a bucket."""


class Pin(IntEnum):
    """How strongly an object is kept from eviction.

    HARD: never evicted
    SOFT: only when its tenant has nothing else that can go
    """

    NONE = 0
    HARD = 1
    SOFT = 2

    @property
    def strength(self) -> int:
        return (0, 2, 1)[self]


NONE, HARD, SOFT = Pin.NONE, Pin.HARD, Pin.SOFT
"""The members, for what is asked a million times: as attributes of their class they cost ten times as much."""


@dataclass(frozen=True)
class RetentionConfig:
    """How much owners may ask to be kept."""

    pinned_share: float = option(
        default=0.5,
        help="part of the largest tier, and of a tenant's quota, that hard pins may take; where there are several "
        "tenants, one gets at most as much as it leaves free. What a pinned prefix has beyond that is pinned softly",
    )
    max_marks: int = option(
        default=100_000, help="objects of a tenant that have a pin or an end by a call of their own, 0.3 kB each"
    )
    max_rules: int = option(
        default=100, help="prefixes of a tenant that have a pin or a lifetime; each is compared at every lookup"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.pinned_share <= 1:
            raise ConfigError(f"pinned_share: expected 0 to 1, got {self.pinned_share:g}")
        for key, most in (("max_marks", 100_000_000), ("max_rules", 10_000)):
            if not 0 <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected 0 to {most}, got {getattr(self, key)}")


@dataclass(frozen=True, slots=True)
class Change:
    """What a call asks for; None leaves things as they are.

    pin:          with Pin.NONE, that of the key or prefix itself goes
    pin_until_ms: None is no deadline
    ttl_ms:       0 on an object is never; 0 on a prefix takes its rule's lifetime away
    """

    pin: Pin | None = None
    pin_until_ms: int | None = None
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """What calls have said of one key.

    expires_ms: the end of the version that was written at `version_ms`; None where nothing has been said
    """

    pin: Pin = Pin.NONE
    pin_until_ms: int | None = None
    expires_ms: int | None = None
    version_ms: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for every key that begins with a prefix. ttl_ms: from the time of writing; None is no end."""

    prefix: str
    pin: Pin = Pin.NONE
    pin_until_ms: int | None = None
    ttl_ms: int | None = None


@dataclass(slots=True)
class _Bucket:
    """rules: the longest prefix first; timed: how many entries have an end of their own"""

    marks: dict[str, Mark] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    timed: int = 0


class Retention:
    """See the module.

    repin:           called after the pin of an entry has changed
    begins_to_watch: called with a tenant and a bucket of which `watches` may have become true
    outdated:        keys with a mark that has lost the end of a version which was replaced; for whoever keeps marks in
                     a file
    """

    def __init__(
        self,
        config: RetentionConfig | None = None,
        *,
        now_ms: Callable[[], int] = lambda: 0,
        capacity: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """
        now_ms:   milliseconds since the epoch
        capacity: bytes of the largest tier
        """
        self._config = config or RetentionConfig()
        self._now_ms, self._capacity = now_ms, capacity
        self.repin: Callable[[Entry], None] = lambda _: None
        self.begins_to_watch: Callable[[str, str], None] = lambda _, __: None
        self._buckets: dict[Place, _Bucket] = {}
        self._marks: Counter[str] = Counter()  # by tenant
        self._quotas: dict[str, int | None] = {}
        self._pinned: Counter[str] = Counter()
        self._pinned_objects: Counter[str] = Counter()
        self._due: SortedDict[int, set[Entry]] = SortedDict()  # by the second in which they end
        self.outdated: list[tuple[Place, str]] = []
        self._put_off: dict[Entry, int] = {}  # by the second in which to look again, where that is another
        self._deadlines: list[tuple[int, Place, str, bool]] = []  # of pins; of a prefix where the last is true

    def set_quotas(self, quotas: Mapping[str, int | None]) -> None:
        """Take every tenant's quota, which bounds its pins."""
        self._quotas = dict(quotas)

    # --- what the index asks ------------------------------------------------------------------------------------------

    def watches(self, tenant: str, bucket: str) -> bool:
        """Whether anything in a bucket may have ended: if not, no entry need be asked about."""
        known = self._buckets.get((tenant, bucket))
        return known is not None and (known.timed > 0 or bool(known.rules))

    def is_over(self, entry: Entry) -> bool:
        """Whether an entry has ended, so that nobody may see it any more."""
        if entry.pin is HARD:
            return False
        moment_ms = self.ends_ms(entry)
        return moment_ms is not None and moment_ms <= self._now_ms()

    def ends_ms(self, entry: Entry) -> int | None:
        """When an entry ends, were it not pinned; None for never."""
        record = entry.record
        moment_ms = self._own_end_ms(record)
        if moment_ms is None and (known := self._buckets.get(record[:2])) is not None:
            for rule in known.rules:
                if rule.ttl_ms is not None and record.key.startswith(rule.prefix):
                    return None if _is_own(record) else record.mtime_ms + rule.ttl_ms
        return None if moment_ms == NEVER_MS else moment_ms

    def appeared(self, entry: Entry) -> None:
        """Note that an entry has come into the index: it gets the pin that it should have."""
        record = entry.record
        if _is_own(record):
            return
        entry.pin = NONE
        known = self._buckets.get(record[:2])
        if known is not None:
            mark = known.marks.get(record.key)
            if mark is not None and mark.expires_ms is not None and mark.version_ms != record.mtime_ms:
                self._set_mark(record[:2], record.key, replace(mark, expires_ms=None, version_ms=0))
                self.outdated.append((record[:2], record.key))
            self.refresh(entry)
        if known is not None or TTL in record.attributes:
            self._schedule(entry)

    def gone(self, entry: Entry) -> None:
        """Note that an entry has left the index."""
        record = entry.record
        if (not entry.pin and record[:2] not in self._buckets) or _is_own(record):
            return
        if entry.pin is HARD:
            self._count(record, -1)
            entry.pin = NONE
        self._unschedule(entry)

    def refresh(self, entry: Entry) -> None:
        """Give an entry in the index the pin that its key and the rules say, as far as the limits allow."""
        record = entry.record
        if _is_own(record):
            return
        pin, before = self.wanted(record), entry.pin
        if before is HARD:
            self._count(record, -1)
        if pin is HARD and not self._fits(record.tenant, record.nbytes):
            pin = SOFT
        if pin is HARD:
            self._count(record, 1)
        entry.pin = pin
        if pin is not before:
            self.repin(entry)

    def wanted(self, record: Record) -> Pin:
        """The pin that a key and the rules ask for, whatever the limits are."""
        known = self._buckets.get(record[:2])
        if known is None:
            return NONE
        now_ms = self._now_ms()
        pins = [rule for rule in known.rules if rule.pin and record.key.startswith(rule.prefix)]
        asked: list[Mark | Rule] = [*pins, known.marks.get(record.key, Mark())]
        return max(
            (each.pin for each in asked if each.pin_until_ms is None or each.pin_until_ms > now_ms),
            key=lambda pin: pin.strength,
            default=NONE,
        )

    def pin_ends_ms(self, entry: Entry) -> float:
        """When the pin of an entry ends that is the last to do so, in ms since the epoch; infinity for never."""
        record = entry.record
        known = self._buckets.get(record[:2])
        if known is None:
            return math.inf
        asked: list[Mark | Rule] = [known.marks.get(record.key, Mark()), *known.rules]
        hard = [
            each
            for each in asked
            if each.pin is HARD and (isinstance(each, Mark) or record.key.startswith(each.prefix))
        ]
        return max((math.inf if each.pin_until_ms is None else each.pin_until_ms for each in hard), default=math.inf)

    # --- what owners ask ----------------------------------------------------------------------------------------------

    def mark(self, entry: Entry, change: Change) -> tuple[Mark, bool]:
        """Change what is said of an object; what was said before, and whether its hard pin fits into the limits.

        With a hard pin that does not fit nothing changes. Raises TooManyMarks.
        """
        record = entry.record
        place = record[:2]
        before = self.marked(place, record.key)
        after = before
        if change.pin is not None:
            after = replace(after, pin=change.pin, pin_until_ms=change.pin_until_ms if change.pin else None)
        if change.ttl_ms is not None:
            moment_ms = self._now_ms() + change.ttl_ms if change.ttl_ms else NEVER_MS
            after = replace(after, expires_ms=moment_ms, version_ms=record.mtime_ms)
        if before == Mark() != after and self._marks[record.tenant] >= self._config.max_marks:
            raise TooManyMarks(f"this tenant may have {self._config.max_marks} objects marked (retention.max_marks)")
        if after.pin is HARD and entry.pin is not HARD and not self._fits(record.tenant, record.nbytes):
            return before, False
        self.put_mark(place, record.key, after, entry)
        return before, True

    def put_mark(self, place: Place, key: str, mark: Mark, entry: Entry | None) -> None:
        """Set what is said of a key, and of its entry if it is in the index."""
        if entry is not None:
            self._unschedule(entry)
        self._set_mark(place, key, mark)
        if entry is not None:
            self._schedule(entry)
            self.refresh(entry)

    def marked(self, place: Place, key: str) -> Mark:
        """What calls have said of a key."""
        known = self._buckets.get(place)
        return Mark() if known is None else known.marks.get(key, Mark())

    def marks(self, tenant: str, bucket: str, prefix: str = "") -> list[str]:
        """The keys of which something has been said."""
        known = self._buckets.get((tenant, bucket))
        return [] if known is None else [key for key in known.marks if key.startswith(prefix)]

    def forget(self, place: Place, key: str) -> bool:
        """Forget what was said of a key that is not in the index any more; whether there was anything."""
        known = self._buckets.get(place)
        if known is None or key not in known.marks:
            return False
        self._set_mark(place, key, Mark())
        return True

    def rules(self, tenant: str) -> Iterator[tuple[str, Rule]]:
        """The tenant's rules with their buckets."""
        for (owner, bucket), known in sorted(self._buckets.items()):
            if owner == tenant:
                yield from ((bucket, rule) for rule in reversed(known.rules))

    def rules_of(self, place: Place) -> tuple[Rule, ...]:
        """The rules of a bucket, the longest prefix first."""
        known = self._buckets.get(place)
        return () if known is None else known.rules

    def rule(self, place: Place, prefix: str, change: Change) -> Rule:
        """The rule that a prefix would have after a change; an empty one for none. Raises TooManyMarks."""
        present = {rule.prefix: rule for rule in self.rules_of(place)}
        before = present.get(prefix, Rule(prefix))
        after = before
        if change.pin is not None:
            after = replace(after, pin=change.pin, pin_until_ms=change.pin_until_ms if change.pin else None)
        if change.ttl_ms is not None:
            after = replace(after, ttl_ms=change.ttl_ms or None)
        count = sum(1 for _ in self.rules(place[0]))
        if prefix not in present and after != before and count >= self._config.max_rules:
            raise TooManyMarks(f"this tenant may have {self._config.max_rules} prefixes (retention.max_rules)")
        return after

    def pinning_rules(self) -> list[tuple[Place, Rule]]:
        """Every rule that pins, with its bucket."""
        return [(place, rule) for place, known in self._buckets.items() for rule in known.rules if rule.pin]

    def places_with_ttl(self) -> list[Place]:
        """The buckets that have rules with a lifetime."""
        return [place for place, known in self._buckets.items() if any(rule.ttl_ms for rule in known.rules)]

    def put_rule(self, place: Place, rule: Rule) -> None:
        """Set the rule of a prefix; an empty one takes it away. Entries get their pins by `refresh`."""
        known = self._buckets.setdefault(place, _Bucket())
        rules = [other for other in known.rules if other.prefix != rule.prefix]
        if rule != Rule(rule.prefix):
            rules.append(rule)
            self._note_deadline(rule.pin_until_ms, place, rule.prefix, is_prefix=True)
        known.rules = tuple(sorted(rules, key=lambda each: len(each.prefix), reverse=True))
        self.begins_to_watch(*place)
        self._tidy(place)

    def drop_bucket(self, place: Place) -> None:
        """Forget everything about a bucket that has been deleted."""
        known = self._buckets.pop(place, None)
        if known is not None:
            self._marks[place[0]] -= len(known.marks)

    # --- time ---------------------------------------------------------------------------------------------------------

    def take_due(self, most: int) -> list[Entry]:
        """Entries to be removed, at most so many: they have ended by themselves, and nobody leases or pins them."""
        now_ms = self._now_ms()
        due: list[Entry] = []
        looked = 0
        while self._due and looked < most:
            second, entries = self._due.peekitem(0)
            if second * 1000 > now_ms:
                break
            entry = next(iter(entries))
            looked += 1
            if not self.is_over(entry) or entry.leases:
                self._put_off_for(entry, _PINNED_AGAIN_MS if entry.pin is HARD else _LEASED_AGAIN_MS)
            else:
                self._unschedule(entry)
                due.append(entry)
        return due

    def ended_pins(self) -> list[tuple[Place, str, bool]]:
        """The keys, and where the last is true the prefixes, whose pins have come to their deadlines."""
        now_ms = self._now_ms()
        ended = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            deadline = heapq.heappop(self._deadlines)
            if self._is_live(deadline):
                ended.append(deadline[1:])
        return ended

    # --- numbers ------------------------------------------------------------------------------------------------------

    def usage(self, tenant: str) -> tuple[int, int, int]:
        """A tenant's hard pins and their bytes, and how many objects have marks."""
        return self._pinned_objects[tenant], self._pinned[tenant], self._marks[tenant]

    @property
    def pinned_nbytes(self) -> int:
        """Bytes of every hard pin of an owner's."""
        return self._pinned.total()

    def limit_nbytes(self, tenant: str) -> float:
        """How many bytes of hard pins a tenant could have now."""
        share, others = self._config.pinned_share, self._pinned.total() - self._pinned[tenant]
        limit = share * self._capacity() - others
        if len(self._quotas) > 1:
            limit /= 2
        quota = self._quotas.get(tenant)
        return max(0, limit if quota is None else min(limit, share * quota))

    # --- the parts of it ----------------------------------------------------------------------------------------------

    def _fits(self, tenant: str, nbytes: int) -> bool:
        return self._pinned[tenant] + nbytes <= self.limit_nbytes(tenant)

    def _count(self, record: Record, sign: int) -> None:
        self._pinned[record.tenant] += sign * record.nbytes
        self._pinned_objects[record.tenant] += sign

    def _own_end_ms(self, record: Record) -> int | None:
        if _is_own(record):
            return None
        known = self._buckets.get(record[:2])
        mark = None if known is None else known.marks.get(record.key)
        if mark is not None and mark.expires_ms is not None and mark.version_ms == record.mtime_ms:
            return mark.expires_ms
        ttl_ms = ttl_of(record.attributes)
        return None if ttl_ms is None else record.mtime_ms + ttl_ms

    def _set_mark(self, place: Place, key: str, mark: Mark) -> None:
        known = self._buckets.setdefault(place, _Bucket())
        self._marks[place[0]] -= key in known.marks
        if mark == Mark():
            known.marks.pop(key, None)
        else:
            known.marks[key] = mark
            self._marks[place[0]] += 1
            self._note_deadline(mark.pin_until_ms, place, key, is_prefix=False)
        self._tidy(place)

    def _note_deadline(self, moment_ms: int | None, place: Place, name: str, *, is_prefix: bool) -> None:
        if moment_ms is None:
            return
        heapq.heappush(self._deadlines, (moment_ms, place, name, is_prefix))
        if len(self._deadlines) > 4 * (self._marks.total() + 1024):  # most are of pins that have been set anew since
            self._deadlines = sorted({each for each in self._deadlines if self._is_live(each)})

    def _is_live(self, deadline: tuple[int, Place, str, bool]) -> bool:
        moment_ms, place, name, is_prefix = deadline
        if is_prefix:
            return any(rule.prefix == name and rule.pin_until_ms == moment_ms for rule in self.rules_of(place))
        return self.marked(place, name).pin_until_ms == moment_ms

    def _tidy(self, place: Place) -> None:
        known = self._buckets.get(place)
        if known is not None and not (known.marks or known.rules or known.timed):
            del self._buckets[place]

    def _schedule(self, entry: Entry) -> None:
        moment_ms = self._own_end_ms(entry.record)
        if moment_ms is not None and moment_ms != NEVER_MS:
            self._watch(entry, _second(moment_ms))

    def _unschedule(self, entry: Entry) -> None:
        second = self._put_off.pop(entry, None)
        if second is None and (moment_ms := self._own_end_ms(entry.record)) is not None:
            second = _second(moment_ms)
        if second is not None and entry in (entries := self._due.get(second, ())):
            entries.remove(entry)
            if not entries:
                del self._due[second]
            place = entry.record[:2]
            self._buckets[place].timed -= 1
            self._tidy(place)

    def _put_off_for(self, entry: Entry, delay_ms: int) -> None:
        self._unschedule(entry)
        second = self._put_off[entry] = _second(self._now_ms() + delay_ms)
        self._watch(entry, second)

    def _watch(self, entry: Entry, second: int) -> None:
        """Look at an entry in the second in which it ends."""
        self._due.setdefault(second, set()).add(entry)
        place = entry.record[:2]
        self._buckets.setdefault(place, _Bucket()).timed += 1
        self.begins_to_watch(*place)


def ttl_of(attributes: Mapping[str, str]) -> int | None:
    """How long the PUT of an object wanted it to live, in ms; None for no end, or for one that cannot be read."""
    text = attributes.get(TTL)
    return None if text is None else _parsed(text)


def parse_ttl(text: str) -> int:
    """The lifetime that a header states, in ms. Raises ValueError saying what is accepted."""
    seconds = parse_seconds(text)
    if not 0 < seconds <= MAX_TTL_S:
        raise ValueError(f"expected more than 0 and at most {MAX_TTL_S:.0f} seconds")
    return max(1, round(seconds * 1000))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> int | None:
    try:
        return parse_ttl(text)
    except ValueError:
        return None


def _second(moment_ms: int) -> int:
    """The first whole second at which it is over."""
    return -(-moment_ms // 1000)


def _is_own(record: Record) -> bool:
    """Whether the store itself keeps a record: a manifest, or what belongs to an unfinished upload."""
    return record.bucket.startswith(RESERVED_PREFIX) or (
        record.key.endswith("/manifest.json") and record.key.startswith(KV_PREFIX)
    )
