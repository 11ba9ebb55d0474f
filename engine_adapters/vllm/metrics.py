"""What the connector counts, for vLLM's log lines and its Prometheus endpoint."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_MAX_TIMES = 1000
"""Durations that are kept between two reports; further ones are counted in the other numbers alone."""


class Tally:
    """Counts of a worker since they were last taken. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._times: dict[str, list[float]] = {"load_s": [], "store_s": []}

    def loaded(self, chunks: int, nbytes: int) -> None:
        """Chunks that have come."""
        with self._lock:
            self._counts.update(loaded_chunks=chunks, loaded_bytes=nbytes)

    def load_ended(self, seconds: float) -> None:
        """A request's load, however it went."""
        self._time("load_s", seconds)

    def failed(self, why: str) -> None:
        """A load that did not bring everything."""
        with self._lock:
            self._reasons[f"load: {why}"] += 1

    def stored(self, nbytes: int, seconds: float) -> None:
        """A chunk that is stored; of 0 bytes when it was there already."""
        with self._lock:
            self._counts.update(stored_chunks=bool(nbytes), present_chunks=not nbytes, stored_bytes=nbytes)
        self._time("store_s", seconds)

    def not_stored(self, why: str, chunks: int) -> None:
        """Chunks that could not be stored."""
        with self._lock:
            self._reasons[f"store: {why}"] += chunks

    def take(self) -> dict[str, Any]:
        """The counts, which begin anew."""
        with self._lock:
            told: dict[str, Any] = {**self._counts, "reasons": dict(self._reasons), **self._times}
            self._counts, self._reasons, self._times = Counter(), Counter(), {"load_s": [], "store_s": []}
        return told

    def _time(self, name: str, seconds: float) -> None:
        with self._lock:
            if len(self._times[name]) < _MAX_TIMES:
                self._times[name].append(seconds)


COUNTERS = {
    "queried_tokens": "Tokens of prompts that were looked up",
    "hit_tokens": "Tokens of prompts whose KV was loaded instead of computed",
    "loaded_chunks": "Chunks that workers have loaded",
    "loaded_bytes": "Bytes that workers have loaded",
    "stored_chunks": "Chunks, or parts of them, that workers have stored",
    "stored_bytes": "Bytes that workers have stored",
    "present_chunks": "Chunks that the gateway had already when they came",
}
TIMES = {"load_s": "Seconds that loading a request took", "store_s": "Seconds that storing a chunk took"}


@dataclass
class Stats(KVConnectorStats):  # type: ignore[misc]
    """Counts of scheduler and workers since the last report; `data` is plain, as it goes between processes."""

    def reset(self) -> None:
        """Begin anew."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> Stats:
        """Both together."""
        mine, theirs = self.data, other.data
        added: dict[str, Any] = {
            name: mine.get(name, 0) + theirs.get(name, 0) for name in (mine.keys() | theirs.keys()) & COUNTERS.keys()
        }
        for name in TIMES:
            added[name] = [*mine.get(name, ()), *theirs.get(name, ())]
        added["reasons"] = dict(Counter(mine.get("reasons", {})) + Counter(theirs.get("reasons", {})))
        return Stats(data=added)

    def reduce(self) -> dict[str, int | float | str]:
        """Numbers for a log line."""
        told: dict[str, int | float | str] = {name: self.data[name] for name in COUNTERS if self.data.get(name)}
        for name in TIMES:
            if times := sorted(self.data.get(name, ())):
                told[f"p50_{name}"] = round(times[len(times) // 2], 4)
                told[f"max_{name}"] = round(times[-1], 4)
        return told | dict(self.data.get("reasons", {}))

    def is_empty(self) -> bool:
        """Whether nothing has happened."""
        return not any(self.data.values())


class PromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same numbers as `vllm:kvgate_…` metrics: vLLM shows, and takes back with an engine, only what begins so."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._of_engines(self._counter_cls, f"vllm:kvgate_{name}", help_text)
            for name, help_text in COUNTERS.items()
        }
        self._times = {
            name: self._of_engines(
                self._histogram_cls, f"vllm:kvgate_{name.removesuffix('_s')}_seconds", help_text, buckets=_BUCKETS
            )
            for name, help_text in TIMES.items()
        }
        self._reasons = self._counter_cls(
            name="vllm:kvgate_failures",
            documentation="Prompts that were not looked up, loads and stores that failed, by reason",
            labelnames=[*labelnames, "reason"],
        )

    def _of_engines(self, kind: Any, name: str, documentation: str, **options: Any) -> dict[int, Any]:
        metric = kind(name=name, documentation=documentation, labelnames=self._labelnames, **options)
        return {engine: metric.labels(*values) for engine, values in self.per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add what one engine reports."""
        for name, counters in self._counters.items():
            if count := transfer_stats_data.get(name, 0):
                counters[engine_idx].inc(count)
        for name, histograms in self._times.items():
            for seconds in transfer_stats_data.get(name, ()):
                histograms[engine_idx].observe(seconds)
        for reason, count in transfer_stats_data.get("reasons", {}).items():
            self._reasons.labels(*self.per_engine_labelvalues[engine_idx], reason).inc(count)
