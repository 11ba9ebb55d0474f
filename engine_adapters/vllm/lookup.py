"""Finds out in the background how much of a prompt the gateway has.

A prompt counts as far as every group of layers has it: one that attends to all tokens needs every chunk from the first
one on, one with a sliding window only the chunks that its next token sees.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from engine_adapters.breaker import Breaker
from engine_adapters.later import Later
from engine_adapters.vllm.prompt import Chains
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable, KVGateError

_log = logging.getLogger(__name__)

_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.2
_MAX_HASHES = 8192


@dataclass(slots=True)
class Found:
    """What there is of a prompt.

    chains: names its chunks; None where they cannot be named
    chunks: how many leading chunks can be loaded
    asked:  how many were looked for
    leases: keep them, until `expires_at` by time.monotonic
    why:    what stood in the way, for the counters; empty when nothing did
    """

    chains: Chains | None
    chunks: int = 0
    asked: int = 0
    leases: list[str] = field(default_factory=list)
    expires_at: float = 0.0
    why: str = ""


class Lookup:
    """One prompt of which the first `chunks` chunks are looked up. Read by the scheduler, filled in by a thread."""

    def __init__(self, chunks: int, deadline_at: float) -> None:
        self.chunks = chunks
        self.deadline_at = deadline_at
        self.future: Future[Found] = Future()

    @property
    def found(self) -> Found | None:
        """The result; None while there is none."""
        return self.future.result() if self.future.done() else None

    @property
    def is_late(self) -> bool:
        """Whether nobody should wait any longer."""
        return time.monotonic() > self.deadline_at


class Lookups:
    """Looks prompts up, a few at a time. `start`, `forget` and `release` return at once; any thread."""

    def __init__(
        self,
        client: Client,
        bucket: str,
        breaker: Breaker,
        windows: Sequence[int | None],
        *,
        threads: int,
        max_waiting: int,
        deadline_s: float,
        lease_s: float,
    ) -> None:
        """windows: of each group how many tokens a token sees, or None for all"""
        self._client = client
        self._bucket = bucket
        self._breaker = breaker
        self._windows = tuple(windows)
        self._deadline_s = deadline_s
        self._lease_s = lease_s
        self._max_waiting = max_waiting
        self._waiting = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "kvgate-lookup")
        self._releases = ThreadPoolExecutor(1, "kvgate-release")
        self._later = Later("kvgate-poll")

    def start(
        self,
        chains: Callable[[], Chains],
        chunks: int,
        tokens: Sequence[int],
        *,
        wait_for: int = 0,
        wait_s: float = 0,
        only_name: bool = False,
    ) -> Lookup:
        """Look the first `chunks` chunks of `tokens` up.

        chains:    makes the request's Chains; called in the background, as it may read files
        wait_for:  how many chunks somebody is about to store
        wait_s:    how long to ask again for them
        only_name: make the chains, and ask for nothing
        """
        lookup = Lookup(min(chunks, _MAX_HASHES), time.monotonic() + self._deadline_s + wait_s)
        wait_until = time.monotonic() + wait_s
        with self._lock:
            full = self._waiting >= self._max_waiting
            self._waiting += not full
        if full:
            lookup.future.set_result(Found(None, why="too many lookups"))
            return lookup

        def begin() -> None:
            found = self._name(chains, lookup.chunks, tokens)
            if only_name or found.why:
                end(found)
            else:
                look(found, _FIRST_POLL_S)

        def look(found: Found, pause_s: float) -> None:
            self._look_up(found, lookup)
            if found.why or found.chunks >= min(wait_for, lookup.chunks) or time.monotonic() + pause_s > wait_until:
                end(found)
                return
            self._let_go(found)
            again = min(1.5 * pause_s, _LAST_POLL_S)
            self._later.call(pause_s, lambda: self._submit(lambda: look(found, again), lookup))

        def end(found: Found) -> None:
            with self._lock:
                self._waiting -= 1
            lookup.future.set_result(found)

        self._submit(begin, lookup)
        return lookup

    def forget(self, lookup: Lookup) -> None:
        """Release what a lookup has found, or will."""
        lookup.future.add_done_callback(lambda future: self.release(future.result().leases))

    def release(self, leases: Sequence[str]) -> None:
        """Give leases back; one that cannot be ends by itself."""
        for lease in leases:
            self._releases.submit(self._release, lease)

    def close(self) -> None:
        """Give back what is left, and end."""
        self._later.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._releases.shutdown(wait=True)
        self._client.close()

    def _release(self, lease: str) -> None:
        try:
            if self._breaker.allows():
                self._client.release(lease, deadline_s=self._deadline_s)
        except KVGateError as error:
            _log.debug("a lease ends by itself: %s", error)

    def _name(self, make: Callable[[], Chains], chunks: int, tokens: Sequence[int]) -> Found:
        try:
            chains = make()
            chains.extend(tokens, chunks)
        except GatewayUnavailable as error:
            self._breaker.failed()
            return Found(None, why=type(error).__name__)
        except (KVGateError, ValueError) as error:
            _log.warning("a prompt is not shared: %s", error)
            return Found(None, why="no name")
        except Exception:  # a defect of ours must not end the engine
            _log.exception("a prompt is not shared")
            return Found(None, why="defect")
        return Found(chains)

    def _look_up(self, found: Found, lookup: Lookup) -> None:
        try:
            self._match(found, lookup)
        except Exception:
            _log.exception("a prompt is not looked up")
            found.why = "defect"
        if found.why or not found.chunks:
            self._let_go(found)

    def _let_go(self, found: Found) -> None:
        self.release(found.leases)
        found.leases, found.chunks = [], 0

    def _submit(self, task: Callable[[], None], lookup: Lookup) -> None:
        """Run a task of a lookup on one of the threads; where there are none any more, the lookup finds nothing."""

        def run() -> None:
            try:
                task()
            except Exception:
                _log.exception("a prompt is not looked up")
                if not lookup.future.done():
                    lookup.future.set_result(Found(None, why="defect"))

        try:
            self._pool.submit(run)
        except RuntimeError:  # closed
            lookup.future.set_result(Found(None, why="closed"))

    def _match(self, found: Found, lookup: Lookup) -> None:
        chains = found.chains
        if chains is None or not lookup.chunks:
            return
        if lookup.is_late or not self._breaker.allows():
            found.why = "late" if lookup.is_late else "gateway unavailable"
            return
        try:
            found.chunks = self._agree(found, chains, lookup)
            found.asked = lookup.chunks
        except GatewayUnavailable as error:
            self._breaker.failed()
            found.why = type(error).__name__
        except GatewayError as error:
            found.why = error.code or "GatewayError"
            _log.warning("a prompt is not looked up: %s", error)
        else:
            self._breaker.succeeded()

    def _agree(self, found: Found, chains: Chains, lookup: Lookup) -> int:
        """The most leading chunks that every group can go on from, which are then leased."""
        most = lookup.chunks
        for group, window in enumerate(self._windows):
            if window is None and most:
                most = self._lease(found, chains, group, range(most), lookup)
        for group, window in enumerate(self._windows):
            if window is not None and most:
                most = self._last_seen(chains, group, window, most, lookup)
        # What one window has given up may leave another's without its chunks, so that is asked with the lease.
        while most:
            missing = False
            for group, window in enumerate(self._windows):
                if window is not None:
                    seen = self.seen(window, most, chains.spaces[group].chunk_tokens)
                    if self._lease(found, chains, group, seen, lookup) < len(seen):
                        missing = True
            if not missing:
                break
            most -= 1
        return most

    @staticmethod
    def seen(window: int | None, chunks: int, chunk_tokens: int) -> range:
        """The chunks before the end of `chunks` of which the next token sees something."""
        first_token = 0 if window is None else max(0, chunks * chunk_tokens - window + 1)
        return range(first_token // chunk_tokens, chunks)

    def _lease(self, found: Found, chains: Chains, group: int, chunks: range, lookup: Lookup) -> int:
        match = self._client.match(
            self._bucket,
            chains.spaces[group].id,
            chains.hashes(group, chunks),
            lease_s=self._lease_s,
            deadline_s=max(lookup.deadline_at - time.monotonic(), 0.001),
        )
        if match.lease:
            found.leases.append(match.lease)
            found.expires_at = time.monotonic() + match.expires_s
        return match.matched

    def _last_seen(self, chains: Chains, group: int, window: int, most: int, lookup: Lookup) -> int:
        """The most chunks, up to `most`, of which all that the next token sees is there."""
        asked = self._client.prefetch(
            self._bucket,
            chains.spaces[group].id,
            chains.hashes(group, range(most)),
            deadline_s=max(lookup.deadline_at - time.monotonic(), 0.001),
        )
        chunk_tokens = chains.spaces[group].chunk_tokens
        while most and any(asked.ranks[chunk] < 0 for chunk in self.seen(window, most, chunk_tokens)):
            most -= 1
        return most
