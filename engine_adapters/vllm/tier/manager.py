"""kvgate as a tier below vLLM's CPU tier.

1. vLLM calls every method on its scheduler's thread, and none of them waits, except `drain_jobs` and `shutdown`, which
   it calls to wait. All calls to the gateway are made in `Traffic`.
2. No method raises, once the tier is made.
3. Every job that is submitted has exactly one result.
4. Chunks whose KV the block hash does not name are neither looked up nor stored (`why_unshared`), and after a reset of
   vLLM's caches none are, where weights may change: the space would name the old ones.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingMetricMetadata,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from engine_adapters.vllm.tier.config import read_config
from engine_adapters.vllm.tier.engine import ENGINE, REQUEST, RequestNote, why_unshared
from engine_adapters.vllm.tier.lookups import Lookups, Verdict
from engine_adapters.vllm.tier.space import group_spaces
from engine_adapters.vllm.tier.traffic import Job, Traffic
from kvgate.client.sync import Client
from kvgate.errors import ConfigError

_log = logging.getLogger(__name__)

_STALE_S = 1.0
_COUNTERS = {
    "lookup": "vllm:kv_offload_kvgate_lookups",
    "load": "vllm:kv_offload_kvgate_loads",
    "store": "vllm:kv_offload_kvgate_stores",
}
_VERDICTS = {Verdict.RETRY: LookupResult.RETRY, Verdict.HIT: LookupResult.HIT, Verdict.MISS: LookupResult.MISS}


class KVGateTier(SecondaryTierManager):  # type: ignore[misc, unused-ignore]
    """See above, and SecondaryTierManager for what is promised of each method."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **options: object,
    ) -> None:
        """Hashes the model's weights, if it has to; asks nothing of the gateway yet.

        options: see TierConfig. Raises ConfigError and UnsupportedModel.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        config = read_config(options)
        engine = ENGINE.get()
        if engine is None:
            raise ConfigError(
                f"the tier {tier_type} must know what the KV is of: set kv_connector to KVGateOffloadingConnector and "
                "kv_connector_module_path to engine_adapters.vllm.tier.connector"
            )
        self.locality = Locality(config.locality)
        self._weights_may_change = config.weights_may_change
        self._spaces = group_spaces(engine, offloading_spec.config, self._block_size_bytes, config)
        found = config.find_credentials()
        client = Client(
            found.url,
            found.access_key,
            found.secret_key,
            max_connections=config.threads,
        )
        self._bytes = primary_kv_view.cast("B")
        self._max_pinned_rows = max(1, int(len(primary_kv_view) * config.max_pinned_share))
        self._pinned_rows = 0
        self._lookups = Lookups(
            deadline_s=config.lookup_deadline, stale_s=_STALE_S, max_keys=config.max_lookups, clock=time.monotonic
        )
        self._traffic = Traffic(client, config, self._spaces)
        self._dropped: list[JobResult] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._events: list[OffloadingEvent] | None = None
        if config.enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events:
            self._events = []
        self._rests = False
        for index, each in self._spaces.items():
            _log.info(
                "kvgate tier: group %d of layers is space %s of bucket %s", index, each.space.id[:8], config.bucket
            )

    # --- requests ---

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        req_context.set_state(RequestNote(why_unshared(REQUEST.get())))
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        if self._why_not(req_context):
            return LookupResult.MISS
        self._take_answers()
        may_ask = self._traffic.may_look_up
        return _VERDICTS[self._lookups.look_up(key, req_context.req_id, may_ask=may_ask)]

    def on_schedule_end(self, context: Any) -> None:
        self._take_answers()
        for question in self._lookups.questions():
            self._traffic.ask(question)
        self._traffic.release(self._lookups.leases_over())

    def on_request_finished(self, req_context: Any) -> None:
        self._lookups.finished(req_context.req_id)
        self._traffic.release(self._lookups.leases_over())

    # --- jobs ---

    def submit_load(self, job_metadata: Any) -> None:
        if self._rests:
            self._drop("load", job_metadata, "reset")
        else:
            self._traffic.load(self._job(job_metadata, is_load=True))

    def submit_store(self, job_metadata: Any) -> None:
        why_not = self._why_not(job_metadata.req_context)
        pinned_rows = self._pinned_rows + len(job_metadata.keys)
        if not why_not and self._pinned_rows and pinned_rows > self._max_pinned_rows:  # one job may always go
            why_not = "tier full"
        if why_not:
            self._drop("store", job_metadata, why_not)
            return
        self._pinned_rows = pinned_rows
        self._traffic.store(self._job(job_metadata, is_load=False))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results, self._dropped = self._dropped, []
        for finished in _all(self._traffic.finished):
            job, done = finished.job, finished.done
            if job.is_load:
                self._lookups.loaded(done)
                self._lookups.failed(set(job.keys) - done)
            else:
                self._pinned_rows -= len(job.keys)
                if self._events is not None and finished.new:
                    self._events.append(OffloadingEvent(list(finished.new), self.medium, False, self.locality))
            results.append(
                JobResult(
                    job.id,
                    success=len(done) == len(set(job.keys)),
                    successful_keys=tuple(done) if job.is_load and done else None,
                    transfer_time=finished.seconds,
                    transfer_bytes=len(done) * self._block_size_bytes or None,
                )
            )
        return results

    def drain_jobs(self) -> None:
        self._traffic.drain()
        if self._weights_may_change and not self._rests:
            self._rests = True
            _log.warning(
                "kvgate tier: vLLM's caches were reset, so the weights may be others than at the start, and the tier "
                "rests until the engine starts again; where weights never change, set weights_may_change to false"
            )

    def shutdown(self) -> None:
        self._traffic.close()
        self._traffic.finished = queue.SimpleQueue()  # its rows would keep vLLM's memory mapped
        self._bytes.release()

    # --- reports ---

    def take_events(self) -> Iterable[OffloadingEvent]:
        if self._events:
            events, self._events = self._events, []
            yield from events

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        described = {
            "lookup": "Chunks that were looked up in kvgate, by what came of it.",
            "load": "Chunks that were to be loaded from kvgate, by what came of it.",
            "store": "Chunks that were to be stored in kvgate, by what came of it.",
        }
        return {
            _COUNTERS[kind]: OffloadingCounterMetadata(documentation=text, labelnames=("outcome",))
            for kind, text in described.items()
        }

    def get_stats(self) -> OffloadingConnectorStats | None:
        for counts in _all(self._traffic.events):
            self._counts.update(counts)
        if not self._counts:
            return None
        stats = OffloadingConnectorStats()
        for (kind, outcome), count in self._counts.items():
            stats.increase_counter(_COUNTERS[kind], count, (outcome,))
        self._counts.clear()
        return stats

    # --- within ---

    def _why_not(self, req_context: Any) -> str:
        """Why the chunks of a request stay out of the gateway; empty when they do not."""
        if self._rests:
            return "reset"
        note = req_context.get_state(RequestNote)
        return "unknown request" if note is None else str(note.unshared)

    def _take_answers(self) -> None:
        for answer in _all(self._traffic.answers):
            self._lookups.answer(answer.question, answer.present, answer.leases)

    def _job(self, job_metadata: Any, *, is_load: bool) -> Job:
        nbytes = self._block_size_bytes
        starts = [int(row) * nbytes for row in job_metadata.chunk_ids]
        rows = tuple(self._bytes[start : start + nbytes] for start in starts)
        return Job(job_metadata.job_id, tuple(job_metadata.keys), rows, is_load, time.monotonic())

    def _drop(self, kind: str, job_metadata: Any, outcome: str) -> None:
        self._counts[kind, outcome] += len(job_metadata.keys)
        self._dropped.append(JobResult(job_metadata.job_id, success=False))


def _all(results: queue.SimpleQueue[Any]) -> Iterable[Any]:
    """What is in the queue now."""
    while not results.empty():
        yield results.get_nowait()
