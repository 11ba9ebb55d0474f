"""The tier's calls to the gateway: looks up, loads and stores chunks, in the threads of a pool.

1. No call raises. What comes of it is put where the scheduler's thread finds it: `answers` and `finished`.
2. The rows of a job are touched only between its submission and its result.
3. A gateway that cannot be reached or is late, or whose chunks do not arrive whole, is left alone for a while: lookups,
   loads and stores each have a breaker. Nothing is looked up that would not be loaded.
4. Of a lease that comes too late to be of use, or is over, the gateway is told.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from engine_adapters.breaker import Breaker
from engine_adapters.chunk_writer import ChunkWriter
from engine_adapters.vllm.tier.config import TierConfig
from engine_adapters.vllm.tier.lookups import Lease, Question
from engine_adapters.vllm.tier.pool import Pool, Urgency
from kvgate.chunk.header import NO_PARENT, ChunkHeader
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable, KVGateError

_log = logging.getLogger(__name__)

_HASHES_AT_ONCE = 4096
_FULL = frozenset({503, 507})
_LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class GroupSpace:
    """Of one group of layers. sees_all: whether it needs every chunk of a prompt, from the first on."""

    space: Space
    sees_all: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway has of a question's chunks."""

    question: Question
    present: frozenset[bytes]
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Chunks to bring into rows of vLLM's CPU tier, or to store from there.

    keys: vLLM's OffloadKeys; rows: of each one the bytes of its row
    """

    id: int
    keys: tuple[bytes, ...]
    rows: tuple[memoryview, ...] = field(repr=False)
    is_load: bool
    started_at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What has become of a job. done: the chunks that were loaded, or are in the gateway; new: those stored by it."""

    job: Job
    done: frozenset[bytes]
    new: frozenset[bytes]
    seconds: float


