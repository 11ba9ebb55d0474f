"""The gateway without its HTTP front: both protocols over a real store with little memory, and perhaps a disk tier.

It lives on an event loop of its own from the first input to `close`. After each input everything is deleted again, and
by then nothing may be left: no byte of quota, memory or disk, no lease, and no error in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, fromstring

from fuzz.properties import Broken, is_clear, must
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.sigv4 import Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import KiB, MiB, Seconds, Secret, Size
from kvgate.errors import IncompleteBody, KVGateError
from kvgate.kvapi.api import KVApi
from kvgate.kvapi.call import Local
from kvgate.kvapi.config import KVApiConfig
from kvgate.messages import Headers, Request, Response, views
from kvgate.metrics import Metrics
from kvgate.s3.api import S3
from kvgate.store.config import StoreConfig
from kvgate.store.store import open_store
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.host import HostConfig, HostTier

REGION = "us-east-1"
BUCKETS = ("bucket", "other")
CREDENTIALS = {name: Credential(f"{name}-key", f"{name}-secret-0123456789") for name in ("alpha", "beta")}

_PATIENCE_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_UNCARRIED = re.compile(rb"&#x[0-9a-f]+;")
"""How keys are written that XML cannot carry; on purpose nobody can parse such a listing."""


class Body:
    """A request body of `nbytes` bytes that is sent up to where `data` ends, in pieces."""

    def __init__(self, data: bytes, nbytes: int, piece_nbytes: int) -> None:
        self._data, self._missing, self._piece_nbytes, self._at = data[:nbytes], nbytes > len(data), piece_nbytes, 0

    async def readinto(self, view: memoryview) -> int:
        piece = self._data[self._at :][: min(len(view), self._piece_nbytes)]
        if not piece and self._missing:
            raise IncompleteBody("the peer has gone")
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class Service:
    """Opens at the first use."""

    def __init__(self, *, with_disk: bool) -> None:
        self._with_disk = with_disk
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, requests: Coroutine[Any, Any, None]) -> None:
        """Carry out one input, then clean up, and see whether all is well."""
        if self._loop is None:
            self._open()
        assert self._loop is not None
        self._loop.run_until_complete(requests)
        self._loop.run_until_complete(self._clean_up())
        must(not self._faults, f"an error that nobody was told of: {self._faults}")

    def close(self) -> None:
        """Close the store. Idempotent; `run` opens another one."""
        if self._loop is None:
            return
        self._stop.set()
        self._loop.run_until_complete(self._life)
        self._loop.close()
        self._loop = None
        logging.getLogger("kvgate").removeHandler(self._log)

    def request(
        self,
        tenant: str,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: Body,
        payload_hash: str,
    ) -> Request:
        """A request with a good signature; with none where there is no tenant."""
        signed = {"host": "gateway", **headers}
        if tenant:
            signed |= sign(
                CREDENTIALS[tenant],
                method,
                path,
                query,
                signed,
                region=REGION,
                now=time.time(),
                payload_hash=payload_hash,
            )
        return Request(method, path, query, Headers(signed.items()), body)

    async def answer(self, api: S3 | KVApi, request: Request) -> tuple[Response, bytes]:
        """What the API answers, and the bytes of the body, once all that holds of every answer has been checked."""
        response = await api.handle(request, "request-id")
        content = await _content(response)
        what = f"{request.method} {request.raw_path[:80]} is answered {response.status}"
        must(is_clear(response.status), f"{what}: {content[:200]!r}")
        must(b"<Code>InternalError" not in content[:4096], f"{what} with an internal error")
        for name, value in response.headers.items():
            must(_NAME.fullmatch(name) and _VALUE.fullmatch(value), f"{what} with the header {name!r}: {value!r}")
            value.encode()
        if request.method == "HEAD" or response.status in (204, 304):
            must(not content, f"{what} with a body")
        elif response.headers.get("Content-Type") == "application/xml" and response.operation != "GetObject":
            readable = content if response.status >= 400 else _UNCARRIED.sub(b"", content)
            try:
                fromstring(readable)
            except ParseError as error:
                raise Broken(f"{what} with XML that cannot be read: {error}: {content[:500]!r}") from error
        return response, content

    # --- life ---------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._faults: list[str] = []
        self._log = _ErrorLog(self._faults)
        logging.getLogger("kvgate").addHandler(self._log)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._faults.append(str(context)))
        self._stop = asyncio.Event()
        opened = self._loop.create_future()
        self._life = self._loop.create_task(self._live(opened))
        self._loop.run_until_complete(asyncio.wait([opened, self._life], return_when=asyncio.FIRST_COMPLETED))
        if self._life.done():
            self._life.result()

    async def _live(self, opened: asyncio.Future[None]) -> None:
        configs = {
            name: TenantConfig((AccessKeyConfig(key.access_key, Secret(key.secret_key)),), BUCKETS, quota, None, 4)
            for (name, key), quota in zip(CREDENTIALS.items(), (Size(3 * MiB), None), strict=True)
        }
        self._tenants = Tenants(configs)
        self._memory = HostTier(HostConfig(capacity=Size(2 * MiB), segment=Size(MiB)))
        limits = StoreConfig(
            window=Size(MiB), memory_wait=Seconds(0.05), min_part=Size(KiB), max_object=Size(4 * MiB), max_leases=4
        )
        with tempfile.TemporaryDirectory() as folder:
            self._lower: list[DiskTier] = []
            if self._with_disk:
                self._lower.append(DiskTier(DiskConfig(path=Path(folder) / "disk", capacity=Size(16 * MiB))))
            catalog = Path(folder) / "disk" / "buckets.json" if self._with_disk else None
            async with open_store(
                self._memory, self._lower, self._tenants, config=limits, metrics=Metrics(), catalog=catalog
            ) as self._store:
                authenticator = Authenticator(self._tenants, time.time)
                unsigned = next(iter(self._tenants))
                self.s3 = S3(self._store, self._tenants, authenticator, REGION, unsigned)
                self.kvapi = KVApi(
                    self._store, authenticator, KVApiConfig(max_hashes=100, max_body=Size(64 * KiB)), Local(bytes(16))
                )
                opened.set_result(None)
                await self._stop.wait()

    async def _clean_up(self) -> None:
        store = self._store
        for tenant in self._tenants:
            name, nbytes = tenant.name, 0
            for bucket in store.buckets.list(name):
                for upload in store.multipart.uploads(name, bucket.name):
                    nbytes += sum(part.record.nbytes for part in store.multipart.parts(upload))
                    await store.multipart.abort(upload)
                for record in store.list(name, bucket.name).records:
                    nbytes += record.nbytes
                    taken = store.stats(tenant).nbytes
                    await store.delete(name, bucket.name, record.key)
                    must(store.stats(tenant).nbytes == taken - record.nbytes, "a deleted object is counted still")
                for setting in bucket.settings:
                    await store.buckets.set(name, bucket.name, setting, None)
                if bucket.name not in BUCKETS:
                    await store.buckets.delete(name, bucket.name)
            for bucket_name in BUCKETS:
                await store.buckets.create(tenant, bucket_name)
        deadline = time.monotonic() + _PATIENCE_S  # what was being written to disk is deleted once it is written
        tiers: list[HostTier | DiskTier] = [self._memory, *self._lower]
        while any(tier.usage().nbytes for tier in tiers) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        for tenant in self._tenants:
            stats = store.stats(tenant)
            must(stats.objects == stats.nbytes == stats.leases == 0, f"something is left of {tenant.name}: {stats}")
            must(not any(usage.nbytes or usage.objects for usage in stats.tiers.values()), f"copies are left: {stats}")
        must(self._memory.arena.lease_count == 0, "memory is still leased")
        must(not any(tier.usage().nbytes for tier in tiers), "bytes are left in a tier")


class _ErrorLog(logging.Handler):
    """Collects what kvgate logs as an error: the log of a gateway is no place for a caller's mistakes."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        self._faults.append(logging.Formatter().format(record))


async def _content(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    with contextlib.closing(response.body):
        try:
            content = b"".join([bytes(view) async for view in views(response.body)])
        except KVGateError as error:
            raise Broken(f"a body is broken off: {error}") from error
        must(response.body.nbytes in (None, len(content)), "a body of another length than announced")
        return content


def sha256(content: bytes) -> str:
    """What a request signs of its body."""
    return hashlib.sha256(content).hexdigest()
