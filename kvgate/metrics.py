"""What the gateway counts, as Prometheus metrics in a registry of its own.

Base units, `_total` on counters, no keys, hashes or tenants' names as labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Latencies(Histogram):
    """A histogram that also takes what was counted elsewhere, by the same buckets."""

    def add(self, counts: Sequence[int], seconds: float) -> None:
        """Add observations: how many fall into each bucket, and their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            bucket.inc(count)
        self._sum.inc(seconds)


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._request_counters: dict[tuple[str, int], Counter] = {}
        self._request_histograms: dict[str, _Latencies] = {}
        self.requests = Counter(
            "kvgate_requests_total",
            "Requests answered, by operation and status",
            ["operation", "status"],
            registry=self.registry,
        )
        self.request_seconds = _Latencies(
            "kvgate_request_seconds",
            "Time from the request's headers to the last byte of the answer",
            ["operation"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.received_bytes = self._counter("kvgate_received_bytes_total", "Bytes of object bodies received")
        self.sent_bytes = self._counter("kvgate_sent_bytes_total", "Bytes of object bodies sent")
        self.reads = Counter(
            "kvgate_reads_total", "Object reads, by the tier that served them", ["tier"], registry=self.registry
        )
        self.match_chunks = Counter(
            "kvgate_match_chunks_total", "Chunks that match calls asked for", ["result"], registry=self.registry
        )
        self.batch_chunks = Counter(
            "kvgate_batch_chunks_total", "Chunks that read calls asked for", ["status"], registry=self.registry
        )
        self.reservations = Counter(
            "kvgate_reservations_total",
            "Chunks reserved for writing in slices, by how that ended",
            ["result"],
            registry=self.registry,
        )
        self.reserved_bytes = Gauge(
            "kvgate_reserved_bytes", "Memory taken by chunks of which slices are missing", registry=self.registry
        )
        self.corrupt_copies = Counter(
            "kvgate_corrupt_copies_total", "Copies dropped after a failed check", ["tier"], registry=self.registry
        )
        self.lost_objects = self._counter(
            "kvgate_lost_objects_total", "Objects of which no good copy was left when they were read"
        )
        self.promoted = self._counter(
            "kvgate_promoted_objects_total", "Objects copied to memory when they were read, or ahead of that"
        )
        self.prefetched = self._counter(
            "kvgate_prefetched_objects_total", "Objects copied to memory ahead of the GETs that are expected"
        )
        self.prefetch_useful = self._counter(
            "kvgate_prefetch_useful_objects_total", "Prefetched objects whose GET came while they were in memory"
        )
        self.prefetch_wasted = self._counter(
            "kvgate_prefetch_wasted_objects_total", "Prefetched objects that left memory without a GET"
        )
        self.prefetch_unread_bytes = Gauge(
            "kvgate_prefetch_unread_bytes",
            "Memory taken by prefetched objects without a GET so far",
            registry=self.registry,
        )
        self.run_keys = Gauge(
            "kvgate_run_keys", "Keys of other KV systems whose order is remembered", registry=self.registry
        )
        self.model_requests = Counter(
            "kvgate_model_requests_total",
            "HEADs and GETs, of which each range is one, of keys of other KV systems",
            ["system", "model", "method", "result"],
            registry=self.registry,
        )
        self.demoted = self._counter("kvgate_demoted_objects_total", "Objects written from memory to a lower tier")
        self.stranded = Counter(
            "kvgate_stranded_objects_total",
            "Objects that a lower tier was to get and does not, by reason",
            ["tier", "reason"],
            registry=self.registry,
        )
        self.not_admitted = Counter(
            "kvgate_not_admitted_objects_total",
            "Objects that a lower tier did not admit, by reason",
            ["tier", "reason"],
            registry=self.registry,
        )
        self.discovered = Counter(
            "kvgate_discovered_objects_total",
            "Objects of other gateways that were found in a shared tier",
            ["tier"],
            registry=self.registry,
        )
        self.lookups = Counter(
            "kvgate_lookup_objects_total",
            "Objects that shared tiers were asked for, by result",
            ["tier", "result"],
            registry=self.registry,
        )
        self.hedged = Counter(
            "kvgate_hedged_reads_total",
            "Reads that a second tier was asked for, because the first brought nothing or failed",
            ["tier", "reason"],
            registry=self.registry,
        )
        self.evicted = Counter(
            "kvgate_evicted_objects_total", "Copies evicted to make room", ["tier"], registry=self.registry
        )
        self.refusals = Counter(
            "kvgate_refusals_total",
            "Refusals because of a tenant's limits, by what it was over",
            ["reason"],
            registry=self.registry,
        )
        self.expired = self._counter(
            "kvgate_expired_objects_total", "Objects deleted because a lifecycle rule or a lifetime made them expire"
        )
        self.jobs = Gauge("kvgate_jobs", "Jobs of tenants, by what they do", ["state"], registry=self.registry)
        self.job_objects = Counter(
            "kvgate_job_objects_total",
            "Objects that jobs have worked on, by what came of it",
            ["kind", "result"],
            registry=self.registry,
        )
        self.pinned_bytes = Gauge(
            "kvgate_pinned_bytes", "Bytes of objects that owners have pinned hard", registry=self.registry
        )
        self.scrub_copies = Counter(
            "kvgate_scrub_copies_total",
            "Copies that the scrubber looked at: good, corrupt, gone, or unread because the tier failed",
            ["tier", "result"],
            registry=self.registry,
        )
        self.scrub_outcomes = Counter(
            "kvgate_scrub_outcomes_total",
            "What became of objects with a bad copy: repaired, elsewhere (in another tier), lost",
            ["outcome"],
            registry=self.registry,
        )
        self.scrub_bytes = self._counter("kvgate_scrub_bytes_total", "Bytes that the scrubber has read")
        self.scrub_strays = self._counter("kvgate_scrub_strays_total", "Files set aside that were no copy of anything")
        self.scrub_passes = self._counter("kvgate_scrub_passes_total", "Passes of the scrubber over all copies")
        self.scrub_progress = Gauge(
            "kvgate_scrub_progress", "The share of the bytes that the present pass has read", registry=self.registry
        )
        self.scrub_last_end = Gauge(
            "kvgate_scrub_last_end_seconds",
            "When the last pass ended, in seconds since the epoch; 0 for none",
            registry=self.registry,
        )
        self.quarantine_bytes = Gauge(
            "kvgate_quarantine_bytes", "Corrupt copies kept for people to look at", ["tier"], registry=self.registry
        )
        self.tier_used_bytes = Gauge("kvgate_tier_used_bytes", "Room taken in a tier", ["tier"], registry=self.registry)
        self.tier_capacity_bytes = Gauge(
            "kvgate_tier_capacity_bytes",
            "Room that a tier has, or +Inf",
            ["tier"],
            registry=self.registry,
        )
        self.tier_objects = Gauge(
            "kvgate_tier_objects", "Objects with a copy in a tier", ["tier"], registry=self.registry
        )
        self.tier_operations = Counter(
            "kvgate_tier_operations_total",
            "Operations on a shared tier, by how they ended",
            ["tier", "operation", "result"],
            registry=self.registry,
        )
        self.tier_operation_seconds = Histogram(
            "kvgate_tier_operation_seconds",
            "Time of operations on a shared tier, waits and retries included, without those that it was not asked for",
            ["tier", "operation"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.tier_bytes = Counter(
            "kvgate_tier_bytes_total",
            "Bytes of bodies moved to a shared tier, `written`, and from it, `read`",
            ["tier", "direction"],
            registry=self.registry,
        )
        self.tier_state = Gauge(
            "kvgate_tier_state",
            "Whether a shared tier is asked: 0, or counts as away: 2, which is tried right now: 1",
            ["tier"],
            registry=self.registry,
        )
        self.ready_bytes = Gauge(
            "kvgate_ready_bytes",
            "Memory of the host tier that is prepared for new objects and belongs to no tenant yet",
            registry=self.registry,
        )
        self.huge_pages = Gauge(
            "kvgate_huge_pages",
            "Whether the system backs the host tier with huge pages: 0 or 1",
            registry=self.registry,
        )
        self.plane_requests = self._counter(
            "kvgate_plane_requests_total", "Requests that the native plane answered, which are counted by operation too"
        )
        self.published_objects = Gauge(
            "kvgate_published_objects",
            "Objects that the native data plane answers for by itself",
            registry=self.registry,
        )
        self.demotion_queue = Gauge(
            "kvgate_demotion_queue_objects",
            "Objects that wait for their copy in a lower tier",
            ["tier"],
            registry=self.registry,
        )
        self.connections = Gauge("kvgate_connections", "Connections to the plain listeners", registry=self.registry)
        self.refused_connections = self._counter(
            "kvgate_refused_connections_total", "Connections that were over listen.max_connections"
        )
        self.late_connections = Counter(
            "kvgate_late_connections_total",
            "Connections that were cut because the peer was too slow, by what was waited for",
            ["what"],
            registry=self.registry,
        )
        self.shm_engines = Gauge(
            "kvgate_shm_engines", "Engines on this host that have memory mapped", registry=self.registry
        )
        self.shm_grants = Gauge("kvgate_shm_grants", "Objects that engines may copy right now", registry=self.registry)
        self.shm_granted = self._counter("kvgate_shm_granted_total", "Objects that engines were granted")
        self.shm_expired = self._counter(
            "kvgate_shm_expired_total", "Grants and reservations that ended by their deadline, not by their engine"
        )
        self.leases = Gauge("kvgate_leases", "Leases that clients hold", registry=self.registry)

    def note_request(self, operation: str, status: int, seconds: float) -> None:
        """Count a request that has been answered. The children of the metrics are looked up once."""
        operation = operation or "unknown"
        self._request_counter(operation, status).inc()
        self._request_histogram(operation).observe(seconds)

    def note_requests(
        self, operation: str, statuses: Mapping[int, int], latencies: Sequence[int], seconds: float
    ) -> None:
        """Count requests that were answered and counted elsewhere.

        statuses:  how many had each status
        latencies: how many took at most as long as each of LATENCY_BUCKETS_S and longer than the one before, and last
                   those that took longer than all; `seconds` is what they took together
        """
        for status, count in filter(itemgetter(1), statuses.items()):
            self._request_counter(operation, status).inc(count)
        self._request_histogram(operation).add(latencies, seconds)

    def _request_counter(self, operation: str, status: int) -> Counter:
        counter = self._request_counters.get((operation, status))
        if counter is None:
            counter = self._request_counters[operation, status] = self.requests.labels(operation, str(status))
        return counter

    def _request_histogram(self, operation: str) -> _Latencies:
        histogram = self._request_histograms.get(operation)
        if histogram is None:
            histogram = self._request_histograms[operation] = self.request_seconds.labels(operation)
        return histogram

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def exposition(self) -> bytes:
        """The text that a Prometheus server scrapes."""
        return generate_latest(self.registry)
