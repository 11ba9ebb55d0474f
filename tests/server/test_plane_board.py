"""The native plane and the store together: what the plane answers is what Python would, at every moment."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.sigv4 import Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import MiB, Secret, Size
from kvgate.messages import Headers, Request
from kvgate.metrics import LATENCY_BUCKETS_S, Metrics
from kvgate.s3.api import S3
from kvgate.s3.representation import described
from kvgate.server.http1.head import HeadWriter
from kvgate.server.plane_board import PlaneBoard
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.host import HostConfig, HostTier
from tests.store.conftest import fill

native = pytest.importorskip("kvgate.native", reason="the native extension was not built")
from kvgate.auth.native_credentials import native_credentials  # noqa: E402

SECRET = "secret of %s, long enough"
TENANTS = Tenants(
    {
        name: TenantConfig((AccessKeyConfig(f"AK-{name}", Secret(SECRET % name)),), buckets=("bucket",))
        for name in ("acme", "other")
    }
)
PATIENCE_S = 60.0


def headers_of(method: str, path: str, more: dict[str, str], tenant: str = "acme") -> dict[str, str]:
    sent = {"host": "gate:9000", **more}
    credential = Credential(f"AK-{tenant}", SECRET % tenant)
    return sent | sign(credential, method, path, "", sent, region="us-east-1", now=time.time())


class Gate:
    """A store, the S3 API and a plane. What the plane hands over is closed, after what was asked for was offered."""

    def __init__(self, store: Store, memory: HostTier, metrics: Metrics) -> None:
        self.store, self.memory, self.metrics = store, memory, metrics
        self.api = S3(store, TENANTS, Authenticator(TENANTS, time.time), "us-east-1")
        self.plane = native.Plane(
            native_credentials(TENANTS, max_skew_s=900, session_ttl_s=3600),
            threads=2,
            domains=(),
            max_header=16384,
            idle_timeout_s=PATIENCE_S,
            header_timeout_s=PATIENCE_S,
            body_timeout_s=PATIENCE_S,
            min_rate=0,
            latency_buckets_s=LATENCY_BUCKETS_S,
        )
        self.board = PlaneBoard(self.plane, TENANTS, metrics, memory.name)
        self.fd = self.plane.fileno()
        asyncio.get_running_loop().add_reader(self.fd, self.take_handed)

    def take_handed(self) -> None:
        os.eventfd_read(self.fd)
        for fd, _, received in self.plane.handed():
            path = received.split(b" ", 2)[1].decode()
            os.close(fd)
            _, bucket, key = path.split("/", 2)
            entry = self.store._index.get("acme", bucket, key)
            if entry is not None:
                self.store.published.offer(entry.record, described)
        self.store.published.settle()

    def connect(self) -> socket.socket:
        """A connection to the plane. On the event loop's thread."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(PATIENCE_S)
        self.plane.adopt(theirs.fileno(), 0, False)
        theirs.detach()
        return ours

    async def put(self, key: str, body: bytes, **attributes: str) -> None:
        async with await self.store.open_write(next(iter(TENANTS)), "bucket", key, len(body)) as write:
            await fill(write, body)
            await write.commit(attributes)

    async def ask_plane(self, method: str, path: str, tenant: str = "acme", **more: str) -> tuple[bytes, bytes] | None:
        """The head and the body of the plane's answer; None where it hands the connection over."""
        request = {name.replace("_", "-"): value for name, value in more.items()}
        with self.connect() as sock:
            head = headers_of(method, path, request, tenant)
            return await asyncio.to_thread(exchange, sock, method, path, head)

    async def ask_python(self, method: str, path: str, **more: str) -> bytes:
        """The head of Python's answer."""
        sent = headers_of(method, path, {name.replace("_", "-"): value for name, value in more.items()})
        response = await self.api.handle(Request(method, path, "", Headers(sent.items())), "0" * 16)
        try:
            return HeadWriter().write(response, close=False)
        finally:
            if not isinstance(response.body, bytes):
                response.body.close()

    def sample(self, name: str, **labels: str) -> float:
        self.store.collect()
        self.board.collect()
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def exchange(sock: socket.socket, method: str, path: str, headers: dict[str, str]) -> tuple[bytes, bytes] | None:
    """One request on a connection to the plane, and its whole answer."""
    lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
    sock.sendall("\r\n".join(lines).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = sock.recv(1 << 16)
        if not received:
            assert not answer
            return None
        answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    while method != "HEAD" and len(body) < int(length[1]):
        received = sock.recv(1 << 20)
        assert received, "the answer was broken off"
        body += received
    return head + b"\r\n\r\n", body


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    memory, metrics = HostTier(HostConfig(capacity=Size(64 * MiB))), Metrics()
    catalog = tmp_path / "buckets.json"
    async with open_store(memory, [], TENANTS, config=StoreConfig(), metrics=metrics, catalog=catalog) as store:
        gate = Gate(store, memory, metrics)
        with gate.board.running(store.published):
            yield gate
            asyncio.get_running_loop().remove_reader(gate.fd)
        leases = sum(entry.copies[0] is not None for entry in store._index.entries())
        assert memory.arena.lease_count == leases, "every share has been given back"


def comparable(head: bytes) -> list[bytes]:
    """The lines of a head but for the time and the number of the request."""
    different = (b"Date: ", b"x-amz-request-id: ")
    return [next((name for name in different if line.startswith(name)), line) for line in head.split(b"\r\n")]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_amz_checksum_mode": "ENABLED"},
        {"range": "bytes=5-1048580"},
        {"range": "bytes=0-", "x_amz_checksum_mode": "ENABLED"},
        {"range": "bytes=-3", "x_amz_checksum_mode": "enabled"},
    ],
)
async def test_plane_answers_as_python_does(gate: Gate, method: str, headers: dict[str, str]) -> None:
    body = os.urandom(2 * MiB + 77)
    attributes = {"content-type": "text/plain", "x-amz-meta-a": "ä b", "x-amz-tagging": "c=d", "cache-control": "x"}
    await gate.put("some/key~1", body, **attributes)
    by_python = await gate.ask_python(method, "/bucket/some/key~1", **headers)
    answer = await gate.ask_plane(method, "/bucket/some/key~1", **headers)
    assert answer is not None
    assert comparable(answer[0]) == comparable(by_python)
    start, stop = 0, len(body)
    if "range" in headers:
        span = re.search(rb"Content-Range: bytes (\d+)-(\d+)/", by_python)
        assert span is not None
        start, stop = int(span[1]), int(span[2]) + 1
    assert answer[1] == (body[start:stop] if method == "GET" else b"")


