"""SIGKILL at any moment: no wrong byte afterwards, and with `ack: disk` nothing that was acknowledged is lost."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest

from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.gateways import ALPHA, RunningGateway
from tests.wire import signed_head

KILLS = 50
KEYS = 12
BUCKET = "alpha-bucket"
SIZES = [0, 100, 4096, 70_000, 1 << 20, 3_000_000]


def body_of(key: int, version: int) -> bytes:
    """What is written as this version of the key; no two versions are alike."""
    seed = hashlib.sha256(f"{key}:{version}".encode()).digest()
    nbytes = SIZES[(key + version) % len(SIZES)]
    return (f"{key}:{version}:".encode() + seed * (nbytes // 32 + 1))[: max(nbytes, 32)]


def version_of(key: int, body: bytes) -> int:
    version = int(body.split(b":", 2)[1])
    assert body == body_of(key, version), f"key {key} holds bytes that were never written"
    return version


class Writers:
    """Threads that overwrite keys of their own until the gateway dies under them."""

    def __init__(self, url: str, acknowledged: list[int], attempted: list[int]) -> None:
        self.url, self.acknowledged, self.attempted = url, acknowledged, attempted
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(first,)) for first in range(3)]
        for thread in self.threads:
            thread.start()

    def write(self, first: int) -> None:
        with Client(self.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=5) as client:
            while not self.stopped.is_set():
                for key in range(first, KEYS, 3):
                    self.attempted[key] += 1
                    version = self.attempted[key]
                    try:
                        client.put(BUCKET, f"key-{key}", [memoryview(body_of(key, version))])
                    except GatewayError:
                        return
                    self.acknowledged[key] = version

    def join(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def verify(gateway: RunningGateway, acknowledged: list[int], attempted: list[int], *, durable: bool) -> int:
    present = 0
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=10) as client:
        listed = {entry.key for entry in client.list(BUCKET)}
        for key in range(KEYS):
            if f"key-{key}" not in listed:
                assert not durable or acknowledged[key] == 0, f"key {key} was acknowledged and is lost"
                continue
            body = client.get(BUCKET, f"key-{key}").body
            assert body is not None, f"key {key} is listed and cannot be read"
            version = version_of(key, body)
            present += 1
            assert version <= attempted[key]
            if durable:
                assert version >= acknowledged[key], f"key {key} fell back behind an acknowledged version"
    return present


@pytest.mark.parametrize(("ack", "kills"), [("disk", KILLS), ("memory", 10)])
def test_kill_at_random_moments(start_gateway: Callable[..., RunningGateway], ack: str, kills: int) -> None:
    gateway = start_gateway(store={"ack": ack}, tiers={"host": {"capacity": "8MiB"}})
    acknowledged, attempted = [0] * KEYS, [0] * KEYS
    choose = random.Random(20261122)
    present = 0
    for _ in range(kills):
        writers = Writers(gateway.url, acknowledged, attempted)
        time.sleep(choose.uniform(0.02, 0.5))
        gateway.kill()
        writers.join()
        gateway.start()
        present += verify(gateway, acknowledged, attempted, durable=ack == "disk")
    assert present > 0
    assert max(acknowledged) > kills, "the writers got nothing done"
    assert not list((gateway.disk / "tmp").iterdir())


def test_slow_requests_outlive_sigterm(start_gateway: Callable[..., RunningGateway]) -> None:
    """An upload and a download that are half done when the gateway is told to stop come to their end."""
    gateway = start_gateway()
    body = random.Random(1).randbytes(24 << 20)
    half = len(body) // 2
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, "download", [memoryview(body)])
    headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(len(body))}
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as upload:
        upload.sendall(signed_head("PUT", f"/{BUCKET}/upload", headers) + body[:half])
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as download:
            download.sendall(signed_head("GET", f"/{BUCKET}/download", {"host": headers["host"]}))
            answer = download.recv(1000)
            assert gateway.process is not None
            gateway.process.terminate()
            time.sleep(1)
            assert gateway.process.poll() is None, "the gateway did not wait"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", gateway.port))
            upload.sendall(body[half:])
            while piece := download.recv(1 << 20):
                answer += piece
        assert answer.partition(b"\r\n\r\n")[2] == body
        assert upload.recv(1000).startswith(b"HTTP/1.1 200")
    assert gateway.process.wait(timeout=10) == 0
    gateway.start()
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        assert client.get(BUCKET, "upload").body == body


def test_drain_cuts_no_request_and_writes_what_is_only_in_memory(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    acknowledged, attempted = [0] * KEYS, [0] * KEYS
    for _ in range(5):
        writers = Writers(gateway.url, acknowledged, attempted)
        time.sleep(0.3)
        began = time.monotonic()
        status = gateway.stop()
        writers.join()
        assert status == 0
        assert time.monotonic() - began < 4, "a request was cut, and its writer waited for its deadline"
        gateway.start()
        verify(gateway, acknowledged, attempted, durable=True)
    assert min(acknowledged) > 0
