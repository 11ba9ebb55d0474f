"""Two gateways, one Redis and one S3 store: what an engine writes through one, another reads through the other."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.chunk.key import ManifestKey
from kvgate.client.sync import Client
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, BETA, Credential, RunningGateway
from tests.stores import Seaweed
from tests.tiers.redis_servers import Server

BUCKET = "shared-name"
PROMPT = 40


class Engine:
    """What an engine's adapter does, through one gateway."""

    def __init__(self, gateway: RunningGateway, credential: Credential = ALPHA) -> None:
        self.client = Client(gateway.url, credential.access_key, credential.secret_key)

    def write(self, prompt: list[tuple[bytes, bytes]]) -> None:
        self.client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        for chunk_hash, body in prompt:
            self.client.put(BUCKET, f"kv/{SPACE.id}/{chunk_hash.hex()}", body)

    def read(self, prompt: list[tuple[bytes, bytes]]) -> int:
        """How many chunks of a prompt are reused. Each that is, is right."""
        hashes = [chunk_hash for chunk_hash, _ in prompt]
        match = self.client.match(BUCKET, SPACE.id, hashes, deadline_s=20)
        reused = match.matched
        buffers = [bytearray(len(body)) for _, body in prompt[:reused]]
        loaded = self.client.load_chunks(BUCKET, SPACE.id, hashes[:reused], [memoryview(each) for each in buffers], 30)
        for arrived, buffer, (_, body) in zip(loaded.arrived, buffers, prompt, strict=False):
            assert not arrived or buffer == body
        return sum(loaded.arrived)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis", "redis-server")
    yield server
    server.kill()


@pytest.fixture
def start_member(
    start_gateway: Callable[..., RunningGateway], redis_server: Server, seaweed: Seaweed, tmp_path: Path
) -> Callable[..., RunningGateway]:
    """Start a gateway with memory, a disk of its own, and the Redis and the S3 store that all members have."""

    def start(**rules: Any) -> RunningGateway:
        gateway = start_gateway()
        gateway.stop()
        store = seaweed.store
        gateway.config["tiers"] |= {
            "redis": {"url": redis_server.url} | rules,
            "s3": {
                "bucket": store.bucket,
                "endpoint": store.endpoint,
                "access_key": store.access_key,
                "secret_key": store.secret_key,
                "prefix": tmp_path.name,
            }
            | rules,
        }
        gateway.config["store"] = {"discovery": {"absent_ttl": "50ms"}}
        return gateway.start()

    return start


def settled(gateway: RunningGateway) -> None:
    """Wait until nothing waits to be written to any tier."""
    deadline = time.monotonic() + 60
    while any(value for name, value in gateway.metrics().items() if name.startswith("kvgate_demotion_queue_objects")):
        assert time.monotonic() < deadline, "objects still wait for a tier"
        time.sleep(0.05)


def discovered(gateway: RunningGateway, tier: str) -> float:
    return gateway.metrics().get(f'kvgate_discovered_objects_total{{tier="{tier}"}}', 0)


def test_engine_reads_through_one_gateway_what_was_written_through_another(
    start_member: Callable[..., RunningGateway],
) -> None:
    a, b = start_member(), start_member()
    prompt = chunks(b"alpha", PROMPT)
    Engine(a).write(prompt)
    settled(a)
    assert Engine(b).read(prompt) == PROMPT
    assert discovered(b, "redis") == PROMPT + 1 or discovered(b, "redis") == PROMPT

    a.kill()
    assert Engine(b).read(prompt) == PROMPT
    more = chunks(b"alpha", PROMPT, seed=1)
    Engine(b).write(more)
    settled(b)

    shutil.rmtree(a.disk)  # it comes back with nothing
    a.start()
    assert Engine(a).read(prompt) == PROMPT
    assert Engine(a).read(more) == PROMPT
    settled(a)
    before = a.metrics()['kvgate_reads_total{tier="host"}']
    assert Engine(a).read(more) == PROMPT
    assert a.metrics()['kvgate_reads_total{tier="host"}'] >= before + PROMPT, "it has warmed from the rest"


def test_prefix_of_a_prompt_is_reused_across_gateways(start_member: Callable[..., RunningGateway]) -> None:
    a, b = start_member(), start_member()
    prompt = chunks(b"alpha", PROMPT)
    Engine(a).write(prompt[:25])
    settled(a)
    assert Engine(b).read(prompt) == 25


def test_other_tenants_find_nothing(start_member: Callable[..., RunningGateway]) -> None:
    a, b = start_member(), start_member()
    prompt = chunks(b"alpha", 5)
    Engine(a).write(prompt)
    settled(a)
    assert Engine(b, BETA).read(prompt) == 0
    assert Engine(b).read(prompt) == 5


def test_gateway_serves_from_what_is_left_when_redis_or_the_store_is_away(
    start_member: Callable[..., RunningGateway], redis_server: Server
) -> None:
    a, b = start_member(failures=1, lookup_timeout="500ms"), start_member(failures=1, lookup_timeout="500ms")
    prompt = chunks(b"alpha", PROMPT)
    Engine(a).write(prompt)
    settled(a)
    redis_server.kill()
    assert Engine(a).read(prompt) == PROMPT
    Engine(b).read(prompt)  # the first lookups may be those that find out
    deadline = time.monotonic() + 20
    while Engine(b).read(prompt) < PROMPT:
        assert time.monotonic() < deadline, "the S3 store alone does not serve"
        time.sleep(0.2)
    assert discovered(b, "s3") >= PROMPT
    with urllib.request.urlopen(f"{b.admin_url}/readyz", timeout=10) as answer:
        assert answer.status == 200
        assert b"redis" in answer.read()


def test_write_that_redis_missed_is_made_up_for_when_it_is_back(
    start_member: Callable[..., RunningGateway], redis_server: Server
) -> None:
    a = start_member(failures=1, retry_after="200ms")
    redis_server.kill()
    prompt = chunks(b"alpha", 10)
    Engine(a).write(prompt)
    assert Engine(a).read(prompt) == 10
    waiting = 'kvgate_demotion_queue_objects{tier="redis"}'
    assert a.metrics()[waiting] == 11
    redis_server.start()
    settled(a)
    assert len(redis_server.all_keys()) >= 11
