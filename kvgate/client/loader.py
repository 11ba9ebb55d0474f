"""Many chunks at once, as an engine loads a prefix: in parallel, under one deadline, and never with an exception.

Invariants
1. Chunks are begun in order, and none after the first that failed: a prefix is of no use beyond its first gap.
2. What is under way beyond the first gap is ended at once.
3. When a load returns, nobody writes into its buffers any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvgate.chunk.key import ChunkKey, check_bucket
from kvgate.client.buffers import writable
from kvgate.client.deadline import Deadline
from kvgate.client.values import Object
from kvgate.errors import GatewayError, InvalidArgument

if TYPE_CHECKING:
    from kvgate.client.aio import AsyncClient
    from kvgate.client.sync import Client

_log = logging.getLogger(__name__)


def load_chunks(
    client: Client,
    bucket: str,
    space: str,
    hashes: Sequence[bytes],
    buffers: Sequence[memoryview],
    deadline_s: float,
) -> int:
    """How many leading chunks have arrived, complete and verified, within `deadline_s`.

    hashes:  chain hashes of 32 bytes, in order
    buffers: one a chunk, of exactly its size; what lies in those beyond the returned number is undefined
    Uses up to `client.max_connections` threads, the caller's among them. A gateway that is down, slow or corrupt gives
    a shorter prefix, not an exception. Raises InvalidArgument, InvalidKey and InvalidBucketName.
    """
    keys, views = _checked(bucket, space, hashes, buffers)
    whole = Deadline(deadline_s)
    with _ending(whole):
        local, at_gap = client.load_locally(bucket, space, hashes, views, whole)
    if at_gap or local == len(keys):
        return local
    keys, views, hashes = keys[local:], views[local:], hashes[local:]
    prefix = _Prefix(len(keys))
    under_way: dict[int, Deadline] = {}

    def work() -> None:
        while (index := prefix.begin()) is not None:
            arrived = False
            try:
                share = under_way[index] = whole.share()
                if prefix.wants(index):  # asked once it can be cut, so that no failure in between is missed
                    got = client.fetch(bucket, keys[index], views[index], None, None, share)
                    arrived = _is_chunk(got, views[index])
            except GatewayError as error:
                _log.debug("chunk %s did not arrive: %s", hashes[index].hex()[:8], error)
            finally:
                under_way.pop(index, None)
                if not prefix.end(index, arrived):
                    for other, share in list(under_way.items()):
                        if other > index:
                            share.cut()

    threads = [
        threading.Thread(target=work, name="kvgate-load", daemon=True)
        for _ in range(min(client.max_connections, len(keys)) - 1)
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
    return local + prefix.leading


async def load_chunks_async(
    client: AsyncClient,
    bucket: str,
    space: str,
    hashes: Sequence[bytes],
    buffers: Sequence[memoryview],
    deadline_s: float,
) -> int:
    """`load_chunks` with tasks instead of threads. When it is cancelled, nobody writes into the buffers any more."""
    keys, views = _checked(bucket, space, hashes, buffers)
    whole = Deadline(deadline_s)
    local, at_gap = await client.load_locally(bucket, space, hashes, views, whole)
    if at_gap or local == len(keys):
        return local
    keys, views, hashes = keys[local:], views[local:], hashes[local:]
    prefix = _Prefix(len(keys))
    under_way: dict[int, asyncio.Task[Any] | None] = {}

    async def work() -> None:
        while (index := prefix.begin()) is not None:
            arrived = False
            try:
                under_way[index] = asyncio.current_task()
                got = await client.get(bucket, keys[index], into=views[index], deadline_s=whole.remaining_s())
                arrived = _is_chunk(got, views[index])
            except GatewayError as error:
                _log.debug("chunk %s did not arrive: %s", hashes[index].hex()[:8], error)
            finally:
                under_way.pop(index, None)
                if not prefix.end(index, arrived):
                    for other, beyond in list(under_way.items()):
                        if other > index and beyond is not None:
                            beyond.cancel()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(client.max_connections, len(keys))):
            group.create_task(work())
    return local + prefix.leading


@contextlib.contextmanager
def _ending(deadline: Deadline) -> Iterator[None]:
    """Cut the deadline when what is done within is broken off, so that no other thread goes on."""
    try:
        yield
    except BaseException:
        deadline.cut()
        raise


class _Prefix:
    """Which chunks have arrived, and which are still worth having. Thread-safe."""

    def __init__(self, chunks: int) -> None:
        self._lock = threading.Lock()
        self._arrived = [False] * chunks
        self._begun = 0
        self._gap = chunks

    def begin(self) -> int | None:
        """The next chunk to fetch; None when all are begun, or one has failed."""
        with self._lock:
            if self._begun >= self._gap:
                return None
            self._begun += 1
            return self._begun - 1

    def wants(self, index: int) -> bool:
        """Whether no chunk before `index` has failed."""
        return index < self._gap

    def end(self, index: int, arrived: bool) -> bool:
        """Note how a chunk ended, and return `arrived`."""
        with self._lock:
            self._arrived[index] = arrived
            if not arrived:
                self._gap = min(self._gap, index)
        return arrived

    @property
    def leading(self) -> int:
        """How many chunks have arrived before the first that has not."""
        return self._arrived.index(False) if False in self._arrived else len(self._arrived)


def _checked(
    bucket: str, space: str, hashes: Sequence[bytes], buffers: Sequence[memoryview]
) -> tuple[list[str], list[memoryview]]:
    check_bucket(bucket)
    if len(hashes) != len(buffers):
        raise InvalidArgument(f"{len(hashes)} chunks for {len(buffers)} buffers")
    return [str(ChunkKey(space, chunk_hash.hex())) for chunk_hash in hashes], [writable(view) for view in buffers]


def _is_chunk(got: Object, view: memoryview) -> bool:
    return got.verified and got.nbytes == len(view)
