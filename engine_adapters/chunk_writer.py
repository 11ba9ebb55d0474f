"""Stores chunks: the manifest of their space first, and what is there already left as it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from kvgate.chunk.key import ManifestKey
from kvgate.chunk.space import Space
from kvgate.client.answer import CHUNK_IS_THERE
from kvgate.client.buffers import ReadableBuffer
from kvgate.client.sync import Client
from kvgate.client.values import Slice
from kvgate.errors import GatewayError

_ATTEMPTS = 3
_OVERLOAD_PAUSE_S = 1.0
_SLOW_DOWN = 503
_WORTH_ANOTHER = frozenset({"SlowDown", "UnknownSpace", "NoSuchReservation"})


class ChunkWriter:
    """Writes chunks of any space into one bucket. Thread-safe.

    Every call raises GatewayError, after a few attempts where another may help.
    """

    def __init__(self, client: Client, bucket: str, deadline_s: float) -> None:
        """deadline_s: for each call to the gateway"""
        self._client = client
        self._bucket = bucket
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._manifests: set[str] = set()

    def put(self, space: Space, chunk_hash: bytes, body: ReadableBuffer | Sequence[ReadableBuffer]) -> bool:
        """Store a whole chunk object; False when the gateway has one of this name already."""
        return self._attempt(
            space,
            lambda: self._client.put_chunk(self._bucket, space.id, chunk_hash, body, deadline_s=self._deadline_s),
        )

    def write_slice(
        self, space: Space, chunk_hash: bytes, parent: bytes, first_token: int, part: Slice, writer: str
    ) -> bool:
        """Write one rank's part of a chunk, which is visible once every rank has; False when it was there already.

        writer: names the engine; ranks that give the same name write one chunk together
        """

        def write() -> bool:
            reservation = self._client.reserve(
                self._bucket, space.id, chunk_hash, parent, first_token, writer=writer, deadline_s=self._deadline_s
            )
            if not reservation.name:
                return False
            written = self._client.write_slice(
                reservation.name, part.layers, part.heads, part.views, deadline_s=self._deadline_s
            )
            return written.state != "present"

        return self._attempt(space, write)

    def _attempt(self, space: Space, store: Callable[[], bool]) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                self._put_manifest(space)
                return store()
            except GatewayError as error:
                if error.code in CHUNK_IS_THERE:
                    return False
                if attempt == _ATTEMPTS - 1 or error.code not in _WORTH_ANOTHER:
                    raise
                with self._lock:
                    self._manifests.discard(space.id)  # it may be what was lost
                time.sleep(_OVERLOAD_PAUSE_S if error.status == _SLOW_DOWN else 0.0)
        raise AssertionError("unreachable")

    def _put_manifest(self, space: Space) -> None:
        if space.id not in self._manifests:
            self._client.put(
                self._bucket,
                str(ManifestKey(space.id)),
                space.canonical_json(),
                content_type="application/json",
                deadline_s=self._deadline_s,
            )
            with self._lock:
                self._manifests.add(space.id)
