"""A worker's half of handing prompts over directly: one `nixl.Worker` for this rank.

1. Every offer and every fetch of a step is reported ended once, when its blocks are nobody's but the engine's.
2. A fetch begins when the GPU has done what the engine had submitted by then: the blocks may have had another use.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata

from engine_adapters.nixl import Arrived, BlockRun, Failed, Layout, NixlConfig, Sent, Worker
from engine_adapters.vllm.job import Fetch, Offer, Work
from kvgate.client.credentials import Credentials
from kvgate.errors import KVGateError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """Where a rank is called; workers tell the scheduler."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Ended:
    """offers: jobs; arrived, failed: requests"""

    offers: list[int]
    arrived: list[str]
    failed: list[str]


class DirectWorker:
    """vLLM's thread calls; nothing here waits. The pages of `layout` must be there until `close`.

    Raises NixlMissing, AgentFailed and ConfigError, and OSError where nobody can be heard.
    """

    def __init__(self, layout: Layout, credentials: Credentials, config: NixlConfig) -> None:
        self._worker = Worker(layout, credentials.access_key, credentials.secret_key, config)
        self._rank = layout.rank
        self._jobs: dict[str, int] = {}
        self._requests: dict[str, str] = {}
        self._waiting: deque[tuple[Any, Callable[[], None]]] = deque()
        self._ended = Ended([], [], [])

    @property
    def address(self) -> Address:
        return Address(*self._worker.address)

    def begin(self, work: Work, submitted: Any) -> None:
        """Start a step's offers and fetches. submitted: an event after which the blocks are free to be written."""
        for offer in work.offers:
            self._offer(offer)
        for fetch in work.fetches:
            self._waiting.append((submitted, lambda fetch=fetch: self._fetch(fetch)))  # type: ignore[misc]
        for request_id in work.given_up:
            self._waiting.append((submitted, lambda request_id=request_id: self._cancel(request_id)))  # type: ignore[misc]
        self._go_on()

    def ended(self) -> Ended:
        """What has ended since the last call."""
        self._go_on()
        for event in self._worker.poll():
            if isinstance(event, Arrived | Failed):
                request_id = self._requests.pop(event.request_id)
                if isinstance(event, Failed):
                    _log.warning("a prompt is not handed over directly: %s", event.reason)
                (self._ended.arrived if isinstance(event, Arrived) else self._ended.failed).append(request_id)
            else:
                if not isinstance(event, Sent):
                    _log.info("a prompt was offered in vain: %s", event.reason)
                self._ended.offers.append(self._jobs.pop(event.request_id))
        ended, self._ended = self._ended, Ended([], [], [])
        return ended

    def refuse(self, work: Work) -> None:
        """End a step's offers and fetches without beginning them."""
        self._ended.offers.extend(offer.job for offer in work.offers)
        self._ended.failed.extend(fetch.request_id for fetch in work.fetches)

    def close(self) -> None:
        """End all. On return nobody else uses the pages."""
        self._worker.close()

    def _go_on(self) -> None:
        while self._waiting and (self._waiting[0][0] is None or self._waiting[0][0].query()):
            self._waiting.popleft()[1]()

    def _offer(self, offer: Offer) -> None:
        self._jobs[offer.id] = offer.job
        try:
            self._worker.offer(offer.id, [BlockRun(*run) for run in offer.runs])
        except (KVGateError, ValueError) as error:
            _log.warning("a prompt is not offered: %s", error)
            self._ended.offers.append(self._jobs.pop(offer.id))

    def _fetch(self, fetch: Fetch) -> None:
        try:
            self._worker.want(fetch.id, fetch.at[self._rank], [BlockRun(*run) for run in fetch.runs])
            self._requests[fetch.id] = fetch.request_id
        except (KVGateError, ValueError) as error:
            _log.warning("a prompt is not handed over directly: %s", error)
            self._ended.failed.append(fetch.request_id)

    def _cancel(self, request_id: str) -> None:
        for transfer, other in self._requests.items():
            if other == request_id:
                self._worker.cancel(transfer)
