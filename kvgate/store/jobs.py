"""Jobs: what a tenant has begun that takes long, how far it is, and how it ended. Pure decisions.

Invariants
1. A job goes from WAITING over RUNNING and CHECKING to DONE or INCOMPLETE, or from any of them to CANCELLED, FAILED or
   INTERRUPTED. An end is final.
2. A tenant has at most `active` jobs without an end, of which at most `running` work; those that wait begin in order.
3. Of those that have ended a tenant has at most `kept`, for at most `keep_for`; the oldest are forgotten first.
4. A job is found and cancelled by its own tenant alone; another's is answered like one that never was.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kvgate.config import MiB, Seconds, Size, option
from kvgate.errors import ConfigError, NoSuchJob, Overloaded
from kvgate.store.values import Selection

MAX_EXAMPLES = 20
"""Objects of a job that are named, among those of which something does not hold."""

_MAX_REASONS = 16
_OTHER = "other reasons"


@dataclass(frozen=True)
class JobsConfig:
    """How many jobs there are, and how much they may do at once."""

    active: int = option(default=16, help="jobs of one tenant that wait or work")
    running: int = option(default=2, help="jobs of one tenant that work at the same time; the others wait")
    operations: int = option(default=4, help="objects that all jobs together work on at the same time")
    in_flight: Size = option(
        default=Size(256 * MiB), help="bytes of objects that all jobs together work on, but always one object"
    )
    memory_share: float = option(
        default=0.5,
        help="part of memory that one job may fill, so that it does not push out what it has brought itself",
    )
    kept: int = option(default=50, help="jobs of one tenant that are remembered after their end")
    keep_for: Seconds = option(default=Seconds(7 * 86400.0), help="how long a job is remembered after its end")

    def __post_init__(self) -> None:
        for key, least, most in (
            ("active", 1, 10_000),
            ("running", 1, 256),
            ("operations", 1, 256),
            ("kept", 0, 100_000),
        ):
            if not least <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected {least} to {most}, got {getattr(self, key)}")
        if not 0 <= self.memory_share <= 1:
            raise ConfigError(f"memory_share: expected 0 to 1, got {self.memory_share:g}")
        if self.in_flight < MiB:
            raise ConfigError(f"in_flight: expected at least 1MiB, got {self.in_flight} bytes")


class State(StrEnum):
    """Where a job is.

    DONE:        what was asked for holds for every object
    INCOMPLETE:  it came to its end, and of some objects it does not hold
    FAILED:      it could not go on; `message` says why
    INTERRUPTED: the gateway stopped before its end; to begin it again does what is left
    """

    WAITING = "waiting"
    RUNNING = "running"
    CHECKING = "checking"
    DONE = "done"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


ENDS = frozenset({State.DONE, State.INCOMPLETE, State.FAILED, State.CANCELLED, State.INTERRUPTED})


@dataclass(slots=True)
class Job:
    """One job. Numbers are of objects, and of the bytes of objects.

    options: what it was begun with besides its selection
    total:   as counted before the first object; more may come under a prefix while it works
    done:    worked on, those included of which it held already
    skipped: left as they were, for the `reasons` told; failed: of which an error kept the work from its end
    saved_nbytes: that their copies take less room than before; negative for more
    unmet:   of which the check at the end found that it does not hold, with up to MAX_EXAMPLES keys and why
    """

    id: str
    tenant: str
    kind: str
    selection: Selection
    options: Mapping[str, Any]
    created_ms: int
    started_ms: int | None = None
    ended_ms: int | None = None
    state: State = State.WAITING
    total: int = 0
    total_nbytes: int = 0
    done: int = 0
    done_nbytes: int = 0
    skipped: int = 0
    failed: int = 0
    unmet: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)
    message: str = ""
    saved_nbytes: int = 0
    selected: int | None = None  # how many keys it was given, once these are let go

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS

    def note_done(self, nbytes: int) -> None:
        """One object has been worked on."""
        self.done += 1
        self.done_nbytes += nbytes

    def note_skipped(self, reason: str) -> None:
        """One object was left as it was."""
        self.skipped += 1
        self._note(reason)

    def note_failed(self, reason: str) -> None:
        """An error kept the work on one object from its end."""
        self.failed += 1
        self._note(reason)

    def note_saved(self, nbytes: int) -> None:
        """The copy of one object takes so many bytes less."""
        self.saved_nbytes += nbytes

    def note_unmet(self, key: str, why: str) -> None:
        """The check at the end found that it does not hold of one object."""
        self.unmet += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append((key, why))

    def end(self, state: State, now_ms: int, message: str = "") -> bool:
        """Bring the job to an end, unless it has come to one; whether it had not."""
        if self.has_ended:
            return False
        self.state, self.ended_ms, self.message = state, now_ms, message
        if self.selection.keys:
            self.selected = len(self.selection.keys)
            self.selection = dataclasses.replace(self.selection, keys=())
        return True

    def seconds(self, now_ms: int) -> float:
        """How long it has worked."""
        if self.started_ms is None:
            return 0.0
        return max(0, (now_ms if self.ended_ms is None else self.ended_ms) - self.started_ms) / 1000

    def dumps(self) -> str:
        """The job as JSON, which `loads` reads; without the keys that were selected."""
        members = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        keys = self.selection.keys
        members["selection"] = [self.selection.bucket, keys is not None, self.selection.prefix]
        if keys:
            members["selected"] = len(keys)
        return json.dumps(members)

    def _note(self, reason: str) -> None:
        if reason not in self.reasons and len(self.reasons) >= _MAX_REASONS:
            reason = _OTHER
        self.reasons[reason] += 1


def loads(text: str) -> Job:
    """The job that `dumps` wrote. Raises ValueError, TypeError or KeyError for other text."""
    members = json.loads(text)
    bucket, by_keys, prefix = members["selection"]
    return Job(
        **members
        | {
            "selection": Selection(bucket, () if by_keys else None, prefix),
            "state": State(members["state"]),
            "reasons": Counter(members["reasons"]),
            "examples": [(key, why) for key, why in members["examples"]],
        }
    )


class JobTable:
    """The jobs of every tenant. See the module."""

    def __init__(self, config: JobsConfig, now_ms: Callable[[], int]) -> None:
        """now_ms: milliseconds since the epoch"""
        self._config = config
        self._now_ms = now_ms
        self._jobs: dict[str, dict[str, Job]] = {}  # by tenant and id, the oldest first

    def add(self, tenant: str, kind: str, selection: Selection, options: Mapping[str, Any]) -> Job:
        """A new job, which waits. Raises Overloaded when the tenant has too many."""
        jobs = self._jobs.setdefault(tenant, {})
        if sum(not job.has_ended for job in jobs.values()) >= self._config.active:
            raise Overloaded(f"{self._config.active} jobs wait or work (store.jobs.active); let one end, or cancel one")
        job = Job(secrets.token_hex(8), tenant, kind, selection, options, self._now_ms())
        jobs[job.id] = job
        return job

    def load(self, jobs: Iterable[Job]) -> list[Job]:
        """Take over jobs of an earlier run of the gateway, in any order; those that it has interrupted."""
        interrupted = []
        for job in sorted(jobs, key=lambda job: job.created_ms):
            self._jobs.setdefault(job.tenant, {})[job.id] = job
            if job.end(State.INTERRUPTED, self._now_ms(), "the gateway stopped"):
                interrupted.append(job)
        return interrupted

    def startable(self) -> list[Job]:
        """The jobs that wait and can begin now, which begin with this."""
        started = []
        for jobs in self._jobs.values():
            working = sum(job.state in (State.RUNNING, State.CHECKING) for job in jobs.values())
            for job in jobs.values():
                if job.state is State.WAITING and working < self._config.running:
                    job.state, job.started_ms = State.RUNNING, self._now_ms()
                    working += 1
                    started.append(job)
        return started

    def get(self, tenant: str, id: str) -> Job:
        """One job. Raises NoSuchJob, also when it is another tenant's."""
        job = self._jobs.get(tenant, {}).get(id)
        if job is None:
            raise NoSuchJob("there is no such job; it may have been forgotten")
        return job

    def of(self, tenant: str) -> list[Job]:
        """The tenant's jobs, the newest first."""
        return list(reversed(self._jobs.get(tenant, {}).values()))

    def active(self) -> list[Job]:
        """Every job that has not ended."""
        return [job for jobs in self._jobs.values() for job in jobs.values() if not job.has_ended]

    def forget_old(self) -> list[Job]:
        """Forget the jobs that ended too long ago, or that are too many; these."""
        earliest_ms = self._now_ms() - self._config.keep_for * 1000
        forgotten = []
        for tenant, jobs in list(self._jobs.items()):
            ended = sorted((job for job in jobs.values() if job.has_ended), key=lambda job: job.ended_ms or 0)
            surplus = len(ended) - self._config.kept
            for place, job in enumerate(ended):
                if place < surplus or (job.ended_ms or 0) < earliest_ms:
                    forgotten.append(jobs.pop(job.id))
            if not jobs:
                del self._jobs[tenant]
        return forgotten
