"""What the wrappers of a shared tier have in common: each is a shared tier around another.

Every operation that may wait goes through `call`, which a wrapper overrides to add its one behaviour. The memory that
an operation uses is leased once more from its first step to its last, so that it may outlive the caller's own lease.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, TypeVar

from kvgate.memory.lease import Lease
from kvgate.tiers.base import Arrived, Copy, Name, Reader, Record, SharedTier, Upload, Usage

T = TypeVar("T")

Operation = Literal["start", "lookup", "begin", "write", "finish", "abort", "publish", "read", "close", "delete"]
"""`abort` and `close` let go of what an upload or a reader holds: they reach the tier whatever state it is in."""

RELEASING: frozenset[Operation] = frozenset({"abort", "close"})

Work = Callable[[], Coroutine[Any, Any, T]]
"""Begins the operation, each time that it is called."""


class Wrapper:
    """A shared tier around `tier`, which does what that does."""

    def __init__(self, tier: SharedTier) -> None:
        self.tier = tier
        self.name = tier.name
        self.shared = tier.shared
        self.read_only = tier.read_only

    async def call(self, operation: Operation, nbytes: int, work: Work[T]) -> T:
        """What one operation gives that moves `nbytes` bytes. Raises what it raises."""
        return await work()

    # --- Tier ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See Tier."""
        await self.call("start", 0, lambda: self.tier.start(found))

    async def close(self) -> None:
        """See Tier."""
        await self.tier.close()

    def usage(self) -> Usage:
        """See Tier."""
        return self.tier.usage()

    def room(self, tenant: str) -> int:
        """See Tier."""
        return self.tier.room(tenant)

    def limit(self) -> int:
        """See Tier."""
        return self.tier.limit()

    async def begin(self, tenant: str, nbytes: int | None) -> Upload:
        """See Tier."""
        return WrappedUpload(self, await self.call("begin", 0, lambda: self.tier.begin(tenant, nbytes)))

    async def publish(self, record: Record, copy: Copy) -> None:
        """See Tier."""
        await self.call("publish", 0, lambda: self.tier.publish(record, copy))

    def open(self, record: Record, copy: Copy) -> Reader:
        """See Tier."""
        return WrappedReader(self, self.tier.open(record, copy))

    async def delete(self, record: Record, copy: Copy) -> None:
        """See Tier."""
        await self.call("delete", 0, lambda: self.tier.delete(record, copy))

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """See SharedTier."""
        return await self.call("lookup", 0, lambda: self.tier.lookup(names))


class WrappedUpload:
    """An upload, each step of which goes through the wrapper's `call`."""

    def __init__(self, wrapper: Wrapper, upload: Upload) -> None:
        self._wrapper = wrapper
        self._upload = upload

    async def write(self, lease: Lease, start: int, stop: int) -> None:
        """See Upload."""

        async def write() -> None:
            with lease.share() as share:
                await self._upload.write(share, start, stop)

        await self._wrapper.call("write", stop - start, write)

    async def finish(self, record: Record, blocks: array[int]) -> Copy:
        """See Upload. A tier may move all of the object only now."""

        async def finish() -> Copy:
            return await self._upload.finish(record, blocks)

        return await self._wrapper.call("finish", record.nbytes, finish)

    async def abort(self) -> None:
        """See Upload."""
        await self._wrapper.call("abort", 0, self._upload.abort)


class WrappedReader:
    """A reader, each read of which goes through the wrapper's `call`."""

    def __init__(self, wrapper: Wrapper, reader: Reader) -> None:
        self._wrapper = wrapper
        self._reader = reader

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader."""
        return await self._wrapper.call("read", nbytes, self.reading(start, lease, nbytes, arrived))

    def reading(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None) -> Work[array[int]]:
        """The operation of one `read_into`."""

        async def read() -> array[int]:
            with lease.share() as share:
                return await self._reader.read_into(start, share, nbytes, arrived)

        return read

    async def close(self) -> None:
        """See Reader."""
        await self._wrapper.call("close", 0, self._reader.close)