class Traffic:
    """See above. `ask`, `load`, `store` and `release` return at once; any thread."""

    def __init__(self, client: Client, config: TierConfig, spaces: dict[int, GroupSpace]) -> None:
        """spaces: by the index of vLLM's group of layers"""
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Counter[tuple[str, str]]] = queue.SimpleQueue()
        """Counts by kind (`lookup`, `load`, `store`) and outcome, of chunks."""
        self._client = client
        self._config = config
        self._spaces = spaces
        self._writer = ChunkWriter(client, config.bucket, config.store_deadline)
        self._breakers = {urgency: Breaker() for urgency in Urgency}
        self._pool = Pool(config.threads)
        self._logged_at = -_LOG_EVERY_S
        self._introduced = False
        self._hurried = threading.Event()

    @property
    def may_look_up(self) -> bool:
        """Whether there is a gateway to ask, that would also be loaded from."""
        return self._breakers[Urgency.LOOKUP].allows() and self._breakers[Urgency.LOAD].allows()

    def ask(self, question: Question) -> None:
        """Have a question answered."""
        deadline_at = time.monotonic() + self._config.lookup_deadline
        self._pool.submit(Urgency.LOOKUP, partial(self._answer, question, deadline_at))

    def load(self, job: Job) -> None:
        """Have the rows of a job filled."""
        self._pool.submit(Urgency.LOAD, partial(self._load, job, job.started_at + self._config.load_deadline))

    def store(self, job: Job) -> None:
        """Have the rows of a job stored."""
        self._pool.submit(Urgency.STORE, partial(self._store, job))

    def release(self, leases: Sequence[str]) -> None:
        """Tell the gateway that leases are over."""
        if leases:
            self._pool.submit(Urgency.LOOKUP, partial(self._release, tuple(leases)))

    def drain(self) -> None:
        """Wait for what has begun; chunks whose store has not are given up. Every job has its result then."""
        self._hurried.set()
        self._pool.drop(Urgency.STORE)
        self._pool.wait_idle()
        self._hurried.clear()

    def close(self) -> None:
        """Store what waits, for at most `store_deadline`; then as `drain`, and nothing begins any more."""
        self._pool.wait_idle(self._config.store_deadline)
        self._hurried.set()
        self._pool.close()
        self._client.close()

    # --- in the pool's threads ---

    def _answer(self, question: Question, deadline_at: float, dropped: bool) -> None:
        leases: list[Lease] = []
        outcome = "dropped"
        try:
            if not dropped and time.monotonic() < deadline_at and self.may_look_up:
                self._introduce(deadline_at)
                leases = self._match(question, deadline_at)
                self._breakers[Urgency.LOOKUP].succeeded()
                outcome = "absent"
        except KVGateError as error:
            outcome = self._failed(Urgency.LOOKUP, error)
        finally:
            present = frozenset[bytes]().union(*(lease.keys for lease in leases))
            self._count("lookup", {"present": len(present), outcome: len(question.keys) - len(present)})
            self.answers.put(Answer(question, present, tuple(leases)))

    def _match(self, question: Question, deadline_at: float) -> list[Lease]:
        """Leases on the chunks that are there: of the leading ones where the group sees all tokens, else of all."""
        found = self._spaces[question.group]
        keys: Sequence[bytes] = question.keys
        if not found.sees_all and len(keys) > 1:
            keys = self._present(found.space.id, keys, deadline_at)
        leases: list[Lease] = []
        for start in range(0, len(keys), _HASHES_AT_ONCE):
            asked = keys[start : start + _HASHES_AT_ONCE]
            match = self._client.match(
                self._config.bucket,
                found.space.id,
                [_hash(key) for key in asked],
                lease_s=self._config.lease,
                deadline_s=_left_s(deadline_at),
            )
            if match.lease:
                leases.append(Lease(match.lease, time.monotonic() + match.expires_s, set(asked[: match.matched])))
            if match.matched < len(asked):
                break
        return leases

    def _present(self, space: str, keys: Sequence[bytes], deadline_at: float) -> list[bytes]:
        """Those chunks that are there at all, with gaps between them; they are brought to memory."""
        present: list[bytes] = []
        for start in range(0, len(keys), _HASHES_AT_ONCE):
            asked = keys[start : start + _HASHES_AT_ONCE]
            found = self._client.prefetch(
                self._config.bucket, space, [_hash(key) for key in asked], deadline_s=_left_s(deadline_at)
            )
            present += [key for key, rank in zip(asked, found.ranks, strict=True) if rank >= 0]
        return present

    def _load(self, job: Job, deadline_at: float, dropped: bool) -> None:
        done: set[bytes] = set()
        outcome = "dropped"
        try:
            for group, members in _by_group(job.keys).items():
                left_s = deadline_at - time.monotonic()
                if dropped or left_s <= 0 or not self._breakers[Urgency.LOAD].allows():
                    break
                space = self._spaces[group].space
                loaded = self._client.load_chunks(
                    self._config.bucket,
                    space.id,
                    [_hash(job.keys[index]) for index in members],
                    [job.rows[index] for index in members],
                    left_s,
                    layout=space.layout,
                )
                done.update(job.keys[index] for index, whole in zip(members, loaded.arrived, strict=True) if whole)
                if all(loaded.arrived):
                    self._breakers[Urgency.LOAD].succeeded()
                else:
                    self._breakers[Urgency.LOAD].failed()
                    outcome = "late" if time.monotonic() >= deadline_at else "broken"
                    self._complain(
                        "%d of %d chunks did not arrive (%s)", loaded.arrived.count(False), len(members), outcome
                    )
        except KVGateError as error:
            outcome = self._failed(Urgency.LOAD, error)
        finally:
            self._finish(job, done, done, outcome)

    def _store(self, job: Job, dropped: bool) -> None:
        done: set[bytes] = set()
        new: set[bytes] = set()
        outcome = "dropped"
        try:
            for group, members in _by_group(job.keys).items():
                found = self._spaces[group]
                if dropped or not self._breakers[Urgency.STORE].allows():
                    break
                self._introduce(time.monotonic() + self._config.store_deadline)
                for index in members:
                    if self._hurried.is_set():
                        break
                    chunk_hash = _hash(job.keys[index])
                    header = ChunkHeader.encode(found.space, chunk_hash, NO_PARENT, 0)
                    if self._writer.put(found.space, chunk_hash, (header, job.rows[index])):
                        new.add(job.keys[index])
                    done.add(job.keys[index])
                self._breakers[Urgency.STORE].succeeded()
        except KVGateError as error:
            outcome = self._failed(Urgency.STORE, error)
        finally:
            self._finish(job, done, new, outcome)

    def _release(self, leases: Sequence[str], dropped: bool) -> None:
        for lease in leases:
            if dropped or not self._breakers[Urgency.LOOKUP].allows():
                return  # they end by themselves
            try:
                self._client.release(lease, deadline_s=self._config.lookup_deadline)
            except GatewayUnavailable:
                self._breakers[Urgency.LOOKUP].failed()
            except KVGateError as error:
                _log.debug("a lease has ended before: %s", error)

    def _introduce(self, deadline_at: float) -> None:
        """Ask once how the gateway is reached on this host."""
        if not self._introduced:
            self._client.tenant(deadline_s=_left_s(deadline_at))
            self._introduced = True

    def _finish(self, job: Job, done: set[bytes], new: set[bytes], outcome: str) -> None:
        kind, good = ("load", "loaded") if job.is_load else ("store", "stored")
        counts = {good: len(new), outcome: len(job.keys) - len(done)}
        if not job.is_load:
            counts["present"] = len(done) - len(new)
        self._count(kind, counts)
        self.finished.put(Finished(job, frozenset(done), frozenset(new), time.monotonic() - job.started_at))

    def _failed(self, urgency: Urgency, error: KVGateError) -> str:
        """Note what stood in the way; one word for it."""
        full = isinstance(error, GatewayError) and (error.status in _FULL or error.code == "QuotaExceeded")
        away = isinstance(error, GatewayUnavailable)
        if full or away:
            self._breakers[urgency].failed()
        self._complain("%s failed: %s", urgency.name.lower(), error)
        return "full" if full else "unavailable" if away else "refused"

    def _complain(self, message: str, *arguments: object) -> None:
        """Log a warning, but not with every request."""
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("kvgate tier: " + message, *arguments)

    def _count(self, kind: str, counts: dict[str, int]) -> None:
        self.events.put(Counter({(kind, outcome): count for outcome, count in counts.items() if count}))


def _by_group(keys: Sequence[bytes]) -> dict[int, list[int]]:
    """The indices of the keys of each group of layers, in order."""
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(int.from_bytes(key[-4:], "big"), []).append(index)
    return groups


def _hash(key: bytes) -> bytes:
    return key[:-4]


def _left_s(deadline_at: float) -> float:
    return max(deadline_at - time.monotonic(), 0.001)
