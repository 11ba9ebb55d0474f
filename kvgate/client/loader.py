"""Many chunks at once, as an engine loads a prefix: in parallel, under one deadline, and never with an exception.

Chunks are fetched in groups that follow one another, a group in one `read` call. `Fetch` and `FetchAsync` are all that
is asked of the way to a gateway: one function that brings the chunks of a group.

Invariants
1. Groups are begun in order, and none after the first chunk that failed: a prefix is of no use beyond its first gap.
2. What is under way beyond the first gap is ended at once.
3. When a load returns, nobody writes into its buffers any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kvgate.chunk.form import RAW, Stored, stored_form
from kvgate.chunk.frame import Status
from kvgate.chunk.key import ChunkKey, check_bucket
from kvgate.chunk.layout import DATA_START, Layout, Runs
from kvgate.client.buffers import writable
from kvgate.client.values import Loaded
from kvgate.errors import GatewayError, GatewayUnavailable, InvalidArgument, LayoutError
from kvgate.http.deadline import Deadline

_log = logging.getLogger(__name__)

CONNECTIONS = 4
_GROUP_NBYTES = 32 << 20
_GROUP_CHUNKS = 256

Arrived = Callable[[int, Status], None]
"""Told of each chunk of a group by its index there: present where it came complete and verified, or what else became of
it. Raises to end the fetch."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The slice `kv[layers, :, heads]` of a chunk, in C order; of several tensors one behind the other.

    runs:         its bytes in the chunk object
    chunk_nbytes: of the whole object
    """

    layers: range
    heads: range
    runs: Runs
    chunk_nbytes: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Chunks to fetch.

    hashes:  chain hashes of 32 bytes, in order
    buffers: one a chunk, of exactly its size, or that of its slice
    cut:     the slice of each that is wanted; None for whole objects
    exact:   False takes objects that are shorter than their buffers, too; the rest of a buffer stays as it is
    """

    bucket: str
    space: str
    hashes: Sequence[bytes]
    buffers: Sequence[memoryview]
    cut: Cut | None = None
    exact: bool = True

    def part(self, group: range) -> Wanted:
        """The chunks of one group."""
        part = slice(group.start, group.stop)
        return replace(self, hashes=self.hashes[part], buffers=self.buffers[part])


class Fetch(Protocol):
    """Brings chunks over one transport."""

    def __call__(self, wanted: Wanted, deadline: Deadline, arrived: Arrived) -> None:
        """Fill the buffers in order. Raises GatewayError, and what `arrived` raises; the rest has then not arrived.

        When it returns or raises, nobody writes into the buffers any more. Another thread may cut `deadline`.
        """


class FetchAsync(Protocol):
    """See Fetch; it is cancelled instead of cut."""

    async def __call__(self, wanted: Wanted, deadline: Deadline, arrived: Arrived) -> None: ...


Local = Callable[[Wanted, Deadline], tuple[int, bool]]
"""How many leading chunks come without HTTP, and whether the next one is known to be nowhere."""

LocalAsync = Callable[[Wanted, Deadline], Awaitable[tuple[int, bool]]]


def cut_of(layout: Layout | Stored | None, layers: range | None, heads: range | None) -> Cut | None:
    """The slice of chunks of this layout, None for all layers or heads; without a layout, None for whole objects.

    Raises InvalidArgument for a slice that there is not.
    """
    if layout is None:
        if layers is not None or heads is not None:
            raise InvalidArgument("to load layers or heads, give the layout of the space")
        return None
    stored = layout if isinstance(layout, Stored) else stored_form(RAW, layout)
    layers = range(stored.layout.layers) if layers is None else layers
    heads = range(stored.layout.kv_heads) if heads is None else heads
    try:
        runs = stored.slices(layers, heads)
    except LayoutError as error:
        raise InvalidArgument(str(error)) from None
    return Cut(layers, heads, runs.in_file(), DATA_START + stored.nbytes)


def load_chunks(local: Local, fetch: Fetch, wanted: Wanted, deadline_s: float, connections: int) -> Loaded:
    """Which chunks have arrived, complete and verified, within `deadline_s`.

    Uses up to `connections` threads, the caller's among them. A gateway that is down, slow or corrupt gives a shorter
    prefix, not an exception; what lies in the buffers of chunks that have not arrived is undefined.
    Raises InvalidArgument, InvalidKey and InvalidBucketName.
    """
    wanted, whole = _checked(wanted), Deadline(deadline_s)
    with _ending(whole):
        done, at_gap = local(wanted, whole)
    count = len(wanted.hashes)
    if at_gap or done == count:
        return Loaded((True,) * done + (False,) * (count - done))
    wanted = wanted.part(range(done, count))
    prefix = _Prefix(_groups(wanted.buffers, connections))
    under_way: dict[int, Deadline] = {}

    def work() -> None:
        while (group := prefix.begin()) is not None:
            try:
                share = under_way[group.start] = whole.share()
                if prefix.wants(group.start):  # asked once it can be cut, so that no failure in between is missed
                    fetch(wanted.part(group), share, prefix.noting(group))
            except GatewayError as error:
                _log.debug("chunks from %s on did not arrive: %s", wanted.hashes[group.start].hex()[:8], error)
            finally:
                under_way.pop(group.start, None)
                if not prefix.end(group):
                    for other, share in list(under_way.items()):
                        if not prefix.wants(other):
                            share.cut()

    threads = [
        threading.Thread(target=work, name="kvgate-load", daemon=True)
        for _ in range(min(connections, prefix.groups) - 1)
    ]
    try:
        for thread in threads:
            thread.start()
        work()
    except BaseException:
        whole.cut()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    return Loaded((True,) * done + prefix.arrived, prefix.ends_without_slices)


