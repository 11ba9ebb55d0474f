"""The KV connector that vLLM loads: `kv_connector_module_path: engine_adapters.vllm.connector`.

vLLM makes one for its scheduler and one for each worker. This file is only the way in: no exception leaves a method
that vLLM calls in a step, because it would end the engine.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from engine_adapters.breaker import Breaker
from engine_adapters.vllm.direct import Direct
from engine_adapters.vllm.direct_worker import Address
from engine_adapters.vllm.events import StoredEvents
from engine_adapters.vllm.job import Report, Work
from engine_adapters.vllm.logs import log_as_vllm
from engine_adapters.vllm.lookup import Lookups
from engine_adapters.vllm.metrics import PromMetrics, Stats
from engine_adapters.vllm.scheduler import Counts, Scheduling
from engine_adapters.vllm.settings import Settings, read_settings
from engine_adapters.vllm.space import Group, engine_groups
from engine_adapters.vllm.worker import Rank, Worker
from kvgate.client.sync import Client
from kvgate.errors import ConfigError, GatewayUnavailable

_log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])


def _safe(otherwise: Any = None) -> Callable[[_F], _F]:
    """Have a method return `otherwise`, made anew where it is a type, instead of raising."""

    def wrap(method: _F) -> _F:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except Exception:
                _log.exception("kvgate: %s failed; the engine goes on without it", method.__name__)
                return otherwise() if isinstance(otherwise, type) else otherwise

        return call  # type: ignore[return-value]

    return wrap


class KVGateConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """KV of prompts from a kvgate gateway, and into it.

    When the engine starts it raises ConfigError for settings, and UnsupportedModel for KV that cannot be named.
    """

    _cache_hit_source = CacheHitSource.EXTERNAL_UNSPECIFIED

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        log_as_vllm()
        self._settings = read_settings(self._kv_transfer_config.kv_connector_extra_config)
        self._groups = engine_groups(vllm_config, kv_cache_config, self._settings)
        one_table = len(kv_cache_config.kv_cache_groups) == 1
        _check(self._settings, self._groups, one_table, vllm_config)
        found = self._settings.find_credentials()
        self._client = Client(
            found.url,
            found.access_key,
            found.secret_key,
            max_connections=max(8, 4 * self._settings.load_threads + self._settings.save_threads),
        )
        self._scheduling: Scheduling | None = None
        self._worker: Worker | None = None
        self._events: StoredEvents | None = None
        self._direct: Direct | None = None
        parallel = vllm_config.parallel_config
        if role is KVConnectorRole.SCHEDULER:
            # vLLM reads this once the connector is there. By its default a load that fails would end the request.
            self._kv_transfer_config.kv_load_failure_policy = "recompute"
            self._breaker = Breaker()
            self._lookups = Lookups(
                self._client,
                self._settings.bucket,
                self._breaker,
                [group.window for group in self._groups],
                threads=self._settings.lookup_threads,
                max_waiting=self._settings.max_lookups,
                deadline_s=float(self._settings.lookup_deadline),
                lease_s=float(self._settings.lease),
            )
            wants_events = vllm_config.kv_events_config
            if wants_events is not None and wants_events.enable_kv_cache_events:
                self._events = StoredEvents(kv_cache_config, self._settings.known_chunks)
            if self._settings.direct is not None:
                self._direct = Direct(self._groups, parallel.world_size)
            batch_tokens = vllm_config.scheduler_config.max_num_batched_tokens
            self._scheduling = Scheduling(
                self._settings,
                self._groups,
                self._lookups,
                _Salt(self._client, self._breaker, float(self._settings.lookup_deadline)),
                workers=parallel.world_size,
                block_target=2 * sum(-(-batch_tokens // group.block_tokens) for group in self._groups),
                events=self._events,
                direct=self._direct,
            )
            for group in self._groups:
                _log.info("kvgate: group %d is space %s of %s", group.index, group.space.id[:8], self._settings.bucket)
        else:
            rank = _rank(vllm_config, self._groups, str(self._kv_transfer_config.engine_id))
            self._worker = Worker(self._client, self._settings, self._groups, rank, one_table=one_table)

    # --- the scheduler's half ---

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """Learn where the workers are called, by rank."""
        if self._direct is not None:
            self._direct.reached_at([(metadata[rank].host, metadata[rank].port) for rank in sorted(metadata)])

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """See Scheduling.bind."""
        if self._scheduling is not None:
            self._scheduling.bind(gpu_block_pool)

    @_safe()
    def on_new_request(self, request: Any) -> None:
        """Look the prompt up while the request waits."""
        self._of_scheduler.arrive(request)

    @_safe((0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """See Scheduling.matched."""
        return self._of_scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See Scheduling.allocated. What fails here must be seen: the request would wait for ever."""
        self._of_scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """See Scheduling.step."""
        return self._of_scheduler.step(scheduler_output)

    @_safe()
    def update_connector_output(self, connector_output: Any) -> None:
        """See Scheduling.ended."""
        self._of_scheduler.ended(connector_output)

    @_safe((False, None))
    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """See Scheduling.finished."""
        return self.request_finished_all_groups(request, (block_ids,))

    @_safe((False, None))
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See Scheduling.finished. vLLM may free the blocks: those that a save reads are held."""
        return False, self._of_scheduler.finished(request, block_ids)

    @_safe(tuple)
    def take_events(self) -> Iterable[Any]:
        """What was stored, as vLLM's KV events."""
        return self._events.take() if self._events is not None else ()

    def has_pending_push_work(self) -> bool:
        """Whether vLLM should go on stepping so that blocks and leases are given back."""
        return self._scheduling is not None and self._scheduling.expects_reports

    def has_pending_block_frees(self) -> bool:
        """Whether waiting for a save may spare a preemption."""
        return self._scheduling is not None and self._scheduling.holds_blocks

    @_safe(False)
    def reset_cache(self) -> bool:
        """See Scheduling.reset. What the gateway holds stays: it is right for the weights that its space names."""
        if self._scheduling is not None:
            self._scheduling.reset()
        return True

    @property
    def requires_kv_delivery(self) -> bool:
        """A chunk that is not stored is a miss later, nothing worse."""
        return False

    # --- a worker's half ---

    def get_handshake_metadata(self) -> Address | None:
        """Where this worker is called by other instances."""
        return self._of_worker.address

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """See Worker.register. Raises where the engine's memory is not what its configuration said."""
        self._of_worker.register(kv_caches)

    @_safe()
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """See Worker.begin_loads."""
        self._of_worker.begin_loads(self._work)

    @_safe()
    def wait_for_layer_load(self, layer_name: str) -> None:
        """See Worker.wait_for_layer."""
        self._of_worker.wait_for_layer(layer_name)

    @_safe()
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """See Worker.layer_computed."""
        self._of_worker.layer_computed(layer_name, self._work)

    @_safe()
    def wait_for_save(self) -> None:
        """See Worker.end_step; nothing is waited for: the scheduler holds the blocks."""
        self._of_worker.end_step(self._work)

    @_safe(KVConnectorTransferResults)
    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """See Worker.received."""
        received, failed = self._of_worker.received()
        return KVConnectorTransferResults(finished_recving=received, failed_recving=failed)

    @_safe(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """See Worker.invalid_blocks."""
        return self._of_worker.invalid_blocks()

    @_safe()
    def build_connector_worker_meta(self) -> Report | None:
        """See Worker.report."""
        return self._of_worker.report()

    @_safe()
    def get_kv_connector_stats(self) -> Stats | None:
        """Counts since the last call."""
        if self._worker is not None:
            stats = Stats(data=self._worker.tally.take())
        else:
            scheduling = self._of_scheduler
            counts, scheduling.counts = scheduling.counts, Counts()
            reasons = {f"lookup: {why}": count for why, count in counts.missed.items()}
            reasons |= {f"store: {why}": count for why, count in counts.not_saved.items()}
            stats = Stats(
                data={
                    "queried_tokens": counts.queried_tokens,
                    "hit_tokens": counts.hit_tokens,
                    "reasons": reasons,
                }
            )
        return None if stats.is_empty() else stats

    @_safe()
    def shutdown(self) -> None:
        """End the threads."""
        if self._worker is not None:
            self._worker.close()
        elif self._scheduling is not None:
            self._lookups.close()

    # --- what vLLM asks of the class ---

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Whether something is to happen between the layers of a step."""
        return extra_config.get("load") == "layerwise" or bool(extra_config.get("save_layerwise"))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats | None:
        """Stats of plain data."""
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> PromMetrics:
        """The connector's metrics on vLLM's endpoint."""
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def _of_scheduler(self) -> Scheduling:
        assert self._scheduling is not None, "this is a worker's half"
        return self._scheduling

    @property
    def _of_worker(self) -> Worker:
        assert self._worker is not None, "this is the scheduler's half"
        return self._worker

    @property
    def _work(self) -> Work:
        work = self._get_connector_metadata()
        assert isinstance(work, Work)
        return work


class _Salt:
    """The tenant's salt, asked for once. Thread-safe."""

    def __init__(self, client: Client, breaker: Breaker, deadline_s: float) -> None:
        self._client = client
        self._breaker = breaker
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._salt: bytes | None = None

    def __call__(self) -> bytes:
        """Raises GatewayError."""
        with self._lock:
            if self._salt is None:
                if not self._breaker.allows():
                    raise GatewayUnavailable("the gateway has just failed")
                self._salt = self._client.tenant(deadline_s=self._deadline_s).salt
            return self._salt


def _check(settings: Settings, groups: tuple[Group, ...], one_table: bool, vllm_config: Any) -> None:
    for group in groups:
        if settings.chunk_tokens % group.block_tokens:
            raise ConfigError(
                f"chunk_tokens is {settings.chunk_tokens}, which is not a multiple of vLLM's blocks of "
                f"{group.block_tokens} tokens"
            )
    if settings.load == "layerwise" and not one_table:
        raise ConfigError("load: layerwise needs a model whose layers share one block table; use load: async")
    if settings.load == "layerwise" and vllm_config.scheduler_config.async_scheduling:
        # vLLM would go on from a step whose load failed before it hears of that.
        raise ConfigError("load: layerwise needs vLLM without async_scheduling; use load: async, or turn that off")
    if settings.direct is not None and vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ConfigError("direct: it needs all layers on each worker; without pipeline parallelism")
    if settings.lossless != "none" and not _rank(vllm_config, groups, "").is_whole:
        raise ConfigError(
            "lossless: each rank of this engine stores its own layers or heads, and a chunk in a lossless codec has "
            "none to store; leave it out, or run one rank"
        )
    if settings.save == "lazy" and not vllm_config.cache_config.enable_prefix_caching:
        raise ConfigError("save: lazy looks at vLLM's prefix cache, which is off; use save: all")


def _rank(vllm_config: Any, groups: tuple[Group, ...], engine: str) -> Rank:
    """Where this worker is. Ranks are numbered tensor parallel first."""
    parallel = vllm_config.parallel_config
    size, rank = parallel.tensor_parallel_size, parallel.rank % parallel.tensor_parallel_size
    space = groups[0].space
    if space.attention == "mla":
        return Rank(range(1), parallel.pipeline_parallel_size == 1, rank == 0, engine, rank, size)
    shards = min(size, space.kv_heads)
    replicas, held = size // shards, space.kv_heads // shards
    shard = rank // replicas
    heads = range(shard * held, (shard + 1) * held)
    is_whole = shards == 1 and parallel.pipeline_parallel_size == 1
    return Rank(heads, is_whole, rank % replicas == 0, engine, rank, size)
