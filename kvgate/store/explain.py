"""Explain: where an object is, or why it is not here.

What is asked is looked up among the tenant's own objects and ghosts, and in the shared tiers where the index has none.
All methods run on the event loop, and change nothing: an object that is explained is not used, so that its place in the
order of eviction stays, and what a shared tier has is not taken over.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.key import KV_PREFIX, ManifestKey
from kvgate.chunk.space import Space
from kvgate.errors import TierError, UnknownSpace
from kvgate.store.copies import Copies
from kvgate.store.ghosts import Fate
from kvgate.store.index import Entry, Index
from kvgate.tiers.base import Name, Record, SharedTier
from kvgate.tiers.guarded import Guarded

MAX_SPACES = 64
"""How many other spaces of a bucket are looked at."""

_MAX_NEAREST = 3
_MAX_SOUGHT = 256
"""How many objects of one call are sought in shared tiers."""

_TURN = 64
"""Objects explained before others have their turn."""

PRESENT = "present"
TIER_AWAY = "tier-away"
"""Only a tier that is away has it, or may have it."""
NEVER_WRITTEN = "never-written"
NOT_WRITTEN = "not-written"
"""As `never-written`, but only since the time from which on the gateway remembers."""

_WORDS = {
    Fate.EVICTED: "evicted from the {tier} tier by its policy, {policy}, to make room",
    Fate.EVICTED_BY_QUOTA: "evicted to make room for other chunks of this tenant, which is at its quota",
    Fate.NOT_WRITTEN_BACK: "it left memory before a lower tier had taken it",
    Fate.EXPIRED: "expired by a lifecycle rule of its bucket, or at the end that its owner had set",
    Fate.DELETED: "deleted by a request",
    Fate.CORRUPT: "the last copy, in the {tier} tier, did not match its digest and was dropped",
    Fate.GONE: "the last copy was not in the {tier} tier any more",
    Fate.REPLACED: "another body took its key",
    Fate.REFUSED_BY_QUOTA: "refused: the tenant's quota had no room for it",
    Fate.REFUSED_BY_ADMISSION: "the rules of the {tier} tier did not take it, and it left memory",
    Fate.REFUSED_NO_ROOM: "refused: no tier had room for it at that moment",
    Fate.REFUSED_TOO_LARGE: "refused: it is larger than what is accepted",
    Fate.REFUSED_SPACE: "refused: the bucket had no usable manifest of its space",
    Fate.REFUSED_BODY: "refused: the body was not what its key or its checksum says",
    Fate.REFUSED_BY_TIER: "the tier that had to take it failed",
    Fate.BROKEN_OFF: "the upload broke off before the body was whole",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one object.

    status:     PRESENT, TIER_AWAY, NEVER_WRITTEN, NOT_WRITTEN, or a Fate's name in lower case with hyphens
    reason:     the same in a sentence
    tiers:      that hold a copy, the fastest first
    nbytes, pin, leases, modified_ms, expires_ms: of an object that is held; it ends at expires_ms, 0 for never
    tier, at_ms: where and when it came to its fate, in ms since the epoch; of a present object the time at which it
                took the place of another body, and 0 for none or for a time that is not known
    elsewhere:  another space of the bucket that holds a chunk of the same hash; empty for none
    """

    key: str
    status: str
    reason: str
    tiers: tuple[str, ...] = ()
    nbytes: int = 0
    pin: str = "none"
    leases: int = 0
    modified_ms: int = 0
    expires_ms: int = 0
    tier: str = ""
    at_ms: int = 0
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class NearSpace:
    """Another space of the bucket, the manifest's fields in which it differs, and how many chunks it has."""

    space: str
    differs: tuple[str, ...]
    chunks: int


