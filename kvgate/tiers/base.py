"""What a tier is: a place that holds complete, verified copies of objects.

A tier knows nothing of eviction or quota: the store's index says which tier holds what, and keeps for each copy the
tier's own opaque note of where it lies (`Copy`). Every implementation and every wrapper passes
`tests/contracts/tier.py`.

A private tier belongs to one gateway, which knows from `start` on all that it holds. A shared tier is also written by
other gateways, and by this one in an earlier life: it is asked with `lookup`. It holds objects with immutable keys only
(chunks, manifests, keys of other KV systems), one copy a key, and passes `tests/contracts/shared_tier.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kvgate.codec.base import Codec
from kvgate.memory.allocator import Extent
from kvgate.memory.lease import Lease

Copy = Any
"""A tier's own note of where a copy lies; opaque to everyone else."""

Arrived = Callable[[int], None]
"""Told of progress: may be called in any thread, any number of times or never."""

HERE = True
"""The `Copy` of every object in a shared tier: its place follows from its record."""

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """One version of one object: its identity, its digest, and what its writer said of it.

    crc64nvme: of the whole body; with nbytes it is what every copy is checked against.
    attributes: stored header names (lower case) to values.
    """

    tenant: str
    bucket: str
    key: str
    nbytes: int
    crc64nvme: int
    mtime_ms: int
    attributes: Mapping[str, str] = NO_ATTRIBUTES

    @property
    def etag(self) -> str:
        """The entity tag, unquoted.

        It is a function of the body alone. The `-1` marks it, as S3 does for multipart objects, as not an MD5, so that
        clients do not try to verify it as one.
        """
        return f"{self.crc64nvme:016x}{self.nbytes:016x}-1"

    def same_body(self, other: Record) -> bool:
        """Whether both records describe the same bytes."""
        return self.nbytes == other.nbytes and self.crc64nvme == other.crc64nvme


class Name(NamedTuple):
    """What an object is called, whichever version of it is meant."""

    tenant: str
    bucket: str
    key: str


class Upload(Protocol):
    """Bytes on their way into a tier, invisible until `finish` and `Tier.publish`."""

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """Append the bytes [start, stop) of `lease`. When cancelled, the lease is held until the copy has ended."""

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """Complete the copy; `blocks` are the crc64nvme of its blocks. Raises TierError with nothing left behind."""

    async def abort(self) -> None:
        """Drop what was written. May be called at any time, also after `finish` failed; idempotent."""


class Reader(Protocol):
    """One open copy. It stays readable while it is open, even if the copy is deleted meanwhile."""

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """Fill the first `nbytes` bytes of `lease` from byte `start` of the object, verified; their blocks' crc64nvme.

        `start` is a multiple of BLOCK_NBYTES, and so is `start + nbytes` unless it is the end of the object.
        arrived: told on the way how many of the first bytes are there and verified, always fewer than `nbytes`
        Raises NotInTier, CorruptCopy, or another TierError, and then nothing writes to the lease any more. When
        cancelled, the lease is held until the copy has ended.
        """

    async def close(self) -> None:
        """Let the copy go. Idempotent."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tier holds: `nbytes` is the room taken, with rounding and headers.

    Of a shared tier, what this gateway has put there and not deleted since it started, as far as the tier knows.
    capacity_nbytes: None where the tier sets no limit of its own
    """

    nbytes: int
    capacity_nbytes: int | None


class Tier(Protocol):
    """A place that holds objects. Methods other than `start` and `close` may run concurrently.

    A tier class also has `Config`, the dataclass of its options, and is made as `TierClass(config)`.

    name:      as the configuration names it, which may be other than the name of its kind
    shared:    see the module
    read_only: nothing is ever written to it: `begin`, `publish` and `delete` are not called
    """

    name: str
    shared: bool
    read_only: bool

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """Open the tier and report, in one or more batches, every published copy that survived.

        `found` may be called in another thread, but for one batch at a time, and not after `start` has returned.
        """

    async def close(self) -> None:
        """Release everything that is open; what was published survives if the tier is of the kind that survives."""

    def usage(self) -> Usage:
        """The room taken and the room there is; uploads in flight count as taken."""

    def room(self, tenant: str) -> int:
        """How many bytes of body an object of this tenant could have now without any eviction."""

    def limit(self) -> int:
        """How many bytes of body the largest object may have when the tier is otherwise empty."""

    async def begin(self, tenant: str, nbytes: int | None) -> Upload:
        """Start an upload of `nbytes` bytes, or of a length not yet known. Raises TierFull; nothing is taken then."""

    async def publish(self, record: Record, copy: Copy) -> None:
        """Make a finished copy the one that `start` reports for its key.

        Takes effect in the order of the calls, also with respect to `delete`. Raises TierError.
        """

    def open(self, record: Record, copy: Copy) -> Reader:
        """A reader of a finished copy. Does no I/O; a copy that is not there any more is seen at the first read."""

    async def delete(self, record: Record, copy: Copy) -> None:
        """Forget a copy and give back its room. Idempotent; never touches another copy of the same key."""


