"""What the store answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """The chunks present from the first one on, without a gap, leased for `expires_s` seconds.

    ranks:  for each chunk that of the fastest tier which holds it, an index into `tiers`
    nbytes: for each chunk the length of its body
    lease:  the name to release it by; empty when nothing was found
    """

    tiers: tuple[str, ...]
    ranks: list[int]
    nbytes: list[int]
    lease: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What a tenant has in one tier, and may have: see `store/shares.py`.

    limit_nbytes: None without a limit
    fair_nbytes:  its part when every tenant wants as much as it can get; None where the tier has no capacity of its own
    """

    objects: int
    nbytes: int
    limit_nbytes: int | None
    floor_nbytes: int
    weight: float
    fair_nbytes: int | None


@dataclass(frozen=True, slots=True)
class TenantStats:
    """A tenant's own numbers. `nbytes` counts each object once, uploads in flight included.

    rates:   how many requests, bytes read and bytes written it may have a second; None without a limit
    refused: how often it was refused since the gateway started, by what it was over
    """

    objects: int
    nbytes: int
    quota_nbytes: int | None
    tiers: dict[str, TierUsage]
    leases: int
    match_chunks_asked: int
    match_chunks_found: int
    rates: dict[str, float | None]
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """Objects of one bucket: those named by `keys`, or where that is None every key that begins with `prefix`."""

    bucket: str
    keys: tuple[str, ...] | None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Prefetched:
    """Where chunks lie when they are asked to be prefetched.

    ranks:  for each chunk that of the fastest tier which holds it, an index into `tiers`; None for one that is nowhere
    wanted: how many will be brought to memory, as far as there is room
    """

    tiers: tuple[str, ...]
    ranks: list[int | None]
    wanted: int
