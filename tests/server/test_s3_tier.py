"""Gateways that share a bucket of an S3 store: what one has written the others serve, whoever dies."""

from __future__ import annotations

import json
import os
import time
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.chunks import SPACE, chunk
from tests.gateways import ALPHA, RunningGateway
from tests.stores import Seaweed, Store

BUCKET = "alpha-bucket"
MANIFEST = f"kv/{SPACE.id}/manifest.json"


def foreign_key(number: int) -> str:
    """A key of another KV system: its object may be of any length and lies in shared tiers."""
    return f"model@1@0@{number:064x}@half"


def tiers(store: Store, prefix: str, **options: Any) -> dict[str, Any]:
    s3 = {
        "bucket": store.bucket,
        "endpoint": store.endpoint,
        "prefix": prefix,
        "access_key": store.access_key,
        "secret_key": store.secret_key,
    }
    return {"host": {"capacity": "256MiB", "prefault": "32MiB"}, "s3": s3 | options}


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def start(start_gateway: Callable[..., RunningGateway]) -> Callable[..., RunningGateway]:
    """Start a gateway with memory and the S3 tier."""

    def begin(store: Store, prefix: str, **options: Any) -> RunningGateway:
        gateway = start_gateway()
        gateway.stop()
        gateway.config["tiers"] = tiers(store, prefix, **options)
        return gateway.start()

    return begin


def client_of(gateway: RunningGateway) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key)


def until(reached: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(gateway: RunningGateway) -> str:
    """Of the S3 tier."""
    with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=5) as answer:
        return str(json.loads(answer.read())["tiers"]["s3"]["state"])


def test_what_one_gateway_wrote_another_reads(
    seaweed: Seaweed, prefix: str, start: Callable[..., RunningGateway]
) -> None:
    bodies = {foreign_key(number): os.urandom(nbytes) for number, nbytes in enumerate((0, 1000, 20 << 20))}
    bodies |= {MANIFEST: SPACE.canonical_json()} | dict(chunk(number) for number in range(3))
    one = start(seaweed.store, prefix, write="through")
    with client_of(one) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    one.kill()
    two = start(seaweed.store, prefix)
    with client_of(two) as client:
        for key, body in bodies.items():
            assert client.get(BUCKET, key).body == body
        with pytest.raises(GatewayError) as raised:
            client.get(BUCKET, foreign_key(99))
        assert raised.value.status == 404
    one.start()  # with nothing in memory
    with client_of(one) as client:
        for key, body in bodies.items():
            assert client.get(BUCKET, key).body == body


def test_gateways_stand_before_one_another(
    seaweed: Seaweed, prefix: str, start: Callable[..., RunningGateway], gateway: RunningGateway
) -> None:
    """A gateway whose S3 store is a gateway."""
    behind = Store(gateway.url, "shared-name", ALPHA.access_key, ALPHA.secret_key)
    body = os.urandom(3 << 20)
    one = start(behind, prefix, write="through")
    with client_of(one) as client:
        client.put(BUCKET, foreign_key(1), body)
    one.restart()
    with client_of(one) as client:
        assert client.get(BUCKET, foreign_key(1)).body == body


def test_store_that_dies_takes_nothing_along(
    prefix: str, start: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Seaweed(tmp_path_factory.mktemp("mortal"))
    server.start()
    try:
        gateway = start(server.store, prefix)
        bodies = {foreign_key(number): os.urandom(100_000) for number in range(8)}
        keys = list(bodies)
        with client_of(gateway) as client:
            for key in keys[:4]:
                client.put(BUCKET, key, bodies[key])
            server.kill()
            for key in keys[4:]:
                client.put(BUCKET, key, bodies[key])
            for key, body in bodies.items():
                assert client.get(BUCKET, key).body == body
            with pytest.raises(GatewayError) as raised:
                client.get(BUCKET, foreign_key(99))
            assert raised.value.status == 404
            until(lambda: state(gateway) == "away")
        server.start()
        s3 = server.store.boto3()

        def stored() -> int:
            return int(s3.list_objects_v2(Bucket=server.store.bucket, Prefix=f"{prefix}/alpha/")["KeyCount"])

        until(lambda: stored() == len(bodies), within_s=60)
        assert state(gateway) == "ready"
        gateway.restart()
        with client_of(gateway) as client:
            for key, body in bodies.items():
                assert client.get(BUCKET, key).body == body
    finally:
        server.kill()