async def load_chunks_async(
    local: LocalAsync, fetch: FetchAsync, wanted: Wanted, deadline_s: float, connections: int
) -> Loaded:
    """`load_chunks` with tasks instead of threads. When it is cancelled, nobody writes into the buffers any more."""
    wanted, whole = _checked(wanted), Deadline(deadline_s)
    done, at_gap = await local(wanted, whole)
    count = len(wanted.hashes)
    if at_gap or done == count:
        return Loaded((True,) * done + (False,) * (count - done))
    wanted = wanted.part(range(done, count))
    prefix = _Prefix(_groups(wanted.buffers, connections))
    under_way: dict[int, asyncio.Task[Any] | None] = {}

    async def work() -> None:
        while (group := prefix.begin()) is not None:
            try:
                under_way[group.start] = asyncio.current_task()
                await fetch(wanted.part(group), whole.share(), prefix.noting(group))
            except GatewayError as error:
                _log.debug("chunks from %s on did not arrive: %s", wanted.hashes[group.start].hex()[:8], error)
            finally:
                under_way.pop(group.start, None)
                if not prefix.end(group):
                    for other, beyond in list(under_way.items()):
                        if not prefix.wants(other) and beyond is not None:
                            beyond.cancel()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(connections, prefix.groups)):
            tasks.create_task(work())
    return Loaded((True,) * done + prefix.arrived, prefix.ends_without_slices)


@contextlib.contextmanager
def _ending(deadline: Deadline) -> Iterator[None]:
    """Cut the deadline when what is done within is broken off, so that no other thread goes on."""
    try:
        yield
    except BaseException:
        deadline.cut()
        raise


class _Prefix:
    """Which chunks have arrived, and which groups are still worth having. Thread-safe."""

    def __init__(self, groups: Sequence[range]) -> None:
        chunks = groups[-1].stop if groups else 0
        self.groups = len(groups)
        self._lock = threading.Lock()
        self._groups = groups
        self._arrived = [False] * chunks
        self._begun = 0
        self._gap = chunks
        self._without_slices: set[int] = set()

    def begin(self) -> range | None:
        """The next group to fetch; None when all are begun, or a chunk has failed."""
        with self._lock:
            if self._begun == len(self._groups) or self._groups[self._begun].start > self._gap:
                return None
            self._begun += 1
            return self._groups[self._begun - 1]

    def wants(self, index: int) -> bool:
        """Whether no chunk before `index` has failed."""
        return index <= self._gap

    def noting(self, group: range) -> Arrived:
        """What notes the chunks of a group, and raises GatewayUnavailable when no more are wanted of it."""

        def arrived(index: int, status: Status) -> None:
            with self._lock:
                self._arrived[group[index]] = status == Status.PRESENT
                if status == Status.NO_SLICES:
                    self._without_slices.add(group[index])
                if status != Status.PRESENT:
                    self._gap = min(self._gap, group[index])
                if self._gap < group.stop:
                    raise GatewayUnavailable(f"chunk {self._gap} did not arrive; no more are wanted")

        return arrived

    def end(self, group: range) -> bool:
        """Note that a group has ended; whether all of it has arrived."""
        with self._lock:
            failed = next((index for index in group if not self._arrived[index]), None)
            if failed is not None:
                self._gap = min(self._gap, failed)
        return failed is None

    @property
    def arrived(self) -> tuple[bool, ...]:
        """Of each chunk, whether it has arrived."""
        return tuple(self._arrived)

    @property
    def ends_without_slices(self) -> bool:
        """Whether the first chunk that has not arrived is there, in a form that has no slices."""
        return self._gap in self._without_slices


def _groups(buffers: Sequence[memoryview], connections: int) -> list[range]:
    """Chunks that follow one another, of about equal bytes, so that every connection has some."""
    limit_nbytes = min(_GROUP_NBYTES, -(-sum(map(len, buffers)) // max(connections, 1)))
    return list(_divided(buffers, limit_nbytes))


def _divided(buffers: Sequence[memoryview], limit_nbytes: int) -> Iterator[range]:
    start = nbytes = 0
    for index, buffer in enumerate(buffers):
        if index > start and (nbytes + len(buffer) > limit_nbytes or index - start == _GROUP_CHUNKS):
            yield range(start, index)
            start, nbytes = index, 0
        nbytes += len(buffer)
    if start < len(buffers):
        yield range(start, len(buffers))


def _checked(wanted: Wanted) -> Wanted:
    check_bucket(wanted.bucket)
    if len(wanted.hashes) != len(wanted.buffers):
        raise InvalidArgument(f"{len(wanted.hashes)} chunks for {len(wanted.buffers)} buffers")
    for chunk_hash in wanted.hashes:
        ChunkKey(wanted.space, chunk_hash.hex())
    buffers = [writable(view) for view in wanted.buffers]
    if wanted.cut is not None and not wanted.exact:
        raise InvalidArgument("a slice has one size: exact=False is for whole objects")
    if wanted.cut is not None and any(len(view) != wanted.cut.runs.nbytes for view in buffers):
        raise InvalidArgument(f"the slice of a chunk has {wanted.cut.runs.nbytes} bytes, and a buffer another length")
    return replace(wanted, buffers=buffers)
