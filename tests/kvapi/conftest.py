"""The KV calls over a real store and real signatures, without a server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgpack
import pytest

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.cluster import Cluster
from kvgate.auth.sigv4 import Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.config import Secret, Size
from kvgate.kvapi.api import KVApi
from kvgate.kvapi.call import Local
from kvgate.kvapi.config import KVApiConfig
from kvgate.messages import Headers, Request, Response
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.host import HostConfig, HostTier
from tests.client.chunks import SPACE, chunks

SECRET = "a-secret-of-some-length"
MiB = 1 << 20

OpenApi = Callable[..., AbstractAsyncContextManager["OpenedApi"]]


class Body:
    """A request body that comes a few bytes at a time."""

    def __init__(self, body: bytes, piece_nbytes: int = 100_000) -> None:
        self._rest, self._piece_nbytes = body, piece_nbytes

    async def readinto(self, view: memoryview) -> int:
        count = min(len(self._rest), len(view), self._piece_nbytes)
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class OpenedApi:
    """The API under test, the store below it, and a client's way to ask."""

    def __init__(self, api: KVApi, store: Store, tenants: Tenants) -> None:
        self.api, self.store = api, store
        self.tenants = {tenant.name: tenant for tenant in tenants}

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        tenant: str = "alpha",
        query: str = "",
        payload_hash: str | None = None,
        announced: int | None = None,
        signed: bool = True,
    ) -> Response:
        every = {"host": "gateway", "content-length": str(len(body) if announced is None else announced)}
        every |= headers or {}
        if signed:
            every |= sign(
                Credential(f"{tenant}-key", SECRET),
                method,
                path,
                query,
                every,
                region="eu-central-1",
                now=time.time(),
                payload_hash=payload_hash or hashlib.sha256(body).hexdigest(),
            )
        return await self.api.handle(Request(method, path, query, Headers(every.items()), Body(body)), "request-id")

    async def ask(self, path: str, members: Any = None, *, tenant: str = "alpha", packed: bool = False) -> Any:
        """The status and members of the answer; a POST when there is something to send."""
        method = "GET" if members is None else "POST"
        media_type = "application/msgpack" if packed else "application/json"
        pack = msgpack.packb if packed else lambda value: json.dumps(value).encode()
        body = b"" if members is None else pack(members)
        response = await self.request(
            method, path, body, {"content-type": media_type, "accept": media_type}, tenant=tenant
        )
        assert response.headers["Content-Type"] == media_type
        assert isinstance(response.body, bytes)
        return response.status, (msgpack.unpackb if packed else json.loads)(response.body)

    async def put_chunks(self, count: int, *, tenant: str = "alpha", seed: int = 0) -> list[bytes]:
        """Store the chunks of one prompt and give their hashes."""
        await self._put(tenant, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        prompt = chunks(self.tenants[tenant].salt, count, seed)
        for chunk_hash, body in prompt:
            await self._put(tenant, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
        return [chunk_hash for chunk_hash, _ in prompt]

    async def _put(self, tenant: str, key: str, body: bytes) -> None:
        async with await self.store.open_write(self.tenants[tenant], "bucket", key, len(body)) as write:
            while write.nbytes < len(body):
                view = (await write.views())[0][: len(body) - write.nbytes]
                view[:] = body[write.nbytes : write.nbytes + len(view)]
                write.digest(view)
                write.advance()
            await write.commit({})


@pytest.fixture
def open_api() -> OpenApi:
    @contextlib.asynccontextmanager
    async def open_it(
        *,
        store: StoreConfig | None = None,
        session_ttl_s: float = 3600,
        cluster: Callable[[Tenants], Cluster] | None = None,
        **options: Any,
    ) -> AsyncIterator[OpenedApi]:
        tenants = Tenants(
            {
                name: TenantConfig((AccessKeyConfig(f"{name}-key", Secret(SECRET)),), ("bucket",), quota)
                for name, quota in (("alpha", Size(100 * MiB)), ("beta", None))
            }
        )
        memory = HostTier(HostConfig(capacity=Size(16 * MiB), segment=Size(4 * MiB)))
        config, metrics = store or StoreConfig(), Metrics()
        async with open_store(memory, [], tenants, config=config, metrics=metrics, catalog=None) as opened:
            authenticator = Authenticator(tenants, time.time, session_ttl_s=session_ttl_s)
            local = Local(bytes(16))
            api = KVApi(opened, authenticator, KVApiConfig(**options), local, cluster(tenants) if cluster else None)
            yield OpenedApi(api, opened, tenants)

    return open_it
