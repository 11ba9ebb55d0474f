"""Carries jobs out: their objects are worked on, a few at a time, and at the end it is checked what holds.

A job is written down when it begins and when it ends, so that what one was told of survives. One whose gateway stops is
interrupted, and is not taken up again: every kind does nothing for what is done already, so its tenant begins it anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from kvgate.errors import InvalidArgument, KVGateError, TierError
from kvgate.metrics import Metrics
from kvgate.store.copies import MEMORY, Copies
from kvgate.store.durable import DurableFile, Statement
from kvgate.store.index import Entry, Index
from kvgate.store.job_kinds import KINDS
from kvgate.store.job_kinds.base import Kind, Skipped, Work
from kvgate.store.jobs import Job, JobsConfig, JobTable, State, loads
from kvgate.store.keeper import Keeper
from kvgate.store.recoder import Recoder
from kvgate.store.retention import Retention
from kvgate.store.values import Selection
from kvgate.tiers.base import Name, SharedTier
from kvgate.tiers.turns import Turn, Turns

logger = logging.getLogger(__name__)

SCHEMA = "create table jobs (id text primary key, document text not null) without rowid;"

_PUT = "insert or replace into jobs values (?, ?)"
_FORGET = "delete from jobs where id = ?"

_STEP = 500
"""Objects looked at before others have their turn."""

_FORGET_EVERY_S = 60.0

Page = list[tuple[str, Entry | None]]
"""Keys with their entries, None where there is no object."""


class JobRunner:
    """The jobs of every tenant. All methods run on the event loop."""

    def __init__(
        self,
        *,
        index: Index,
        copies: Copies,
        keeper: Keeper,
        retention: Retention,
        bring: Callable[[Entry, int], Awaitable[None]],
        recoder: Recoder,
        delete: Callable[[str, str, str], Awaitable[bool]],
        find: Callable[..., Awaitable[None]],
        file: DurableFile,
        config: JobsConfig,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        """
        bring:  gives an entry a copy in the tier of a rank. Raises TierError
        delete: deletes the object of a tenant's bucket and key
        find:   looks for keys of a tenant's bucket in shared tiers, so that the index knows them
        """
        self._index, self._copies, self._keeper, self._retention = index, copies, keeper, retention
        self._bring, self._recoder, self._delete, self._find = bring, recoder, delete, find
        self._file, self._config, self._metrics, self._now_ms = file, config, metrics, now_ms
        self._table = JobTable(config, now_ms)
        self._turns = Turns(config.operations, config.in_flight, waiting=1 << 30)  # one a job that works
        self._working: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup
        self._stopping = False

    # --- what tenants ask ---------------------------------------------------------------------------------------------

    async def start(self, tenant: str, kind: str, selection: Selection, options: Mapping[str, Any]) -> Job:
        """A job, which has been written down. Raises InvalidArgument, NoSuchBucket, Overloaded, TierError."""
        self._index.bucket(tenant, selection.bucket)
        _check_options(kind, options)
        KINDS[kind](self._work_of(tenant, selection, options))  # for what it refuses
        job = self._table.add(tenant, kind, selection, options)
        try:
            await self._file.write([_row(job)])
        except TierError:
            job.end(State.FAILED, self._now_ms(), "it could not be written down")
            raise
        self._begin_waiting()
        return job

    def of(self, tenant: str) -> list[Job]:
        """The tenant's jobs, the newest first."""
        return self._table.of(tenant)

    def get(self, tenant: str, id: str) -> Job:
        """One job. Raises NoSuchJob, also when it is another tenant's."""
        return self._table.get(tenant, id)

    async def cancel(self, tenant: str, id: str) -> Job:
        """End a job where it is; what it has done stays done. One that has ended stays as it is. Raises NoSuchJob."""
        job = self._table.get(tenant, id)
        if job.end(State.CANCELLED, self._now_ms()):
            task = self._working.get(job.id)
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            await self._file.write([_row(job)])
        return job

    # --- life ---------------------------------------------------------------------------------------------------------

    def begin(self, tasks: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Take the task group that jobs belong to; what runs until it is cancelled."""
        self._tasks = tasks
        return tasks.create_task(self._forget_forever())

    async def load(self) -> None:
        """Take over what an earlier run of the gateway has written down."""
        self._file.open()
        jobs, unreadable = [], []
        for id, document in self._file.rows("select id, document from jobs"):
            try:
                jobs.append(loads(document))
            except (ValueError, TypeError, KeyError):
                unreadable.append(id)
        interrupted = self._table.load(jobs)
        forgotten = self._table.forget_old()
        gone = {*unreadable, *(job.id for job in forgotten)}
        rows = [_row(job) for job in interrupted if job.id not in gone]
        await self._file.write(rows + [(_FORGET, (id,)) for id in gone])

    async def stop(self) -> None:
        """Interrupt every job, and write down where it was."""
        self._stopping = True
        active = self._table.active()
        working = list(self._working.values())
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
        for job in active:
            job.end(State.INTERRUPTED, self._now_ms(), "the gateway stopped")
        try:
            await self._file.write([_row(job) for job in active])
        except TierError as error:
            logger.warning("where jobs were is not written down: %s", error)
        self._file.close()

    def collect(self) -> None:
        """Bring the gauges of the metrics up to date."""
        active = self._table.active()
        waiting = sum(job.state is State.WAITING for job in active)
        self._metrics.jobs.labels("waiting").set(waiting)
        self._metrics.jobs.labels("working").set(len(active) - waiting)

    async def _forget_forever(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            try:
                await self._file.write([(_FORGET, (job.id,)) for job in self._table.forget_old()])
            except TierError as error:
                logger.warning("old jobs are not forgotten in the file: %s", error)

    # --- one job ------------------------------------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        if not self._stopping:
            for job in self._table.startable():
                self._working[job.id] = self._tasks.create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        state, message = State.FAILED, ""
        try:
            logger.info("job %s begins: %s", job.id, job.kind)
            await self._carry_out(job)
            state = State.INCOMPLETE if job.unmet else State.DONE
        except asyncio.CancelledError:
            if not (self._stopping or job.has_ended):
                raise
            state, message = State.INTERRUPTED, "the gateway stopped"
        except KVGateError as error:
            message = str(error)
        except Exception:
            logger.exception("job %s failed", job.id)
            message = "a defect of the gateway; its log has the cause under the name of the job"
        finally:
            del self._working[job.id]
            job.end(state, self._now_ms(), message)
            logger.info("job %s ends: %s, %d of %d objects", job.id, job.state, job.done, job.total)
            self._begin_waiting()
        if not self._stopping:
            self._copies.spawn(self._file.write([_row(job)]))

    async def _carry_out(self, job: Job) -> None:
        chosen = job.selection
        kind = KINDS[job.kind](self._work_of(job.tenant, chosen, job.options, job))
        await kind.begin()
        async for page in self._pages(job.tenant, chosen):
            job.total += len(page)
            job.total_nbytes += sum(entry.record.nbytes for _, entry in page if entry is not None)
        try:
            async with asyncio.TaskGroup() as group:
                async for page in self._pages(job.tenant, chosen):
                    for key, found in page:
                        await self._begin_one(group, job, kind, key, found)
        except BaseExceptionGroup as errors:  # what the loop itself has raised
            raise errors.exceptions[0] from None
        job.state = State.CHECKING
        async for page in self._pages(job.tenant, chosen):
            await self._check(job, kind, page)

    async def _begin_one(self, group: asyncio.TaskGroup, job: Job, kind: Kind, key: str, found: Entry | None) -> None:
        """Have one object worked on, as soon as it is its turn."""
        turn = await self._take_turn(found.record.nbytes if kind.moves and found is not None else 0)
        entry = found
        if found is None or not found.current:
            try:
                entry = self._index.get(job.tenant, job.selection.bucket, key)
            except BaseException:
                self._turns.leave(turn)
                raise
        if entry is None:
            self._turns.leave(turn)
            self._note(job, kind.why_not(key, None), 0)
        else:
            group.create_task(self._do(job, kind, entry, turn))

    async def _do(self, job: Job, kind: Kind, entry: Entry, turn: Turn) -> None:
        try:
            await kind.do(entry)
        except Skipped as error:
            job.note_skipped(str(error))
            self._metrics.job_objects.labels(job.kind, "skipped").inc()
        except KVGateError as error:
            self._note(job, str(error), 0)
        except Exception:
            logger.exception("job %s failed for one object", job.id)
            self._note(job, "a defect of the gateway", 0)
        else:
            self._note(job, "", entry.record.nbytes)
        finally:
            self._turns.leave(turn)
        job.total = max(job.total, job.done + job.skipped + job.failed)
        job.total_nbytes = max(job.total_nbytes, job.done_nbytes)

    def _note(self, job: Job, reason: str, nbytes: int) -> None:
        """Count an object that was worked on, or with a reason failed."""
        if reason:
            job.note_failed(reason)
        else:
            job.note_done(nbytes)
        self._metrics.job_objects.labels(job.kind, "failed" if reason else "done").inc()

    async def _check(self, job: Job, kind: Kind, page: Page) -> None:
        """Note of which keys it does not hold. A shared tier is asked itself, as others may have changed it."""
        holding = []
        for key, entry in page:
            if why := kind.why_not(key, entry):
                job.note_unmet(key, why)
            elif entry is not None:
                holding.append(entry)
        if kind.home is None or not self._copies.tiers[kind.home].shared or not holding:
            return
        tier: SharedTier = self._copies.tiers[kind.home]  # type: ignore[assignment]
        asked = [entry for entry in holding if entry.has_copy(kind.home)]
        try:
            found = await tier.lookup([Name(*entry.record[:3]) for entry in asked])
        except TierError as error:
            for entry in asked:
                job.note_unmet(entry.record.key, f"the {tier.name} tier could not be asked: {error}")
            return
        for entry, record in zip(asked, found, strict=True):
            if record is None or not record.same_body(entry.record):
                job.note_unmet(entry.record.key, f"the {tier.name} tier does not have it any more")

    # --- the parts of it ----------------------------------------------------------------------------------------------

    async def _pages(self, tenant: str, chosen: Selection) -> AsyncIterator[Page]:
        """What is selected, a page at a time, as it is then. Raises NoSuchBucket."""
        if chosen.keys is not None:
            for start in range(0, len(chosen.keys), _STEP):
                keys = chosen.keys[start : start + _STEP]
                await self._find(tenant, chosen.bucket, *keys)
                yield [(key, self._index.get(tenant, chosen.bucket, key)) for key in keys]
                await asyncio.sleep(0)
            return
        after, more = "", True
        while more:
            listing = self._index.list(tenant, chosen.bucket, chosen.prefix, "", after, _STEP)
            after, more = listing.next_after, listing.truncated
            yield [(record.key, self._index.get(tenant, chosen.bucket, record.key)) for record in listing.records]
            await asyncio.sleep(0)

    async def _take_turn(self, nbytes: int) -> Turn:
        turn = self._turns.join(nbytes)
        if not turn.on:
            begun = asyncio.get_running_loop().create_future()

            def begin() -> None:
                if not begun.done():
                    begun.set_result(None)

            turn.begun = begin
            try:
                await begun
            except asyncio.CancelledError:
                self._turns.leave(turn)
                raise
        return turn

    def _work_of(self, tenant: str, selection: Selection, options: Mapping[str, Any], job: Job | None = None) -> Work:
        return Work(
            tenant=tenant,
            selection=selection,
            options=options,
            started_ms=0 if job is None else job.started_ms or 0,
            copies=self._copies,
            keeper=self._keeper,
            retention=self._retention,
            bring=self._bring,
            recoder=self._recoder,
            note_saved=(lambda _: None) if job is None else job.note_saved,
            delete=self._delete,
            memory_nbytes=int(self._config.memory_share * self._copies.tiers[MEMORY].limit()),
        )


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for a kind that there is not, and for options that it does not take or that it needs."""
    if kind not in KINDS:
        raise InvalidArgument(f"kind: expected {' or '.join(KINDS)}")
    taken = KINDS[kind].options
    for name in options:
        if name not in taken:
            raise InvalidArgument(f"{name}: not for a job of the kind {kind}")
    for name, needed in taken.items():
        if needed and name not in options:
            raise InvalidArgument(f"{name}: a job of the kind {kind} needs it")


def _row(job: Job) -> Statement:
    return _PUT, (job.id, job.dumps())
