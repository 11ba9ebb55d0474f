"""Ghosts: what became of objects that are not here any more, or were not taken.

Invariants
1. A tenant's ghosts are its own: no other tenant's objects add to them, push them out, or are found among them.
2. A tenant has at most `limit` of them, each of a fixed size whatever its key; the oldest are forgotten first.
3. `since_ms` is the time from which on nothing has been forgotten.

Each tenant has two generations. A new ghost goes into the young one; when that has half of the limit it becomes the old
one, and the old one is forgotten at once. So a note is one insertion into a dict, and forgetting costs nothing.

Synchronous and pure. Nothing survives a restart: `since_ms` says so.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from kvgate.chunk.key import RESERVED_PREFIX
from kvgate.errors import (
    ArenaFull,
    BadDigest,
    ImmutableConflict,
    InvalidChunk,
    InvalidManifest,
    NoSuchBucket,
    NotAdmitted,
    ObjectChanged,
    ObjectTooLarge,
    Overloaded,
    PayloadHashMismatch,
    PreconditionFailed,
    QuotaExceeded,
    StoreFull,
    TierError,
    TierFull,
    UnknownSpace,
)
from kvgate.tiers.base import Name, Record

_NAME_NBYTES = 16
_BITS = 8


class Fate(enum.IntEnum):
    """What became of an object. Those up to REPLACED had been here; the others have been refused."""

    EVICTED = 1
    """Its last copy was evicted from a tier to make room."""
    EVICTED_BY_QUOTA = 2
    """It made room for other chunks of its tenant, which is at its quota."""
    NOT_WRITTEN_BACK = 3
    """It left memory, and no lower tier had taken it."""
    EXPIRED = 4
    DELETED = 5
    CORRUPT = 6
    """Its last copy did not match its digest."""
    GONE = 7
    """Its last copy was not in its tier any more, though nothing here had removed it."""
    REPLACED = 8
    """Another body has its key."""
    REFUSED_BY_QUOTA = 20
    REFUSED_BY_ADMISSION = 21
    """The rules of a tier did not take it, so that it was in memory only; said also after it has left that."""
    REFUSED_NO_ROOM = 22
    REFUSED_TOO_LARGE = 23
    REFUSED_SPACE = 24
    """The bucket had no manifest of its space."""
    REFUSED_BODY = 25
    """The body was not what its key or its checksum says."""
    REFUSED_BY_TIER = 26
    """The tier that had to take it failed."""
    BROKEN_OFF = 27
    """The upload ended before the body was whole."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """What became of an object, when (ms since the epoch), and in which tier; no tier where none was concerned."""

    fate: Fate
    at_ms: int
    tier: str


@dataclass(slots=True)
class _Generations:
    """The ghosts of one tenant, packed into a number each, by a digest of their names."""

    young: dict[bytes, int]
    old: dict[bytes, int]
    young_since_s: int
    old_since_s: int


class Ghosts:
    """See the module."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        """
        limit: ghosts of one tenant, in about 150 bytes each; with 0 nothing is noted
        clock: seconds since the epoch
        """
        self._half = -(-limit // 2)
        self._clock = clock
        self._began_s = math.ceil(clock())
        self._tenants: dict[str, _Generations] = {}
        self._tiers: list[str] = [""]

    def begin(self) -> None:
        """Remember from now on: what was before is not known."""
        self._began_s = math.ceil(self._clock())

    def note(self, name: Record | Name, fate: Fate, tier: str = "") -> None:
        """Remember what has become of an object. The store's own buckets have no ghosts."""
        if not self._half or name.bucket.startswith(RESERVED_PREFIX):
            return
        now_s = int(self._clock())
        kept = self._tenants.get(name.tenant)
        if kept is None:
            kept = self._tenants[name.tenant] = _Generations({}, {}, self._began_s, self._began_s)
        elif len(kept.young) >= self._half:
            kept.old, kept.old_since_s = kept.young, kept.young_since_s
            kept.young, kept.young_since_s = {}, now_s
        kept.young[_digest(name.bucket, name.key)] = (now_s << 2 * _BITS) | (self._tier(tier) << _BITS) | fate

    def note_refusal(self, name: Record | Name, error: BaseException) -> None:
        """Remember that an upload ended with `error`, where that says something about the object."""
        fate = _refusal(error)
        if fate is not None:
            self.note(name, fate)

    def find(self, tenant: str, bucket: str, key: str) -> Ghost | None:
        """The last thing that became of an object of this tenant; None when nothing is remembered."""
        kept = self._tenants.get(tenant)
        if kept is None:
            return None
        digest = _digest(bucket, key)
        packed = kept.young.get(digest) or kept.old.get(digest)
        if packed is None:
            return None
        mask = (1 << _BITS) - 1
        tier = self._tiers[(packed >> _BITS) & mask]
        return Ghost(Fate(packed & mask), (packed >> 2 * _BITS) * 1000, tier)

    def was_refused_by_a_tier(self, record: Record) -> bool:
        """Whether the last thing that became of this version of an object is that a tier's rules did not take it."""
        ghost = self.find(record.tenant, record.bucket, record.key)
        return ghost is not None and ghost.fate == Fate.REFUSED_BY_ADMISSION and ghost.at_ms + 1000 > record.mtime_ms

    def since_ms(self, tenant: str) -> int:
        """The time, in ms since the epoch, from which on everything of this tenant is remembered."""
        kept = self._tenants.get(tenant)
        return (self._began_s if kept is None else kept.old_since_s) * 1000

    def count(self, tenant: str) -> int:
        """How many ghosts a tenant has; one that was noted twice may count twice."""
        kept = self._tenants.get(tenant)
        return 0 if kept is None else len(kept.young) + len(kept.old)

    def _tier(self, tier: str) -> int:
        if tier not in self._tiers:
            if len(self._tiers) == 1 << _BITS:
                return 0
            self._tiers.append(tier)
        return self._tiers.index(tier)


def _digest(bucket: str, key: str) -> bytes:
    return blake2b(f"{bucket}/{key}".encode(), digest_size=_NAME_NBYTES).digest()


def _refusal(error: BaseException) -> Fate | None:
    """None for an upload that was refused for what is here already, or whose bucket is not."""
    for kinds, fate in _REFUSALS:
        if isinstance(error, kinds):
            return fate
    return Fate.BROKEN_OFF


_REFUSALS: tuple[tuple[tuple[type[BaseException], ...], Fate | None], ...] = (
    ((PreconditionFailed, ImmutableConflict, ObjectChanged, NoSuchBucket), None),
    ((QuotaExceeded,), Fate.REFUSED_BY_QUOTA),
    ((NotAdmitted,), Fate.REFUSED_BY_ADMISSION),
    ((ObjectTooLarge,), Fate.REFUSED_TOO_LARGE),
    ((StoreFull, TierFull, ArenaFull, Overloaded), Fate.REFUSED_NO_ROOM),
    ((TierError,), Fate.REFUSED_BY_TIER),
    ((UnknownSpace,), Fate.REFUSED_SPACE),
    ((InvalidChunk, InvalidManifest, BadDigest, PayloadHashMismatch), Fate.REFUSED_BODY),
)
