"""The index: every visible object, where its copies lie, and the buckets that hold them.

Buckets whose names begin with RESERVED_PREFIX are the store's own. They hold objects like any other, and are not among
the buckets that clients see.

Invariants
1. An entry is in the index exactly while it is visible: `current` is true.
2. An entry that is in the index has at least one copy.
3. A leased or hard-pinned entry is never evicted; it can be deleted or replaced, and then it is no longer current.
4. An entry whose end has come (see `retention`) is found by nobody, though it is still there to be removed.

Synchronous and pure (no I/O): the store decides here and acts afterwards.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedDict

from kvgate.chunk.key import KV_PREFIX, RESERVED_PREFIX
from kvgate.errors import NoSuchBucket
from kvgate.store.retention import HARD, NONE, Retention
from kvgate.store.walks import find_chain
from kvgate.tiers.base import Copy, Name, Record

_MAX_PASSED_OVER = 10_000

Around = tuple[tuple[None, ...], tuple[None, ...], int]
"""The ranks before and after the only one that holds a copy, as the Nones that stand there; its bit in `ranks`."""


@functools.cache
def around(rank: int, tiers: int) -> Around:
    """See Around; equal ones are one object."""
    return (None,) * rank, (None,) * (tiers - rank - 1), 1 << rank


class Entry:
    """One visible object. Compared by identity: a new version of a key is another entry.

    ranks:   those of the tiers that hold a copy, as the bits of a number
    waiting: those of the tiers that it waits to be written to, likewise

    There are millions of them, most with a single copy: that one is kept without a tuple around it.
    """

    __slots__ = ("_around", "_held", "current", "leases", "pin", "ranks", "record", "waiting")

    def __init__(self, record: Record, copies: tuple[Copy | None, ...] | Copy, only: Around | None = None) -> None:
        """copies: by rank; with `only`, the single copy where that says"""
        self.record = record
        self._held = copies
        self._around = only
        self.ranks = _bits(copies) if only is None else only[2]
        self.leases = 0
        self.pin = NONE
        self.current = False
        self.waiting = 0

    @property
    def pinned(self) -> bool:
        """Whether it is never evicted: its pin is a hard one."""
        return self.pin is HARD

    @pinned.setter
    def pinned(self, pinned: bool) -> None:
        self.pin = HARD if pinned else NONE

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """A tier's note of its copy, or None, by the tier's rank (0 is the fastest)."""
        if self._around is None:
            held: tuple[Copy | None, ...] = self._held
            return held
        before, after, _ = self._around
        return (*before, self._held, *after)

    def set_copy(self, rank: int, copy: Copy | None) -> None:
        """Note the copy in the tier of this rank, or with None that there is none."""
        if copy is not None and not self.ranks:
            self._held, self._around = copy, around(rank, len(self._held))
            self.ranks = 1 << rank
            return
        if copy is None and self._around is not None and self.ranks == 1 << rank:
            before, after, _ = self._around
            self._held, self._around, self.ranks = (*before, None, *after), None, 0
            return
        copies = list(self.copies)
        copies[rank] = copy
        held = [rank for rank, copy in enumerate(copies) if copy is not None]
        if len(held) == 1:
            self._held, self._around = copies[held[0]], around(held[0], len(copies))
        else:
            self._held, self._around = tuple(copies), None
        self.ranks = _bits(copies)

    def fastest(self) -> int | None:
        """The rank of the fastest tier that holds a copy; None for an entry that has been dropped."""
        return lowest(self.ranks) if self.ranks else None

    def has_copy(self, *ranks: int) -> bool:
        """Whether one of the tiers of these ranks holds a copy."""
        return any(self.ranks >> rank & 1 for rank in ranks)


def _bits(copies: Sequence[Copy | None]) -> int:
    ranks = 0
    for rank, copy in enumerate(copies):
        if copy is not None:
            ranks |= 1 << rank
    return ranks


def lowest(ranks: int) -> int:
    """The fastest of the ranks that are the bits of a number, which is not 0."""
    return (ranks & -ranks).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, when it was made, and the documents that its owner has set for it, by their names."""

    name: str
    created_ms: int
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a list: records and rolled-up prefixes, each in byte order.

    next_after: the last key or prefix of the page, to go on from when `truncated`.
    """

    records: list[Record] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    truncated: bool = False
    next_after: str = ""


class Index:
    """Objects by tenant, bucket and key. Two tenants' buckets of one name have nothing in common."""

    def __init__(self, retention: Retention | None = None) -> None:
        """retention: says what has ended, and is told what comes and goes"""
        self._retention = retention or Retention()
        self.left: Callable[[Entry], None] = lambda _: None
        """Told of each entry that stops being visible, in that step."""
        self.redescribed: Callable[[str, str], None] = lambda _, __: None
        """Told the tenant and the name of a bucket that is described anew."""
        self._buckets: dict[tuple[str, str], SortedDict] = {}
        self._described: dict[tuple[str, str], Bucket] = {}

    # --- buckets ------------------------------------------------------------------------------------------------------

    def add_bucket(self, tenant: str, bucket: Bucket) -> bool:
        """Add an empty bucket; False when there is one of its name already."""
        place = tenant, bucket.name
        if place in self._buckets:
            return False
        self._buckets[place] = SortedDict()
        self._described[place] = bucket
        return True

    def replace_bucket(self, tenant: str, bucket: Bucket) -> None:
        """Describe a bucket that there is anew. Raises NoSuchBucket."""
        self.bucket(tenant, bucket.name)
        self._described[tenant, bucket.name] = bucket
        self.redescribed(tenant, bucket.name)

    def remove_bucket(self, tenant: str, bucket: str) -> None:
        """Remove a bucket that has no entries."""
        self._retention.drop_bucket((tenant, bucket))
        del self._buckets[tenant, bucket], self._described[tenant, bucket]

    def buckets(self, tenant: str) -> list[Bucket]:
        """The tenant's buckets by name."""
        places = sorted(owned for owned in self.all_buckets() if owned[0] == tenant)
        return [self._described[place] for place in places]

    def bucket(self, tenant: str, bucket: str) -> Bucket:
        """One bucket that clients see. Raises NoSuchBucket."""
        found = self._described.get((tenant, bucket))
        if found is None or bucket.startswith(RESERVED_PREFIX):
            raise NoSuchBucket(f"there is no bucket {bucket!r}")
        return found

    def all_buckets(self) -> dict[tuple[str, str], Bucket]:
        """Every bucket that clients see, by its tenant and name."""
        return {place: found for place, found in self._described.items() if not place[1].startswith(RESERVED_PREFIX)}

    def owners(self, bucket: str) -> list[str]:
        """The tenants that have a bucket of this name."""
        return [owner for owner, name in self._described if name == bucket]

    # --- objects ------------------------------------------------------------------------------------------------------

    def get(self, tenant: str, bucket: str, key: str) -> Entry | None:
        """The visible object of a key. Raises NoSuchBucket."""
        entry: Entry | None = self.objects(tenant, bucket).get(key)
        if entry is not None and self._retention.watches(tenant, bucket) and self._retention.is_over(entry):
            return None
        return entry

    def leading_chunks(self, tenant: str, bucket: str, space: str, hashes: bytes) -> list[Entry]:
        """The entries of chunks from the first one on, up to the first that is not there. Raises NoSuchBucket.

        hashes: 32 bytes each, one after the other
        """
        entries: list[Entry] = find_chain(self.objects(tenant, bucket), f"{KV_PREFIX}{space}/", hashes)
        if self._retention.watches(tenant, bucket):
            entries = list(itertools.takewhile(lambda entry: not self._retention.is_over(entry), entries))
        return entries

    def after(self, name: Name | None, limit: int) -> list[Entry]:
        """Up to `limit` entries behind a name, or the first ones, by tenant, bucket (the store's own too) and key."""
        entries: list[Entry] = []
        for place in sorted(self._buckets):
            if name is not None and place < name[:2]:
                continue
            objects = self._buckets[place]
            first = name.key if name is not None and place == name[:2] else None
            keys = objects.irange(first, inclusive=(False, True))
            entries += [objects[key] for key in itertools.islice(keys, limit - len(entries))]
            if len(entries) == limit:
                break
        return entries

    def put(self, entry: Entry) -> Entry | None:
        """Make an entry visible; the one that it replaces. Raises NoSuchBucket."""
        record = entry.record
        objects = self.objects(record.tenant, record.bucket)
        replaced: Entry | None = objects.get(record.key)
        if replaced is not None:
            self._hide(replaced)
        objects[record.key] = entry
        entry.current = True
        self._retention.appeared(entry)
        return replaced

    def remove(self, entry: Entry) -> None:
        """Make a current entry invisible."""
        record = entry.record
        del self._buckets[record.tenant, record.bucket][record.key]
        self._hide(entry)

    def _hide(self, entry: Entry) -> None:
        entry.current = False
        self.left(entry)
        self._retention.gone(entry)

    def load(self, tenant: str, bucket: str, entries: dict[str, Entry]) -> None:
        """Take over many entries at once, marked as current, into a bucket that has none of their keys.

        `retention` is not told of them.
        """
        self._buckets[tenant, bucket].update(entries)

    def entries(self) -> list[Entry]:
        """Every entry there is now."""
        return [entry for objects in self._buckets.values() for entry in objects.values()]

    def objects(self, tenant: str, bucket: str) -> SortedDict:
        """The bucket's entries by key, in byte order. Raises NoSuchBucket."""
        try:
            return self._buckets[tenant, bucket]
        except KeyError:
            raise NoSuchBucket(f"there is no bucket {bucket!r}") from None

    def list(self, tenant: str, bucket: str, prefix: str, delimiter: str, after: str, limit: int) -> Listing:
        """Up to `limit` keys and rolled-up prefixes that begin with `prefix` and come after `after`.

        Keys that have `delimiter` behind `prefix` are rolled up into one prefix that ends with it. A prefix equal to
        `after` has been listed and is skipped. Byte order is the order of str here: both follow code points. A page
        may have fewer entries, and go on, where many have ended and are still to be removed.
        """
        is_over = self._retention.is_over if self._retention.watches(tenant, bucket) else None
        passed_over = 0
        objects = self.objects(tenant, bucket)
        keys = objects.keys()
        at = max(objects.bisect_left(prefix), objects.bisect_right(after) if after else 0)
        if after and after.startswith(prefix) and _rolled(after, prefix, delimiter) == after:
            at = max(at, _behind(objects, after))
        records: list[Record] = []
        prefixes: list[str] = []
        last = ""
        while at < len(keys):
            key: str = keys[at]
            if not key.startswith(prefix):
                break
            if len(records) + len(prefixes) >= limit:
                return Listing(records, prefixes, limit > 0, last)
            if is_over is not None and is_over(objects[key]):
                at, passed_over = at + 1, passed_over + 1
                if passed_over == _MAX_PASSED_OVER:
                    return Listing(records, prefixes, True, key)
                continue
            last = _rolled(key, prefix, delimiter)
            if last:
                prefixes.append(last)
                at = _behind(objects, last)
            else:
                records.append(objects[key].record)
                last = key
                at += 1
        return Listing(records, prefixes, False, last)


def _rolled(key: str, prefix: str, delimiter: str) -> str:
    """The prefix that a key is rolled up into: up to the first delimiter behind `prefix`; empty when it is not."""
    cut = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: cut + len(delimiter)] if cut >= 0 else ""


def _behind(objects: SortedDict, prefix: str) -> int:
    """Where the keys that are greater than every key beginning with `prefix` begin."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return len(objects)
    code = ord(kept[-1]) + 1
    following = chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)  # keys hold no surrogates
    return int(objects.bisect_left(kept[:-1] + following))
