"""Uploads new chunks behind the engine's back.

1. `submit` never waits: a job that does not fit is dropped whole, and counted.
2. A job keeps its cache tensors alive until its last chunk is sent, and counts with all their bytes until then. So at
   most `max_held_nbytes` are held, and one chunk body.
3. Chunks go in the order of their sequence, after the manifest of their space.
4. Nothing that goes wrong here reaches the engine. It is counted, by reason.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine_adapters import torch_quantise
from engine_adapters.breaker import Breaker
from engine_adapters.chunk_writer import ChunkWriter
from engine_adapters.transformers import kv_layout
from engine_adapters.transformers.stats import Ledger
from kvgate.chunk.form import RAW
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.codec.chunk_body import Buffer, encode_body
from kvgate.errors import GatewayError, GatewayUnavailable, NotFinite

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewChunks:
    """Full chunks of one sequence that the gateway is not known to have.

    chain:  the root, then the hash of every full chunk of the sequence, up to the last new one
    first:  index of the first new chunk; the others follow it
    layers: K and V of each layer, [1, kv_heads, tokens, head_dim], which nobody writes to any more
    """

    space: Space
    chain: Sequence[bytes]
    first: int
    layers: Sequence[tuple[Any, Any]]

    @property
    def indices(self) -> range:
        """Which chunks of the sequence are new."""
        return range(self.first, len(self.chain) - 1)

    @property
    def held_nbytes(self) -> int:
        """Bytes of memory that the job keeps."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)


class BackgroundStore:
    """A bounded queue of new chunks, and the one thread that sends them. Every method may be called from any thread."""

    def __init__(
        self,
        client: Client,
        bucket: str,
        breaker: Breaker,
        ledger: Ledger,
        *,
        max_held_nbytes: int,
        put_deadline_s: float,
        lossless: str = RAW,
    ) -> None:
        """lossless: the codec that makes the chunks of raw spaces smaller"""
        self._lossless = lossless
        self._writer = ChunkWriter(client, bucket, put_deadline_s)
        self._breaker = breaker
        self._ledger = ledger
        self._max_held_nbytes = max_held_nbytes
        self._changed = threading.Condition()
        self._jobs: deque[NewChunks] = deque()  # the first is the one under way
        self._held_nbytes = 0
        self._closed = False
        self._given_up = False
        self._thread: threading.Thread | None = None

    def submit(self, job: NewChunks) -> bool:
        """Take over a job; False when it was dropped."""
        nbytes = job.held_nbytes
        with self._changed:
            taken = not self._closed and self._held_nbytes + nbytes <= self._max_held_nbytes
            if taken:
                self._held_nbytes += nbytes
                self._jobs.append(job)
                self._changed.notify_all()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="kvgate-store", daemon=True)
                    self._thread.start()
        if not taken:
            self._ledger.dropped("closed" if self._closed else "background full", len(job.indices))
        return taken

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything submitted was sent or given up; False when that took longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Take no more, send for at most `timeout_s`, and drop the rest. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._jobs, timeout_s)
            self._given_up = True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs[0]
            try:
                self._store(job)
            finally:
                with self._changed:
                    self._jobs.popleft()
                    self._held_nbytes -= job.held_nbytes
                    del job  # its tensors must not live on while this thread waits
                    self._changed.notify_all()

    def _store(self, job: NewChunks) -> None:
        left = deque(job.indices)
        reason = ""
        try:
            kv = torch.empty(job.space.layout.nbytes, dtype=torch.uint8)
            while left and not reason:
                reason = self._why_not() or self._send(job, left.popleft(), kv)
        except Exception as error:  # a defect of ours must not end the thread
            _log.exception("new chunks are not stored")
            self._ledger.failed(f"defect: {type(error).__name__}", 1)
            reason = "defect"
        if left:
            self._ledger.dropped(reason, len(left))

    def _why_not(self) -> str:
        """Why nothing should be sent now; empty when it should."""
        if self._given_up:
            return "closed"
        return "" if self._breaker.allows() else "gateway unavailable"

    def _send(self, job: NewChunks, index: int, kv: Any) -> str:
        """Send a chunk and count it. Returns why the chunks after it would fare no better, or nothing."""
        try:
            body = self._body(kv, job, index)
            stored = self._writer.put(job.space, job.chain[index + 1], body)
        except NotFinite:
            self._ledger.failed("NotFinite", 1)
            return "a chunk before was not finite"
        except GatewayUnavailable as error:
            self._breaker.failed()
            self._ledger.failed(type(error).__name__, 1)
            return "gateway unavailable"
        except GatewayError as error:
            _log.warning("new chunks are not stored: %s", error)
            self._ledger.failed(error.code, 1)
            return error.code
        self._breaker.succeeded()
        if stored:
            self._ledger.stored(sum(len(piece) for piece in body))
        else:
            self._ledger.present()
        return ""

    def _body(self, kv: Any, job: NewChunks, index: int) -> Sequence[Buffer]:
        space, first_token = job.space, index * job.space.chunk_tokens
        kv_layout.fill_chunk(kv, space.layout, job.layers, first_token)
        name, parent = job.chain[index + 1], job.chain[index]
        return encode_body(
            space, name, parent, first_token, memoryview(kv.numpy()), lossless=self._lossless, quantisers=torch_quantise
        )
