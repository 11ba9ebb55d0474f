"""The S3 tier: objects in a bucket of any S3 store, which any number of gateways share.

An object is its body and the footer of `footer.py`, under the key of `s3_keys.py`. The first writer wins, by
conditional requests. Where a store ignores conditions, it is asked before and after each write, and of two different
bodies that are written for one key at the same moment the later one stays. Whoever reads gets a verified body or
NotInTier either way.

Blocking requests run in the tier's threads, on sockets that receive straight into the lease and send straight from it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from kvgate.errors import CorruptCopy, DeadlineExceeded, NotInTier, TierError, TierFull
from kvgate.http.deadline import Deadline
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import Copy, Name, Record, Usage
from kvgate.tiers.s3_calls import ConditionFailed, ConditionIgnored
from kvgate.tiers.s3_config import S3Config, connect
from kvgate.tiers.s3_footers import CorruptEtag, Footers, Found
from kvgate.tiers.s3_keys import folder_key
from kvgate.tiers.s3_parts import abort_old
from kvgate.tiers.s3_reader import S3Reader
from kvgate.tiers.s3_upload import FOOTER_ALLOWANCE_NBYTES, S3Upload

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_NBYTES = 1 << 40
_SWEEP_AFTER_S = 1.0
_DAY_S = _ORPHAN_S = 24 * 3600.0
_MOST_UNSURE = 100_000
_ABOUT_KEY = "=about.json"
_ABOUT = b'{"what": "a tier that kvgate gateways share", "layout": 1}\n'
_GONE = frozenset({200, 204, 404})


class S3Tier:
    """Objects in a bucket. See the module."""

    name = "s3"
    shared = True
    read_only = False
    Config = S3Config

    def __init__(self, config: S3Config) -> None:
        """Raises ConfigError for CA certificates that cannot be read."""
        self._config = config
        self._place, self.calls = connect(config)
        self.footers = Footers(self.calls, config.prefix, config.footers)
        self._transfers = started_threads(config.transfers, "kvgate-s3")
        self._lookups = started_threads(config.lookups, "kvgate-s3-lookup")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._open = Deadline(math.inf)
        self._unsure: OrderedDict[str, None] = OrderedDict()
        self._used_nbytes = 0
        self._conditions: bool | None = None
        self._life = secrets.token_hex(8)
        self._numbers = count(1)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See SharedTier. A store that is away is no obstacle: nothing is asked of it here."""
        logger.info("%s tier: %s", self.name, self._place)
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_daily())

    async def close(self) -> None:
        """See Tier."""
        tasks = [*self._tasks, *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        self._open.cut()  # what nobody waits for any more ends now
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._transfers.shutdown)
        await asyncio.to_thread(self._lookups.shutdown)
        self.calls.close()

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something in the background whose failure is only noted."""
        task = asyncio.get_running_loop().create_task(self._noting(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _noting(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except TierError as error:
            logger.debug("%s tier: an unfinished multipart upload stays for a while: %s", self.name, error)

    async def _sweep_daily(self) -> None:
        """Abort uploads that nobody will finish: of gateways that died, or that could not abort them."""
        await asyncio.sleep(_SWEEP_AFTER_S)  # first the gateway has to get ready
        prefix = folder_key(self._config.prefix)
        while True:
            try:
                aborted = await self.in_thread((), abort_old, self.calls, prefix, _ORPHAN_S)
                if aborted:
                    logger.info("%s tier: aborted %d multipart uploads that nobody finished", self.name, aborted)
            except TierError as error:
                logger.warning("%s tier: unfinished multipart uploads stay until tomorrow: %s", self.name, error)
            await asyncio.sleep(_DAY_S)

    # --- room ---------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """See Tier. An object that was deleted counts as ours when its upload was one of this life."""
        return Usage(self._used_nbytes, self._config.capacity)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return _body_nbytes(self.left_nbytes)

    def limit(self) -> int:
        """See Tier."""
        return min(_MAX_NBYTES, _body_nbytes(self._config.capacity or _MAX_NBYTES * 2))

    @property
    def left_nbytes(self) -> int:
        """How many bytes may be taken now, footers included."""
        capacity_nbytes = self._config.capacity
        return _MAX_NBYTES * 2 if capacity_nbytes is None else capacity_nbytes - self._used_nbytes

    def take(self, nbytes: int) -> None:
        """Count `nbytes` more as taken, or give back when negative; for this tier's uploads."""
        self._used_nbytes += nbytes

    def doubt(self, writer: str) -> None:
        """Take note of an upload that failed: the store may have its object nevertheless, which is not counted."""
        self._unsure[writer] = None
        while len(self._unsure) > _MOST_UNSURE:
            self._unsure.popitem(last=False)

    def count_in(self, found: Found, writer: str) -> None:
        """Count an object that the upload `writer` has stored or found there, if it is its own or a doubtful one's."""
        if found.writer == writer or found.writer in self._unsure:
            self._unsure.pop(found.writer, None)
            self.take(found.total_nbytes)

    # --- copies -------------------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, nbytes: int | None) -> S3Upload:
        """See Tier."""
        if nbytes is not None and nbytes > min(self.room(tenant), self.limit()):
            raise TierFull(f"the S3 tier has no room for {nbytes} bytes")
        return S3Upload(self, nbytes, f"{self._life}-{next(self._numbers)}")

    async def publish(self, record: Record, copy: Copy) -> None:
        """See SharedTier."""

    def open(self, record: Record, copy: Copy) -> S3Reader:
        """See Tier."""
        return S3Reader(self, record)

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """See SharedTier. One request a name, `lookups` at a time."""
        if not names:
            return []
        waiting = deque(enumerate(names))
        records: list[Record | None] = [None] * len(names)

        def look(scope: Deadline) -> None:
            while waiting:
                try:
                    place, name = waiting.popleft()
                except IndexError:  # another thread had the last one
                    return
                try:
                    records[place] = self.footers.look(name, scope).record
                except (NotInTier, CorruptCopy):
                    continue

        await self._run((), self._lookups, min(len(names), self._config.lookups), look)
        return records

    async def delete(self, record: Record, copy: Copy) -> None:
        """See SharedTier. What is no whole copy of anything is deleted as well."""
        deleted = await self.in_thread((), self._delete, record)
        if deleted is None or not deleted.writer.startswith(f"{self._life}-"):
            return
        if deleted.writer in self._unsure:
            del self._unsure[deleted.writer]
        else:
            self._used_nbytes = max(0, self._used_nbytes - deleted.total_nbytes)

    def _delete(self, record: Record, scope: Deadline) -> Found | None:
        """Delete what a record describes; what that was, if it was whole."""
        name = Name(*record[:3])
        found = None
        try:
            found = self.footers.look(name, scope)
            if not found.record.same_body(record):
                return None
            etag = found.etag
        except NotInTier:
            return None
        except CorruptEtag as error:
            etag = error.etag
        self.footers.forget(name)
        pin = {"if-match": etag} if etag else {}
        try:
            self._remove(name, pin, scope)
        except ConditionIgnored:
            self._remove(name, {}, scope)
        except (ConditionFailed, NotInTier):  # another gateway was faster
            return None
        return found

    def _remove(self, name: Name, pin: dict[str, str], scope: Deadline) -> None:
        self.calls.call("DELETE", self.footers.key(name), scope, headers=pin, accept=_GONE)

    # --- for uploads and readers --------------------------------------------------------------------------------------

    @property
    def part_nbytes(self) -> int:
        """What one request moves."""
        return self._config.part

    @property
    def parallel(self) -> int:
        """How many requests move parts of one object."""
        return self._config.parallel

    @property
    def spool_folder(self) -> Path | None:
        """Where bodies lie that are nowhere whole in memory."""
        return self._config.spool

    async def honours_conditions(self) -> bool:
        """Whether the store refuses to replace an object where the request asks that. Raises TierError."""
        if self._conditions is None:
            self._conditions = await self.in_thread((), self._learn_conditions)
            if not self._conditions:
                logger.warning(
                    "%s tier: this S3 store ignores If-None-Match; each write looks before and after it", self.name
                )
        return self._conditions

    def _learn_conditions(self, scope: Deadline) -> bool:
        """Write the note that says what the prefix is, which must be refused where there is one."""
        key = folder_key(self._config.prefix) + _ABOUT_KEY
        headers = {"content-type": "application/json", "if-none-match": "*"}
        for _ in range(2):
            try:
                self.calls.call("PUT", key, scope, headers=headers, views=[memoryview(_ABOUT)])
            except ConditionFailed:
                return True
            except ConditionIgnored:
                return False
        return False

    async def in_thread(
        self,
        leases: Lease | Sequence[Lease],
        fn: Callable[..., T],
        *args: object,
    ) -> T:
        """What `fn(*args, scope)` returns or raises in one of the tier's threads, with `leases` held while it runs.

        When the caller is cancelled, `scope` is cut.
        """
        scope = self._scope()
        try:
            return await run_holding(leases, self._transfers, fn, *args, scope)
        except asyncio.CancelledError:
            scope.cut()
            raise

    async def in_threads(self, leases: Lease | Sequence[Lease], threads: int, fn: Callable[[Deadline], None]) -> None:
        """Run `fn(scope)` in so many of the tier's threads at once. The first failure ends them all, and is raised."""
        await self._run(leases, self._transfers, threads, fn)

    async def _run(
        self,
        leases: Lease | Sequence[Lease],
        executor: ThreadPoolExecutor,
        threads: int,
        fn: Callable[[Deadline], None],
    ) -> None:
        scope = self._scope()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                fn(scope)
            except BaseException as error:
                failures.append(error)
                scope.cut()
                raise

        try:
            ended = await asyncio.gather(
                *[run_holding(leases, executor, work) for _ in range(threads)], return_exceptions=True
            )
        except asyncio.CancelledError:
            scope.cut()
            raise
        for error in (*failures, *ended):
            if error is not None:
                raise error

    def _scope(self) -> Deadline:
        """For the requests of one operation, which it can cut."""
        try:
            return self._open.capped(math.inf)
        except DeadlineExceeded:
            raise TierError(f"the {self.name} tier is closed") from None


def _body_nbytes(room_nbytes: int) -> int:
    """The largest body whose footprint fits into `room_nbytes`, to within a few bytes."""
    return max(0, room_nbytes - FOOTER_ALLOWANCE_NBYTES - 8 * (room_nbytes // BLOCK_NBYTES + 1))
