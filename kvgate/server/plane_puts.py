"""PUTs whose heads the native plane has read: the store says where each body goes, the plane receives it there, and
the store makes it visible.

Invariants
1. The memory of an upload is not given back before the plane has told of the end of its body, or its threads have
   ended.
2. Every upload that the plane asks about is answered, or its connection is served in the usual way.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from kvgate.auth.tenants import Tenant
from kvgate.metrics import Metrics
from kvgate.s3.errors import error_response
from kvgate.s3.plain_put import PlainPut, open_plain_put
from kvgate.server.http1.body import incomplete
from kvgate.server.http1.eager import run_eagerly
from kvgate.server.http1.head import HeadWriter, encode, field_lines
from kvgate.server.http1.transfer import peer_gone

if TYPE_CHECKING:
    from kvgate.native import Plane
    from kvgate.store.store import Store

logger = logging.getLogger(__name__)

_ALONE_S = 0.05
"""Who has been the only one to upload for so long is served without a change of threads, which would only take time."""

_ENDED, _LATE = -1, -2
"""Why a body is not whole, see Plane.received."""


class PlanePuts:
    """See the module. All methods run on the event loop."""

    def __init__(self, plane: Plane, store: Store, tenants: Iterable[Tenant], metrics: Metrics, pause_s: float) -> None:
        """
        tenants: in the order of their numbers, as in `kvgate.auth.native_credentials`
        pause_s: how long a body may pause
        """
        self._plane = plane
        self._store = store
        self._tenants = tuple(tenants)
        self._metrics = metrics
        self._pause_s = pause_s
        self._head_writer = HeadWriter()
        self._receiving: dict[int, _Upload] = {}
        self._several_at = 0.0  # when there was last more than one under way
        self._spawn: Callable[[Coroutine[Any, Any, None]], Any]
        self._serve: Callable[[int, int, bytes], None]
        self._request_id: Callable[[], str]

    def begin(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        serve: Callable[[int, int, bytes], None],
        request_id: Callable[[], str],
    ) -> None:
        """
        spawn: runs something in a task
        serve: serves a connection in the usual way: socket, listener, and what has been read
        """
        self._spawn, self._serve, self._request_id = spawn, serve, request_id

    def take(self) -> None:
        """Go on with what the plane has news of."""
        asked = self._plane.asked()
        if len(asked) > 1 or (asked and self._receiving):
            self._several_at = time.monotonic()
        for number, tenant, path, nbytes, content_type, checksum in asked:
            run_eagerly(self._open(number, self._tenants[tenant], path, nbytes, content_type, checksum), self._spawn)
        for number, stopped in self._plane.received():
            run_eagerly(self._end(self._receiving.pop(number), stopped), self._spawn)

    async def close(self) -> None:
        """Give back what uploads have taken whose bodies have not come. When the plane's threads have ended."""
        while self._receiving:
            _, upload = self._receiving.popitem()
            await upload.put.abort()

    async def _open(
        self, number: int, tenant: Tenant, path: str, nbytes: int, content_type: str | None, checksum: str | None
    ) -> None:
        began = time.monotonic()
        put = None
        try:
            put = await open_plain_put(self._store, tenant, path, nbytes, content_type, checksum)
            if put is not None:
                alone = began - self._several_at > _ALONE_S
                stopped = self._plane.receive(number, put.views, put.digest, alone)
        except Exception:
            logger.exception("an upload could not be begun in the native plane, and takes the usual way")
            if put is not None:
                await put.abort()
                put = None
        if put is None:
            self._serve(*self._plane.decline(number))
            return
        upload = _Upload(number, path, nbytes, put, began)
        if stopped is None:
            self._receiving[number] = upload
        else:
            await self._end(upload, stopped)

    async def _end(self, upload: _Upload, stopped: int) -> None:
        """Store a body that has come, and say so, or say why not."""
        if stopped:
            error = incomplete(self._reason(stopped, upload.nbytes - upload.put.digest.nbytes))
            await upload.put.abort(error)
            self._refuse(upload, error, closes=True)
            return
        try:
            headers = await upload.put.store()
        except Exception as error:
            self._refuse(upload, error, closes=False)
        else:
            self._plane.answer(upload.number, encode(field_lines(headers)))

    def _reason(self, stopped: int, left: int) -> str:
        if stopped == _LATE:
            return f"too little moved within {self._pause_s:g} s"
        return str(peer_gone(left)) if stopped == _ENDED else os.strerror(stopped)

    def _refuse(self, upload: _Upload, error: Exception, *, closes: bool) -> None:
        request_id = self._request_id()
        response = error_response(error, method="PUT", resource=upload.path, request_id=request_id)
        response.headers["x-amz-request-id"] = request_id
        assert isinstance(response.body, bytes)
        whole = self._head_writer.write(response, close=closes) + response.body
        self._plane.refuse(upload.number, whole, closes)
        self._metrics.note_request("PutObject", response.status, time.monotonic() - upload.began)


class _Upload(NamedTuple):
    """A PUT that was opened. `began` is of time.monotonic()."""

    number: int
    path: str
    nbytes: int
    put: PlainPut
    began: float