class SharedTier(Tier, Protocol):
    """A tier that other gateways write to as well.

    `start` reports nothing. An upload's `finish` makes the object visible to every `lookup`, `publish` has nothing to
    add. Where the key has a copy with the same body already, `finish` adopts that; where it has another body, `finish`
    raises NotAdmitted, and what was there stays: the first writer wins. `delete` deletes the version in the record, and
    no other. A reader whose copy was replaced or deleted by someone else raises NotInTier.
    """

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """What the tier holds of each name, in their order; None where it holds nothing that is whole.

        A record that comes back has been held against its checksum, and has the tenant, bucket and key of its name.
        Raises TierError when the tier cannot be asked.
        """


@runtime_checkable
class Inspected(Protocol):
    """What a tier offers besides whose copies can be looked at where they lie: past caches, and after they went bad."""

    def inspect(self, record: Record, copy: Copy) -> Reader:
        """As `open`, but the bytes come from the medium, and take no room in a cache that others need."""

    async def set_aside(self, record: Record, copy: Copy) -> None:
        """Forget a copy as `delete` does, but keep its bytes for people to look at, within bounds of the tier's own."""

    async def set_strays_aside(self, age_s: float) -> int:
        """Set aside what lies in the tier and is no copy of anything; how many there were.

        age_s: only what an earlier call, so long ago or longer, has seen already, so that nothing is on its way
        """

    def kept_aside(self) -> tuple[int, int]:
        """How many copies are kept aside now, and their bytes."""


@runtime_checkable
class Digested(Protocol):
    """What a private tier offers besides that keeps the digests of its copies: other gateways can then read them."""

    async def blocks(self, record: Record, copy: Copy) -> array[int]:
        """The crc64nvme of the copy's blocks, without reading them. Raises NotInTier, CorruptCopy, TierError."""


@runtime_checkable
class Encodes(Protocol):
    """What a private tier offers besides that can keep copies in fewer bytes. Whoever reads them sees no difference."""

    async def recode(self, record: Record, copy: Copy, codecs: Sequence[Codec]) -> Copy:
        """A finished but unpublished copy of the same object, made from a good `copy`, which stays as it is.

        codecs: that may encode it; one is chosen for the whole. Without any, the new copy lies as the object was sent
        `copy` itself comes back when it is encoded, or plain, already, and when it would take hardly less room. Raises
        TierFull, NotInTier, CorruptCopy, or another TierError, with nothing left behind.
        """

    def stored_nbytes(self, record: Record, copy: Copy) -> int:
        """What the body of a copy takes: less than the object has when, and only when, it is encoded."""


class Lent(Protocol):
    """A lease on a copy where it lies, for another process that maps the memory."""

    @property
    def owner(self) -> str:
        """Whose segments the bytes lie in."""

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where the bytes lie, in order; the last extent may be longer than they are."""

    def release(self) -> None:
        """Let the copy go. May be called twice."""


@runtime_checkable
class Exporting(Protocol):
    """What a private tier offers besides whose copies lie in a GPU's memory that other processes on it can map.

    None of these waits for anything.
    """

    name: str

    @property
    def device_uuid(self) -> bytes:
        """Which GPU."""

    def lend(self, copy: Copy) -> tuple[Lent, array[int]]:
        """A lease on a copy, and the crc64nvme of its blocks, against which nothing was held. Raises NotInTier."""

    def hand_on(self, segment_id: int) -> tuple[int, bytes] | None:
        """The size and the CUDA IPC handle of a segment that a lent copy lies in, for one engine more.

        Until `take_back` its memory is not given back. None where the driver does not export it.
        """

    def take_back(self, segment_id: int) -> None:
        """An engine that was handed a segment maps it no more."""

    def is_retired(self, segment_id: int) -> bool:
        """Whether a segment's memory is to be given back, as soon as no engine maps it."""


class Mapped(Protocol):
    """What a tier whose copies lie in the arena offers besides: bytes are used where they lie, without a copy."""

    def reserve(self, tenant: str, nbytes: int) -> Lease:
        """Memory to receive an object into. Raises ArenaFull; nothing is taken then."""

    def adopt(self, lease: Lease, blocks: array[int]) -> Copy:
        """Take over `lease`, filled with a whole object, as a copy. The caller's lease is the tier's from now on."""

    def drop(self, copy: Copy) -> None:
        """Delete a copy at once. Its pages return when the last lease on them ends."""

    async def lease(self, record: Record, copy: Copy, start: int, stop: int) -> Lease:
        """A lease on a copy, after verifying the blocks that hold [start, stop). Raises NotInTier, CorruptCopy."""
