"""What the calls of a client return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvgate.chunk.frame import Status
from kvgate.client.buffers import ReadableBuffer


@dataclass(frozen=True, slots=True)
class LocalWays:
    """How a gateway is reached on its own host; an empty path is no way. `boot_id` is that of its present run."""

    boot_id: bytes
    shm_socket: str
    unix_socket: str


class Traffic(NamedTuple):
    """What went one way: objects loaded and stored, and their bytes."""

    transfers: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """Who the credential belongs to. `salt` goes into the root of the tenant's chain hashes; it is not a secret.

    local: None from a gateway that does not say
    """

    name: str
    salt: bytes = field(repr=False)
    quota_nbytes: int | None
    buckets: tuple[str, ...]
    local: LocalWays | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A token to send instead of signatures, and how many seconds from now it is good for."""

    token: str = field(repr=False)
    expires_s: float


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix of chunks that the gateway holds.

    tiers:     the names of the gateway's tiers, the fastest first
    ranks:     for each matched chunk the fastest tier that holds it, as an index into `tiers`
    nbytes:    for each matched chunk its size
    lease:     keeps them there; empty when nothing matched
    expires_s: how long from now the lease lasts
    """

    tiers: tuple[str, ...]
    ranks: tuple[int, ...]
    nbytes: tuple[int, ...]
    lease: str
    expires_s: float

    @property
    def matched(self) -> int:
        """How many leading chunks there are."""
        return len(self.nbytes)


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """What became of one chunk of a `read`.

    nbytes: that arrived; 0 unless the status is present
    body:   the bytes; None when they went into the caller's buffer, or are not there
    """

    status: Status
    nbytes: int
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Which chunks of a load have arrived, complete and verified; the others are misses.

    no_slices: whether the first of those is there, and has no slices (see `codec.chunk_body`): it can be loaded whole
    on_gpu:    how many leading ones lie on the GPU and not in their buffers (`load_chunks_on_gpu`)
    """

    arrived: tuple[bool, ...]
    no_slices: bool = False
    on_gpu: int = 0

    @property
    def leading(self) -> int:
        """How many have arrived before the first that has not."""
        return self.arrived.index(False) if False in self.arrived else len(self.arrived)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory for a chunk that is written in slices.

    name:      empty when the chunk is there already
    nbytes:    of KV, in all slices together
    expires_s: how long from now the slices may take
    """

    name: str
    nbytes: int
    expires_s: float


@dataclass(frozen=True, slots=True)
class SliceWritten:
    """What has become of a chunk with a slice.

    state: `open` while slices are missing; `committed`, it is visible; `present`, it was there before
    """

    state: str
    missing_nbytes: int


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a chunk to write: the bytes of `kv[layers, :, heads]` in C order. None is all layers, or all heads."""

    layers: range | None
    heads: range | None
    views: ReadableBuffer | Sequence[ReadableBuffer] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Prefetched:
    """Where chunks lay when they were asked to be prefetched.

    ranks:  for each chunk the fastest tier that held it, as an index into `tiers`; -1 for none
    wanted: how many are to be brought to memory
    """

    tiers: tuple[str, ...]
    ranks: tuple[int, ...]
    wanted: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """Objects of one bucket, by `keys`, by `hashes` of a `space`, or by a `prefix`, of which an empty one is all."""

    bucket: str
    keys: Sequence[str] | None = None
    space: str = ""
    hashes: Sequence[bytes] | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """What holds for every key of a bucket that begins with a prefix. None is no end."""

    bucket: str
    prefix: str
    pin: str
    pin_expires_s: float | None
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class Retained:
    """What became of each object that was named (`done`, `missing` or `refused`), or the rule of the prefix."""

    states: tuple[str, ...]
    rule: RetentionRule | None


