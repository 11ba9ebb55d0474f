"""What a cache did, for one request and since it was made."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestStats:
    """One request. Its chunks are stored later, in the background: `Totals` counts those.

    asked_tokens:    length of the prompt
    reused_tokens:   of these, how many had their KV loaded
    computed_tokens: of these, how many went through the model
    loaded_chunks:   chunks whose KV was used
    loaded_nbytes:   bytes of these chunks, headers included
    load_s:          time for match and load together, also when nothing came of it
    ttft_s:          from the call to the first generated token; 0 for a prefill
    miss:            why fewer tokens were reused than the prompt has full chunks for; empty when none was missed
    """

    asked_tokens: int = 0
    reused_tokens: int = 0
    computed_tokens: int = 0
    loaded_chunks: int = 0
    loaded_nbytes: int = 0
    load_s: float = 0.0
    ttft_s: float = 0.0
    miss: str = ""


@dataclass(slots=True)
class Totals:
    """Sums since a cache was made. A copy: it does not change any more.

    present_chunks: were already stored by someone else when ours arrived
    dropped_chunks: not stored because the background was full, closed or without a gateway, by reason
    failed_chunks:  could not be loaded or stored, by reason
    """

    requests: int = 0
    asked_tokens: int = 0
    reused_tokens: int = 0
    computed_tokens: int = 0
    loaded_chunks: int = 0
    loaded_nbytes: int = 0
    stored_chunks: int = 0
    stored_nbytes: int = 0
    present_chunks: int = 0
    dropped_chunks: Counter[str] = field(default_factory=Counter)
    failed_chunks: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Counts from the engine's thread and the background. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def request(self, stats: RequestStats) -> None:
        """Add a finished request."""
        with self._lock:
            totals = self._totals
            totals.requests += 1
            totals.asked_tokens += stats.asked_tokens
            totals.reused_tokens += stats.reused_tokens
            totals.computed_tokens += stats.computed_tokens
            totals.loaded_chunks += stats.loaded_chunks
            totals.loaded_nbytes += stats.loaded_nbytes

    def stored(self, nbytes: int) -> None:
        """Add a stored chunk of `nbytes` bytes."""
        with self._lock:
            self._totals.stored_chunks += 1
            self._totals.stored_nbytes += nbytes

    def present(self) -> None:
        """Add a chunk that the gateway already had."""
        with self._lock:
            self._totals.present_chunks += 1

    def dropped(self, reason: str, chunks: int) -> None:
        """Add chunks that were not sent."""
        with self._lock:
            self._totals.dropped_chunks[reason] += chunks

    def failed(self, reason: str, chunks: int) -> None:
        """Add chunks that were asked for or sent in vain."""
        with self._lock:
            self._totals.failed_chunks[reason] += chunks

    def totals(self) -> Totals:
        """The sums now."""
        with self._lock:
            totals = self._totals
            values = {name: getattr(totals, name) for name in Totals.__slots__}
            values["dropped_chunks"] = Counter(totals.dropped_chunks)
            values["failed_chunks"] = Counter(totals.failed_chunks)
            return Totals(**values)
