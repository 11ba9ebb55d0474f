"""What the S3 API has a data plane answer for: what an owner has just asked for, described as its own answers are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvgate.auth import sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import MiB, Secret, Size
from kvgate.messages import Headers, Request, Response, views
from kvgate.metrics import Metrics
from kvgate.s3.api import S3
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.disk import DiskConfig, DiskTier
from kvgate.tiers.host import HostConfig, HostTier
from tests.store.boards import RecordingBoard, check_published
from tests.store.conftest import fill

SECRET = "a-secret-of-%s-0123456789"
READ_BY_BETA = (
    b'{"Statement": [{"Effect": "Allow", "Principal": {"AWS": "beta"}, "Action": "s3:GetObject", '
    b'"Resource": "arn:aws:s3:::alpha_bucket/*"}]}'
)


class Front:
    """A store with a board, and the API in front of it."""

    def __init__(self, store: Store, tenants: Tenants) -> None:
        self.store, self.tenants = store, {tenant.name: tenant for tenant in tenants}
        self.api = S3(store, tenants, Authenticator(tenants, time.time), "us-east-1", None)
        self.board = RecordingBoard()
        store.published.attach(self.board)

    async def put(self, key: str, body: bytes, tenant: str = "alpha", **attributes: str) -> None:
        async with await self.store.open_write(self.tenants[tenant], "bucket", key, len(body)) as write:
            await fill(write, body)
            await write.commit(attributes)

    async def ask(
        self, method: str, path: str, query: str = "", tenant: str | None = "alpha", **headers: str
    ) -> tuple[Response, bytes]:
        sent = {"host": "h", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if tenant is not None:
            credential = sigv4.Credential(tenant, SECRET % tenant)
            sent |= sigv4.sign(credential, method, path, query, sent, region="us-east-1", now=time.time())
        response = await self.api.handle(Request(method, path, query, Headers(sent.items())), "an-id")
        if isinstance(response.body, bytes):
            return response, response.body
        try:
            return response, b"".join([bytes(view) async for view in views(response.body)])
        finally:
            response.body.close()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    tenants = Tenants(
        {
            name: TenantConfig((AccessKeyConfig(name, Secret(SECRET % name)),), buckets=("bucket",))
            for name in ("alpha", "beta")
        }
    )
    memory, disk = HostTier(HostConfig(capacity=Size(32 * MiB))), DiskTier(DiskConfig(path=tmp_path))
    config = StoreConfig()
    async with open_store(
        memory, [disk], tenants, config=config, metrics=Metrics(), catalog=tmp_path / "buckets.json"
    ) as store:
        front = Front(store, tenants)
        yield front
        check_published(store, front.board)
        store.published.detach()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_answers_are_described_as_those_of_the_plane(front: Front, method: str) -> None:
    attributes = {"content-type": "text/plain", "x-amz-meta-a": "b", "x-amz-tagging": "c=d", "x-amz-acl": "public-read"}
    await front.put("some/key~1", b"body", **attributes)
    await front.ask(method, "/bucket/some/key~1")
    [(number, shown)] = front.board.shown.items()
    with_checksums, body = await front.ask("GET", "/bucket/some/key~1", x_amz_checksum_mode="ENABLED")
    ids = {"x-amz-request-id": "an-id"}
    assert list(with_checksums.headers.items()) == list({**shown.headers, **shown.checksums, **ids}.items())
    plain, _ = await front.ask(method, "/bucket/some/key~1")
    assert list(plain.headers.items()) == list({**shown.headers, **ids}.items())
    assert front.board.get(number) == body == b"body"


@pytest.mark.parametrize(
    ("method", "query", "headers"),
    [
        ("GET", "", {"range": "bytes=1-2"}),
        ("GET", "partNumber=1", {}),
        ("HEAD", "", {"if_none_match": "*"}),
        ("GET", "response-content-type=a/b", {}),
    ],
)
async def test_whatever_the_owner_asks_for_the_whole_is_published(
    front: Front, method: str, query: str, headers: dict[str, str]
) -> None:
    await front.put("key", b"body", **{"content-type": "text/plain"})
    await front.ask(method, "/bucket/key", query, **headers)
    [shown] = front.board.shown.values()
    assert shown.body == b"body"
    assert shown.headers["Content-Type"] == "text/plain"
    assert "Content-Range" not in shown.headers


async def test_own_bucket_by_its_qualified_name_is_published_under_the_plain_one(front: Front) -> None:
    await front.put("key", b"body")
    assert (await front.ask("GET", "/alpha_bucket/key"))[1] == b"body"
    assert [shown.record.bucket for shown in front.board.shown.values()] == ["bucket"]


async def test_what_others_may_read_is_published_to_nobody(front: Front) -> None:
    await front.put("shared", b"body", **{"x-amz-acl": "public-read"})
    for tenant in ("beta", None):
        assert (await front.ask("GET", "/alpha_bucket/shared", tenant=tenant))[1] == b"body"
    assert not front.board.shown
    await front.ask("GET", "/bucket/shared")
    assert len(front.board.shown) == 1
    await front.store.buckets.set("alpha", "bucket", "policy", READ_BY_BETA.decode())
    await front.ask("GET", "/bucket/shared")
    assert not front.board.shown


async def test_what_comes_from_disk_is_published_once_it_is_in_memory(front: Front) -> None:
    await front.put("key", bytes(3 * MiB))
    await front.store.flush()
    entry = front.store._index.get("alpha", "bucket", "key")
    assert entry is not None
    front.store._placement.copies.drop_copy(entry, 0)
    assert not front.board.shown
    await front.ask("GET", "/bucket/key")
    async with asyncio.timeout(10):
        while not entry.has_copy(0):
            await asyncio.sleep(0.005)
    await front.ask("HEAD", "/bucket/key")
    assert len(front.board.shown) == 1


@pytest.mark.parametrize("path", ["/bucket/none", "/none/key", "/bucket", "/"])
async def test_what_is_not_there_is_not_published(front: Front, path: str) -> None:
    await front.ask("GET", path)
    assert not front.board.shown