@pytest.mark.parametrize("key", ["a@b", "a%b", "a b", "ä", "a+b"])
async def test_names_that_can_be_written_in_two_ways_are_not_published(gate: Gate, key: str) -> None:
    await gate.put(key, b"body")
    gate.store.published.offer(gate.store.stat("acme", "bucket", key), described)
    assert len(gate.store.published) == 0


async def test_other_tenants_get_nothing_of_what_is_published(gate: Gate) -> None:
    await gate.put("key", b"body")
    await gate.ask_python("GET", "/bucket/key")
    assert await gate.ask_plane("GET", "/bucket/key", tenant="other") is None
    assert await gate.ask_plane("GET", "/bucket/key") is not None


async def test_what_the_plane_did_is_in_the_metrics(gate: Gate) -> None:
    await gate.put("key", b"0123456789")
    await gate.ask_python("GET", "/bucket/key")
    get, head = {"operation": "GetObject"}, {"operation": "HeadObject"}
    before = gate.sample("kvgate_reads_total", tier="host")
    assert gate.sample("kvgate_published_objects") == 1
    for round in range(1, 3):
        for _ in range(3):
            await gate.ask_plane("GET", "/bucket/key")
        await gate.ask_plane("GET", "/bucket/key", range="bytes=0-0")
        await gate.ask_plane("HEAD", "/bucket/key")
        # what is counted is counted when the last byte has left, which may be after it has come
        async with asyncio.timeout(PATIENCE_S):
            while gate.sample("kvgate_request_seconds_count", **get) < 4 * round:
                await asyncio.sleep(0.01)
            while gate.sample("kvgate_request_seconds_count", **head) < round:
                await asyncio.sleep(0.01)
        assert gate.sample("kvgate_requests_total", **get, status="200") == 3 * round
        assert gate.sample("kvgate_requests_total", **get, status="206") == round
        assert gate.sample("kvgate_requests_total", **head, status="200") == round
        assert gate.sample("kvgate_requests_total", **head, status="206") == 0
        assert gate.sample("kvgate_reads_total", tier="host") - before == 4 * round
        assert gate.sample("kvgate_sent_bytes_total") == 31 * round
        assert gate.sample("kvgate_request_seconds_sum", **get) > 0
        assert gate.sample("kvgate_request_seconds_bucket", **get, le="+Inf") == 4 * round


