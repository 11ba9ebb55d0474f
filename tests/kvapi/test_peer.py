"""What other gateways may ask, and who else may not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest

from kvgate.auth.cluster import Cluster, ClusterConfig
from kvgate.auth.sigv4 import Credential, presign, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.config import Secret
from kvgate.kvapi.routes import ROUTES
from kvgate.messages import Headers, Request, Response, views
from kvgate.tiers.base import Name
from kvgate.tiers.peer_records import OBJECT, RECORDS, unpack_record
from tests.client.chunks import SPACE

from .conftest import SECRET, Body, OpenApi, OpenedApi

CLUSTER = Credential("CLUSTERKEY", "cluster-secret-0123456789")
MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


def cluster(tenants: Tenants, **options: Any) -> Cluster:
    return Cluster(ClusterConfig(CLUSTER.access_key, Secret(CLUSTER.secret_key)), tenants, time.time, **options)


@pytest.fixture
async def opened(open_api: OpenApi) -> AsyncIterator[OpenedApi]:
    async with open_api(cluster=cluster) as api:
        yield api


async def ask(
    api: OpenedApi,
    method: str,
    path: str,
    *,
    query: str = "",
    body: bytes = b"",
    credential: Credential | None = CLUSTER,
    now: float | None = None,
    payload_hash: str | None = None,
    sent: bytes | None = None,
    extra: dict[str, str] | None = None,
) -> Response:
    """A request as a gateway of the cluster signs it, unless the arguments say otherwise."""
    headers = {"host": "gateway", "content-length": str(len(body)), **MSGPACK, **(extra or {})}
    if credential is not None:
        headers |= sign(
            credential,
            method,
            path,
            query,
            headers,
            region="us-east-1",
            now=time.time() if now is None else now,
            payload_hash=payload_hash or hashlib.sha256(body).hexdigest(),
        )
    request = Request(method, path, query, Headers(headers.items()), Body(body if sent is None else sent))
    return await api.api.handle(request, "request-id")


def records_of(keys: list[str], tenant: str = "alpha", bucket: str = "bucket") -> bytes:
    packed: bytes = msgpack.packb({"tenant": tenant, "bucket": bucket, "keys": keys})
    return packed


async def records(api: OpenedApi, keys: list[str], tenant: str = "alpha", bucket: str = "bucket") -> list[Any]:
    response = await ask(api, "POST", RECORDS, body=records_of(keys, tenant, bucket))
    assert response.status == 200, response.body
    assert isinstance(response.body, bytes)
    found: list[Any] = msgpack.unpackb(response.body)["records"]
    return found


def object_query(record: Any, tenant: str = "alpha", **changes: object) -> str:
    members = {
        "tenant": tenant,
        "bucket": "bucket",
        "key": record["key"].replace("/", "%2F"),
        "nbytes": record["nbytes"],
        "crc64nvme": record["crc64nvme"].hex(),
        "start": 0,
        "stop": record["nbytes"],
    }
    return "&".join(f"{name}={value}" for name, value in (members | changes).items())


async def content(response: Response) -> bytes:
    assert not isinstance(response.body, bytes)
    try:
        return b"".join([bytes(view) async for view in views(response.body)])
    finally:
        response.body.close()


async def test_records_have_what_a_peer_verifies_by(opened: OpenedApi) -> None:
    (chunk_hash,) = await opened.put_chunks(1)
    key = str(ChunkKey(SPACE.id, chunk_hash.hex()))
    absent, manifest, chunk = await records(opened, ["absent", str(ManifestKey(SPACE.id)), key])
    assert absent is None
    record, _ = unpack_record(chunk, Name("alpha", "bucket", key))
    assert record == opened.store.stat("alpha", "bucket", key)
    assert unpack_record(manifest, Name("alpha", "bucket", manifest["key"]))[0].nbytes == len(SPACE.canonical_json())


async def test_object_is_sent_whole_or_in_part(opened: OpenedApi) -> None:
    await opened.put_chunks(1)
    (record,) = await records(opened, [str(ManifestKey(SPACE.id))])
    whole = await ask(opened, "GET", OBJECT, query=object_query(record))
    assert (whole.status, await content(whole)) == (200, SPACE.canonical_json())
    part = await ask(opened, "GET", OBJECT, query=object_query(record, start=3, stop=10))
    assert await content(part) == SPACE.canonical_json()[3:10]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"key": "absent"}, 404),
        ({"bucket": "other"}, 404),
        ({"bucket": "_multipart"}, 404),
        ({"tenant": "nobody"}, 404),
        ({"tenant": "beta"}, 404),
        ({"crc64nvme": "0" * 16}, 404),
        ({"nbytes": 5, "stop": 5}, 404),
        ({"stop": 1 << 40}, 400),
        ({"start": -1}, 400),
        ({"start": 9, "stop": 8}, 400),
        ({"crc64nvme": "xyz"}, 400),
        ({"key": "%ff"}, 400),
        ({"key": ""}, 400),
        ({"other": "1"}, 400),
    ],
)
async def test_object_that_is_not_exactly_here(opened: OpenedApi, changes: dict[str, object], status: int) -> None:
    await opened.put_chunks(1)
    (record,) = await records(opened, [str(ManifestKey(SPACE.id))])
    response = await ask(opened, "GET", OBJECT, query=object_query(record, **changes))
    assert response.status == status


async def test_names_of_other_tenants_and_buckets_have_nothing(opened: OpenedApi) -> None:
    await opened.put_chunks(1)
    key = str(ManifestKey(SPACE.id))
    for tenant, bucket in (("beta", "bucket"), ("nobody", "bucket"), ("cluster", "bucket"), ("alpha", "nothing")):
        assert await records(opened, [key, "x"], tenant, bucket) == [None, None]


async def test_tenant_that_only_the_other_gateway_knows_has_nothing_here(open_api: OpenApi) -> None:
    """Even where objects of that name still lie: of a tenant that was taken out of this configuration."""

    def without_alpha(_: Tenants) -> Cluster:
        return cluster(Tenants({"beta": TenantConfig((AccessKeyConfig("beta-key", Secret(SECRET)),))}))

    async with open_api(cluster=cluster) as api:
        await api.put_chunks(1)
        (record,) = await records(api, [str(ManifestKey(SPACE.id))])
        api.api._cluster = without_alpha(Tenants({}))
        assert await records(api, [record["key"]]) == [None]
        assert (await ask(api, "GET", OBJECT, query=object_query(record))).status == 404


# --- who may not ask --------------------------------------------------------------------------------------------------

Attempt = Callable[[OpenedApi, str, str, str, bytes], Any]


async def unsigned(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    return await ask(api, method, path, query=query, body=body, credential=None)


async def by_tenant(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    return await ask(api, method, path, query=query, body=body, credential=Credential("alpha-key", SECRET))


async def by_token(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    session = api.api._authenticator.sessions.issue("alpha-key", 60)
    token = {"authorization": f"Bearer {session.token}"}
    return await ask(api, method, path, query=query, body=body, credential=None, extra=token)


async def with_wrong_secret(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    return await ask(api, method, path, query=query, body=body, credential=Credential(CLUSTER.access_key, SECRET))


async def long_ago(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    return await ask(api, method, path, query=query, body=body, now=time.time() - 1000)


async def with_body_left_open(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    return await ask(api, method, path, query=query, body=body, payload_hash="UNSIGNED-PAYLOAD")


async def presigned(api: OpenedApi, method: str, path: str, query: str, body: bytes) -> Response:
    headers = {"host": "gateway"}
    signed = presign(CLUSTER, method, path, query, headers, region="us-east-1", now=time.time(), expires_s=60)
    return await ask(api, method, path, query=signed, body=body, credential=None)


@pytest.mark.parametrize(
    "attempt", [unsigned, by_tenant, by_token, with_wrong_secret, long_ago, with_body_left_open, presigned]
)
async def test_only_a_gateway_of_the_cluster_may_ask(opened: OpenedApi, attempt: Attempt) -> None:
    await opened.put_chunks(1)
    (record,) = await records(opened, [str(ManifestKey(SPACE.id))])
    for method, path, query, body in (
        ("POST", RECORDS, "", records_of([record["key"]])),
        ("GET", OBJECT, object_query(record), b""),
    ):
        response = await attempt(opened, method, path, query, body)
        assert response.status in (400, 403), path
        assert isinstance(response.body, bytes)
        assert set(msgpack.unpackb(response.body)) == {"code", "message"}


async def test_request_that_was_signed_for_one_tenant_is_none_for_another(opened: OpenedApi) -> None:
    await opened.put_chunks(1, tenant="beta")
    key = str(ManifestKey(SPACE.id))
    replayed = await ask(
        opened, "POST", RECORDS, body=records_of([key], "alpha"), sent=records_of([key], "beta").ljust(0)
    )
    assert replayed.status == 400
    (record,) = await records(opened, [key], "beta")
    query = object_query(record, tenant="alpha")
    headers = {"host": "gateway", **MSGPACK}
    headers |= sign(CLUSTER, "GET", OBJECT, query, headers, region="us-east-1", now=time.time(), payload_hash="0" * 64)
    request = Request("GET", OBJECT, query.replace("tenant=alpha", "tenant=beta"), Headers(headers.items()))
    assert (await opened.api.handle(request, "id")).status == 403


async def test_gateway_without_a_cluster_answers_nobody(open_api: OpenApi) -> None:
    async with open_api() as api:
        for credential in (CLUSTER, Credential("alpha-key", SECRET), None):
            response = await ask(api, "POST", RECORDS, body=records_of(["k"]), credential=credential)
            assert response.status == 403


async def test_the_clusters_credential_may_ask_nothing_else(opened: OpenedApi) -> None:
    for method, path in ROUTES:
        if path not in (RECORDS, OBJECT):
            response = await ask(opened, method, path)
            assert response.status == 403, path
            assert isinstance(response.body, bytes)
            assert msgpack.unpackb(response.body)["code"] == "InvalidAccessKeyId"


@pytest.mark.parametrize(
    "members",
    [
        {"tenant": "alpha", "bucket": "bucket"},
        {"tenant": "alpha", "bucket": "bucket", "keys": "k"},
        {"tenant": "alpha", "bucket": "bucket", "keys": [1]},
        {"tenant": "alpha", "bucket": "bucket", "keys": ["k"] * 1025},
        {"tenant": "alpha", "bucket": "bucket", "keys": [""]},
        {"tenant": 5, "bucket": "bucket", "keys": ["k"]},
        {"bucket": "bucket", "keys": ["k"]},
    ],
)
async def test_senseless_calls_are_refused(opened: OpenedApi, members: dict[str, object]) -> None:
    assert (await ask(opened, "POST", RECORDS, body=msgpack.packb(members))).status == 400