@dataclass(frozen=True, slots=True)
class Retention:
    """What a tenant has asked to be kept.

    pinned_objects, pinned_nbytes: with hard pins; pinned_limit_nbytes: what there is room for, None for no limit
    marks: objects that have a pin or an end by a call of their own
    """

    pinned_objects: int
    pinned_nbytes: int
    pinned_limit_nbytes: int | None
    marks: int
    rules: tuple[RetentionRule, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now; see docs/jobs.md.

    state:     waiting, running or checking; or how it ended: done, incomplete, failed, cancelled or interrupted
    prefix:    None for a job about objects that were named, which `selected` counts
    done, skipped, failed, unmet, total: objects; done_nbytes, total_nbytes: their bytes
    saved_nbytes: that copies take less room than before, by `compress`; negative for more, by `decompress`
    objects_s, nbytes_s: a second, since it started to work
    reasons:   why objects were skipped or failed, with how many; examples: keys of which it does not hold, and why
    """

    id: str
    kind: str
    state: str
    message: str
    bucket: str
    prefix: str | None
    selected: int | None
    options: Mapping[str, object]
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    total: int
    done: int
    skipped: int
    failed: int
    unmet: int
    total_nbytes: int
    done_nbytes: int
    saved_nbytes: int
    objects_s: float
    nbytes_s: float
    reasons: tuple[tuple[str, int], ...]
    examples: tuple[tuple[str, str], ...]

    @property
    def has_ended(self) -> bool:
        """Whether it works no more."""
        return self.ended_ms is not None


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What one tenant has in one tier, and may have.

    limit_nbytes: None without a limit
    floor_nbytes: never evicted for another tenant's sake
    fair_nbytes:  its part when every tenant wants as much as it can get; None where the tier has no size of its own
    """

    objects: int
    nbytes: int
    limit_nbytes: int | None
    floor_nbytes: int
    weight: float
    fair_nbytes: int | None


@dataclass(frozen=True, slots=True)
class Stats:
    """A tenant's own numbers, since the gateway started where they count events.

    nbytes:  of each object once, however many tiers hold it
    rates:   how many `requests`, `read_bytes` and `write_bytes` it may have a second; None without a limit
    refused: how often it was refused, by what it was over
    """

    objects: int
    nbytes: int
    quota_nbytes: int | None
    tiers: Mapping[str, TierUsage]
    leases: int
    match_chunks_asked: int
    match_chunks_found: int
    rates: Mapping[str, float | None]
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where an object is, or what became of it; docs/explain.md says what each status means.

    tiers, nbytes, leases, modified_ms: of an object that is held
    pin:         `none`, `soft` or `hard`
    expires_ms:  when it ends
    tier, at_ms: where and when it came to its fate; of a present one, when it took the place of another body
    elsewhere:   another space of the bucket that holds a chunk of the same hash
    Times are in ms since the epoch by the gateway's clock; 0 and empty are unknown, or none.
    """

    key: str
    status: str
    reason: str
    tiers: tuple[str, ...]
    nbytes: int
    pin: str
    leases: int
    modified_ms: int
    expires_ms: int
    tier: str
    at_ms: int
    elsewhere: str


@dataclass(frozen=True, slots=True)
class NearSpace:
    """Another space of the bucket, the manifest's fields in which it differs, and how many chunks it has."""

    space: str
    differs: tuple[str, ...]
    chunks: int


@dataclass(frozen=True, slots=True)
class Explained:
    """What a gateway knows of objects, in the order in which they were asked for.

    now_ms:   the gateway's clock
    since_ms: what became of objects before this time may be forgotten
    away:     the tiers that cannot be asked now
    nearest:  the spaces that differ least; None when nobody knows what the space asked for is
    """

    objects: tuple[Explanation, ...]
    now_ms: int
    since_ms: int
    away: tuple[str, ...]
    nearest: tuple[NearSpace, ...] | None


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, and when it was made, as the gateway words it (ISO 8601)."""

    name: str
    created: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the gateway says of one object.

    nbytes:    of the whole object, whatever part of it was asked for
    crc64nvme: of the whole object; None when the gateway does not say
    modified:  as the gateway words it (an HTTP date)
    """

    key: str
    nbytes: int
    etag: str
    content_type: str
    modified: str
    metadata: Mapping[str, str]
    crc64nvme: int | None


@dataclass(frozen=True, slots=True)
class Object:
    """An object, or the part of it that was asked for.

    nbytes:   that arrived
    body:     the bytes; None when they went into the caller's buffer
    verified: whether they are the whole object and match its crc64nvme
    """

    info: ObjectInfo
    nbytes: int
    body: bytes | None = field(repr=False)
    verified: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing: an object, or, for `is_prefix`, all the keys that begin with `key`."""

    key: str
    nbytes: int = 0
    etag: str = ""
    modified: str = ""
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a listing; `token` asks for the next part and is empty at the end."""

    entries: tuple[Entry, ...]
    token: str
