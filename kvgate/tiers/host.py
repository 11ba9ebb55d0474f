"""The host tier: copies in the arena, used where they lie."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec

from kvgate.config import MiB, Size, option
from kvgate.errors import ArenaFull, ConfigError, CorruptCopy, NotInTier, TierFull
from kvgate.memory.arena import Arena
from kvgate.memory.digest import block_span, span_of_blocks, verify_blocks
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import Arrived, Copy, Record, Usage

P = ParamSpec("P")

_THREADS = 2
_INLINE_NBYTES = 4 * MiB
"""Up to this much is verified or copied on the event loop: a tenth of a millisecond, less than a change of thread."""


@dataclass(frozen=True)
class HostConfig:
    """How much host memory holds chunks."""

    capacity: Size = option(default=Size(1 << 30), help="bytes of host memory for chunks")
    segment: Size = option(
        default=Size(64 * MiB), help="bytes of memory that a tenant gets at a time; tenants never share a segment"
    )
    prefault: Size = option(
        default=Size(256 * MiB),
        help="bytes of `capacity` that are kept ready for what comes next; more for longer bursts into an empty tier, "
        "0 leaves memory to others until it is needed",
    )

    def __post_init__(self) -> None:
        for key, nbytes in (("capacity", self.capacity), ("segment", self.segment)):
            if nbytes < MiB:
                raise ConfigError(f"{key}: expected at least 1MiB, got {nbytes} bytes")


@dataclass(slots=True)
class HostCopy:
    """An object in the arena; `lease` is None once the copy is deleted."""

    lease: Lease | None
    blocks: array[int]


class HostTier:
    """Objects in the arena, which it owns. A copy's pages return when the tier and every reader have let go."""

    name = "host"
    shared = False
    read_only = False
    Config = HostConfig

    def __init__(self, config: HostConfig) -> None:
        self.arena = Arena(config.capacity, config.segment, config.prefault)
        self._threads = started_threads(_THREADS, "kvgate-host")

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See Tier. Nothing in memory survives."""
        self.arena.start()

    async def close(self) -> None:
        """See Tier."""
        self._threads.shutdown()
        self.arena.close()

    def usage(self) -> Usage:
        """See Tier."""
        return Usage(self.arena.used_nbytes, self.arena.capacity_nbytes)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return self.arena.headroom(tenant)

    def used_by(self, tenant: str) -> int:
        """The memory that a tenant has, in whole pages: its copies, and what is on its way in or out."""
        return self.arena.used_by(tenant)

    def limit(self) -> int:
        """See Tier."""
        return self.arena.capacity_nbytes

    def reserve(self, tenant: str, nbytes: int) -> Lease:
        """See Mapped."""
        return self.arena.reserve(tenant, nbytes)

    def adopt(self, lease: Lease, blocks: array[int]) -> HostCopy:
        """See Mapped."""
        return HostCopy(lease, blocks)

    async def lease(self, record: Record, copy: HostCopy, start: int, stop: int) -> Lease:
        """See Mapped."""
        if copy.lease is None:
            raise NotInTier("the copy is gone")
        lease = copy.lease.share()
        try:
            await self.run(lease, stop - start, _verify, lease, record, copy.blocks, start, stop)
        except BaseException:
            lease.release()
            raise
        return lease

    async def begin(self, tenant: str, nbytes: int | None) -> HostUpload:
        """See Tier."""
        try:
            return HostUpload(self, self.arena.reserve(tenant, nbytes or 0))
        except ArenaFull as error:
            raise TierFull(str(error)) from error

    async def publish(self, record: Record, copy: HostCopy) -> None:
        """See Tier. What is in memory is not reported after a start."""

    def open(self, record: Record, copy: HostCopy) -> HostReader:
        """See Tier."""
        return HostReader(self, record, copy)

    async def blocks(self, record: Record, copy: HostCopy) -> array[int]:
        """See Digested."""
        return copy.blocks

    async def delete(self, record: Record, copy: HostCopy) -> None:
        """See Tier."""
        self.drop(copy)

    async def run(
        self, leases: Lease | tuple[Lease, ...], nbytes: int, fn: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Run `fn`, which touches `nbytes` of leased memory: here if they are few, else in a thread."""
        if nbytes <= _INLINE_NBYTES:
            fn(*args, **kwargs)
        else:
            await run_holding(leases, self._threads, fn, *args, **kwargs)

    def drop(self, copy: HostCopy) -> None:
        """Delete a copy at once; in memory this needs no waiting."""
        if copy.lease is not None:
            copy.lease.release()
            copy.lease = None


class HostUpload:
    """A copy that is being filled from other leases."""

    def __init__(self, tier: HostTier, lease: Lease) -> None:
        self._tier = tier
        self._lease: Lease | None = lease
        self._offset = 0

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""
        assert self._lease is not None, "the upload has ended"
        end = self._offset + stop - start
        if end > self._lease.nbytes:
            try:
                self._lease.extend(end - self._lease.nbytes)
            except ArenaFull as error:
                raise TierFull(str(error)) from error
        sources, targets = lease.slices(start, stop), self._lease.slices(self._offset, end)
        await self._tier.run((lease, self._lease), stop - start, copy_bytes, sources, targets)
        self._offset = end

    async def finish(self, record: Record, blocks: array[int]) -> HostCopy:
        """See Upload."""
        lease, self._lease = self._lease, None
        return HostCopy(lease, blocks)

    async def abort(self) -> None:
        """See Upload."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


class HostReader:
    """One open copy."""

    def __init__(self, tier: HostTier, record: Record, copy: HostCopy) -> None:
        self._tier = tier
        self._record = record
        self._blocks = copy.blocks
        self._lease = copy.lease.share() if copy.lease is not None else None

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        if self._lease is None:
            raise NotInTier("the copy is gone")
        await self._tier.run(
            self._lease, nbytes, _verify, self._lease, self._record, self._blocks, start, start + nbytes
        )
        sources, targets = self._lease.slices(start, start + nbytes), lease.slices(0, nbytes)
        await self._tier.run((self._lease, lease), nbytes, copy_bytes, sources, targets)
        return self._blocks[span_of_blocks(start, start + nbytes)]

    async def close(self) -> None:
        """See Reader."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


def copy_bytes(sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
    """Copy what `sources` hold, in order, into `targets` of the same total length."""
    pending = iter(targets)
    target = memoryview(b"")
    for source in sources:
        done = 0
        while done < len(source):
            if not target:
                target = next(pending)
            count = min(len(source) - done, len(target))
            target[:count] = source[done : done + count]
            target = target[count:]
            done += count


def _verify(lease: Lease, record: Record, blocks: array[int], start: int, stop: int) -> None:
    first, last = block_span(start, stop, record.nbytes)
    if not verify_blocks(lease.slices(first, last), first, last, record.nbytes, blocks):
        raise CorruptCopy("the bytes in memory do not match their digest")
