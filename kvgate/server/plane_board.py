"""The native data plane as the store's board, and what it has counted in the metrics.

The store decides what the plane may answer for (`kvgate.store.published`); `kvgate.server.http1.front` gives it the
connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from kvgate.auth.tenants import Tenant
from kvgate.memory.lease import Lease
from kvgate.metrics import Metrics
from kvgate.server.http1.head import encode, field_lines
from kvgate.store.published import Published
from kvgate.tiers.base import Record

if TYPE_CHECKING:
    from kvgate.native import Plane

_NOTE_USES_EVERY_S = 0.1
"""Reads of one object within so long count as one use."""

_PATH = re.compile(r"[A-Za-z0-9._~/-]+")
"""The paths that the plane understands: clients can write them in one way only."""


class PlaneBoard:
    """See Board. All methods run on the event loop.

    Its plane's tenants have the numbers of their places in `tenants`, as in `kvgate.auth.native_credentials`.
    """

    def __init__(self, plane: Plane, tenants: Iterable[Tenant], metrics: Metrics, tier: str) -> None:
        """tier: the name under which reads from memory are counted"""
        self._plane = plane
        self._numbers = {tenant.name: number for number, tenant in enumerate(tenants)}
        self._metrics = metrics
        self._tier = tier
        self._counted = plane.counts()
        self._running = False

    @contextlib.contextmanager
    def running(self, published: Published) -> Iterator[None]:
        """Have the store publish here. Leaving the context ends the plane's threads, and lets all memory go."""
        loop = asyncio.get_running_loop()
        self._running = True

        def note_uses() -> None:
            if self._running:
                published.note_uses()
                loop.call_later(_NOTE_USES_EVERY_S, note_uses)

        published.attach(self)
        note_uses()
        try:
            yield
        finally:  # in this order: memory is given back when no thread reads it
            self._running = False
            self._plane.close()
            published.detach()

    def publish(
        self, record: Record, headers: Mapping[str, str], checksums: Mapping[str, str], lease: Lease, blocks: array[int]
    ) -> int | None:
        """See Board."""
        path = f"/{record.bucket}/{record.key}"
        if not _PATH.fullmatch(path):
            return None
        head, more = encode(field_lines(headers)), encode(field_lines(checksums))
        return self._plane.publish(self._numbers[record.tenant], path.encode(), head, more, lease.views, blocks)

    def withdraw(self, number: int) -> bool:
        """See Board."""
        return self._plane.withdraw(number)

    def readers(self, number: int) -> int:
        """See Board."""
        return self._plane.readers(number)

    def used(self) -> list[int]:
        """See Board."""
        return self._plane.used()

    def released(self) -> list[int]:
        """See Board."""
        return self._plane.released()

    def corrupt(self) -> list[int]:
        """See Board."""
        return self._plane.corrupt()

    def collect(self) -> None:
        """Add what the plane has counted since the last call to the metrics."""
        if not self._running:
            return
        metrics, before, counts = self._metrics, self._counted, self._plane.counts()
        for operation, new, old in (
            ("GetObject", counts["GetObject"], before["GetObject"]),
            ("HeadObject", counts["HeadObject"], before["HeadObject"]),
            ("PutObject", counts["PutObject"], before["PutObject"]),
        ):
            statuses = {status: count - old["answers"][status] for status, count in new["answers"].items()}
            latencies = [count - known for count, known in zip(new["latencies"], old["latencies"], strict=True)]
            if not any(latencies):
                continue
            metrics.plane_requests.inc(sum(latencies))
            metrics.note_requests(operation, statuses, latencies, new["seconds"] - old["seconds"])
            if operation == "GetObject":
                metrics.reads.labels(self._tier).inc(sum(statuses.values()))
        metrics.sent_bytes.inc(counts["sent_bytes"] - before["sent_bytes"])
        metrics.received_bytes.inc(counts["received_bytes"] - before["received_bytes"])
        for what, count in counts["late"].items():
            if count > before["late"][what]:
                metrics.late_connections.labels(what).inc(count - before["late"][what])
        self._counted = counts