class Explain:
    """See the module."""

    def __init__(
        self,
        index: Index,
        copies: Copies,
        find_space: Callable[[str, str, str], Awaitable[Space]],
        expiry: Callable[[Record], tuple[int, str] | None],
        policy: str,
    ) -> None:
        """
        expiry:     when an object ends, in ms since the epoch, and by which rule; None for never
        find_space: the space of a manifest that a tenant's bucket holds. Raises UnknownSpace, TierError
        policy:     the name of the eviction policy of tiers that have none of their own
        """
        self._index = index
        self._copies = copies
        self._find_space = find_space
        self._expiry = expiry
        self._policies = {
            tier.name: rules.eviction or policy for tier, rules in zip(copies.tiers, copies.rules, strict=True)
        }

    def since_ms(self, tenant: str) -> int:
        """The time, in ms since the epoch, from which on everything of this tenant is remembered."""
        return self._copies.ghosts.since_ms(tenant)

    def away(self) -> list[str]:
        """The tiers that cannot be asked now."""
        return [tier.name for tier in self._copies.tiers if isinstance(tier, Guarded) and tier.health.away]

    async def objects(self, tenant: str, bucket: str, keys: Sequence[str]) -> list[Explanation]:
        """What is known of each of these objects, in their order. Raises NoSuchBucket."""
        created_ms = self._index.bucket(tenant, bucket).created_ms
        sought, unasked = await self._seek(tenant, bucket, keys)
        spaces, away = self._spaces(tenant, bucket), sorted({*self.away(), *unasked})
        explanations = []
        for number, key in enumerate(keys):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            entry = self._index.get(tenant, bucket, key)
            if entry is not None:
                explanations.append(self._present(entry, away))
            elif key in sought:
                explanations.append(_found(*sought[key]))
            else:
                explanations.append(self._missing(tenant, bucket, key, created_ms, spaces, away))
        return explanations

    async def nearest(self, tenant: str, bucket: str, space_id: str, space: Space | None) -> list[NearSpace] | None:
        """The other spaces of a bucket whose manifests differ least from that of `space_id`, the nearest first.

        space: what the caller says the space is, where the bucket may not know it
        None when neither knows it. Raises NoSuchBucket.
        """
        space = space or await self._known(tenant, bucket, space_id)
        if space is None:
            return None
        found = []
        for other_id in self._spaces(tenant, bucket):
            other = await self._known(tenant, bucket, other_id) if other_id != space_id else None
            if other is not None:
                found.append(
                    NearSpace(other_id, tuple(space.difference(other)), self._chunks(tenant, bucket, other_id))
                )
        found.sort(key=lambda near: (len(near.differs), -near.chunks, near.space))
        return found[:_MAX_NEAREST]

    async def _seek(
        self, tenant: str, bucket: str, keys: Sequence[str]
    ) -> tuple[dict[str, tuple[str, Record]], list[str]]:
        """What shared tiers have of the first objects that are not known here; and those that could not be asked."""
        found: dict[str, tuple[str, Record]] = {}
        unasked: list[str] = []
        missing = (
            Name(tenant, bucket, key)
            for key in dict.fromkeys(keys)
            if self._copies.keys.is_shared(bucket, key) and self._index.get(tenant, bucket, key) is None
        )
        shared: list[SharedTier] = [tier for tier in self._copies.tiers if tier.shared]  # type: ignore[misc]
        left = list(itertools.islice(missing, _MAX_SOUGHT)) if shared else []
        for tier in shared:
            if not left:
                break
            try:
                records = await tier.lookup(left)
            except TierError:
                unasked.append(tier.name)
                continue
            found |= {record.key: (tier.name, record) for record in records if record is not None}
            left = [name for name in left if name.key not in found]
        return found, unasked

    def _present(self, entry: Entry, away: Sequence[str]) -> Explanation:
        record = entry.record
        tiers = tuple(
            tier.name for tier, copy in zip(self._copies.tiers, entry.copies, strict=True) if copy is not None
        )
        ghost = self._copies.ghosts.find(record.tenant, record.bucket, record.key)
        replaced = ghost is not None and ghost.fate == Fate.REPLACED
        refused = self._copies.ghosts.was_refused_by_a_tier(record)
        reached = not set(tiers) <= set(away)
        where = f"in the {tiers[0]} tier" if len(tiers) == 1 else f"in the tiers {', '.join(tiers)}"
        if not reached:
            where += ", which is away" if len(tiers) == 1 else ", which are away"
        if ghost is not None and refused and ghost.tier not in tiers:
            where += f"; the rules of the {ghost.tier} tier did not take it"
        end = self._expiry(record)
        return Explanation(
            record.key,
            PRESENT if reached else TIER_AWAY,
            where,
            tiers=tiers,
            nbytes=record.nbytes,
            pin=entry.pin.name.lower(),
            leases=entry.leases,
            modified_ms=record.mtime_ms,
            expires_ms=0 if end is None else end[0],
            at_ms=ghost.at_ms if ghost is not None and replaced else 0,
        )

    def _missing(
        self, tenant: str, bucket: str, key: str, created_ms: int, spaces: Sequence[str], away: Sequence[str]
    ) -> Explanation:
        elsewhere = self._elsewhere(tenant, bucket, key, spaces)
        if key in self._index.objects(tenant, bucket):  # found by nobody, and still to be removed
            status = Fate.EXPIRED.name.lower()
            return Explanation(key, status, _WORDS[Fate.EXPIRED], elsewhere=elsewhere)
        ghosts = self._copies.ghosts
        ghost = ghosts.find(tenant, bucket, key)
        if ghost is None and away:
            words = f"not known here; it may lie in a tier that is away: {', '.join(away)}"
            return Explanation(key, TIER_AWAY, words, tier=away[0], elsewhere=elsewhere)
        if ghost is not None:
            policy = self._policies.get(ghost.tier, "")
            words = _WORDS[ghost.fate].format(tier=ghost.tier, policy=policy)
            status = ghost.fate.name.lower().replace("_", "-")
            return Explanation(key, status, words, tier=ghost.tier, at_ms=ghost.at_ms, elsewhere=elsewhere)
        if created_ms > ghosts.since_ms(tenant):
            return Explanation(key, NEVER_WRITTEN, "never written to this bucket", elsewhere=elsewhere)
        words = "not written as far back as the gateway remembers"
        return Explanation(key, NOT_WRITTEN, words, elsewhere=elsewhere)

    def _elsewhere(self, tenant: str, bucket: str, key: str, spaces: Sequence[str]) -> str:
        """Another space with a chunk of the same hash. A tenth of a microsecond a space: there may be many of both."""
        space, _, digits = key.removeprefix(KV_PREFIX).partition("/")
        if key.startswith(KV_PREFIX) and len(digits) == 2 * HASH_NBYTES:
            objects = self._index.objects(tenant, bucket)
            for other in spaces:
                if f"{KV_PREFIX}{other}/{digits}" in objects and other != space:
                    return other
        return ""

    def _spaces(self, tenant: str, bucket: str) -> list[str]:
        """The ids of the spaces of which the bucket has anything, at most MAX_SPACES."""
        listing = self._index.list(tenant, bucket, KV_PREFIX, "/", "", MAX_SPACES)
        return [prefix.removeprefix(KV_PREFIX).rstrip("/") for prefix in listing.prefixes]

    def _chunks(self, tenant: str, bucket: str, space: str) -> int:
        objects = self._index.objects(tenant, bucket)
        first, manifest = f"{KV_PREFIX}{space}/", str(ManifestKey(space))
        return int(objects.bisect_left(manifest) - objects.bisect_left(first))  # digits and a to f come before an m

    async def _known(self, tenant: str, bucket: str, space: str) -> Space | None:
        try:
            return await self._find_space(tenant, bucket, space)
        except (UnknownSpace, TierError):
            return None


def _found(tier: str, record: Record) -> Explanation:
    return Explanation(
        record.key,
        PRESENT,
        f"in the {tier} tier, where another gateway or an earlier run of this one has put it",
        tiers=(tier,),
        nbytes=record.nbytes,
        modified_ms=record.mtime_ms,
    )