async def test_a_plane_that_did_nothing_is_not_in_the_metrics(gate: Gate) -> None:
    gate.board.collect()
    text = gate.metrics.exposition().decode()
    assert not re.search(r"^kvgate_(reads_total|requests_total|request_seconds_count)", text, re.MULTILINE)


async def test_reads_of_the_plane_are_noted_by_themselves(gate: Gate) -> None:
    for key in ("a", "b"):
        await gate.put(key, key.encode())
        await gate.ask_python("GET", f"/bucket/{key}")
    await gate.ask_plane("GET", "/bucket/a")
    residents = gate.store._placement.copies.residents[0]
    async with asyncio.timeout(PATIENCE_S):
        while [entry.record.key for entry in residents.victims(lambda _: True)] != ["b", "a"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("closed_before", [False, True])
async def test_all_memory_is_given_back_when_the_plane_ends(tmp_path: Path, closed_before: bool) -> None:
    memory, metrics = HostTier(HostConfig(capacity=Size(64 * MiB))), Metrics()
    async with open_store(memory, [], TENANTS, config=StoreConfig(), metrics=metrics, catalog=tmp_path / "b") as store:
        gate = Gate(store, memory, metrics)
        with gate.board.running(store.published), gate.connect():
            await gate.put("key", bytes(MiB))
            await gate.ask_python("GET", "/bucket/key")
            await gate.ask_plane("GET", "/bucket/key")
            asyncio.get_running_loop().remove_reader(gate.fd)
            if closed_before:
                gate.plane.close()
        assert memory.arena.lease_count == 1
        assert gate.sample("kvgate_published_objects") == 0
        await gate.ask_python("GET", "/bucket/key")
        assert memory.arena.lease_count == 1


async def test_corrupt_memory_is_found_and_never_sent_whole(gate: Gate) -> None:
    await gate.put("key", bytes(3 * MiB))
    await gate.ask_python("GET", "/bucket/key")
    entry = gate.store._index.get("acme", "bucket", "key")
    assert entry is not None
    entry.copies[0].lease.views[-1][-1:] = b"x"
    with pytest.raises((AssertionError, ConnectionError)):
        assert await gate.ask_plane("GET", "/bucket/key") is not None
    async with asyncio.timeout(PATIENCE_S):
        while entry.current:
            await asyncio.sleep(0.01)
    assert gate.sample("kvgate_corrupt_copies_total", tier="host") == 1
    assert len(gate.store.published) == 0


async def test_answers_are_whole_versions_and_never_older_than_the_request(gate: Gate) -> None:
    """While objects are overwritten, deleted and withdrawn, clients in threads read them from the plane."""
    keys = [f"key-{number}" for number in range(3)]
    visible = dict.fromkeys(keys, 0)  # the version that a request which begins now may see at least
    begun = dict.fromkeys(keys, 0)  # and the latest that there may be
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    served = [0, 0]

    def connect() -> socket.socket:
        async def on_loop() -> socket.socket:
            return gate.connect()

        return asyncio.run_coroutine_threadsafe(on_loop(), loop).result(PATIENCE_S)

    def read(reader: int) -> None:
        at = reader
        while not stop.is_set():
            at += 1
            key = keys[at % len(keys)]
            oldest = visible[key]
            with connect() as sock:
                answer = exchange(sock, "GET", f"/bucket/{key}", headers_of("GET", f"/bucket/{key}", {}))
            if answer is not None:
                version = int.from_bytes(answer[1][:4])
                assert answer[1] == version.to_bytes(4) * (len(answer[1]) // 4)
                assert oldest <= version <= begun[key]
                served[reader] += 1

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read, reader) for reader in range(2)]
        try:
            version = 0
            async with asyncio.timeout(PATIENCE_S):
                while version < 150 or min(served) < 100:
                    version += 1
                    key = keys[version % len(keys)]
                    begun[key] = version
                    await gate.put(key, version.to_bytes(4) * (version % 5 * 70_000 + 1))
                    visible[key] = version
                    if version % 7 == 0:
                        await gate.store.delete("acme", "bucket", key)
                    if version % 11 == 0:
                        await gate.store.buckets.set("acme", "bucket", "cors", "{}")
                        assert len(gate.store.published) == 0
                        await gate.store.buckets.set("acme", "bucket", "cors", None)
                    await asyncio.sleep(0.005)
                    assert not any(reader.done() for reader in readers)
        finally:
            stop.set()
            await asyncio.gather(*[asyncio.wrap_future(reader) for reader in readers])
