"""The rates of a tenant hold for shared memory as well."""

from __future__ import annotations

from typing import Any

import pytest

from kvgate.client.local import Grant
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from kvgate.http.deadline import Deadline
from tests.gateways import ALPHA, BETA
from tests.server.shm.conftest import Attach, StartShm

BUCKET = "shared-name"


def tenants(**rate: Any) -> dict[str, Any]:
    """Alpha with a rate, beta without."""
    alpha: dict[str, Any] = {"access_keys": [ALPHA.as_config()], "buckets": [BUCKET], "rate": rate}
    return {"alpha": alpha, "beta": {"access_keys": [BETA.as_config()], "buckets": [BUCKET]}}


def test_a_grant_is_paid_for_before_the_next_one(start_shm: StartShm, attach: Attach) -> None:
    gateway = start_shm(tenants=tenants(read_bytes="1KiB"))
    for credential in (ALPHA, BETA):
        with Client(gateway.url, credential.access_key, credential.secret_key) as client:
            client.put(BUCKET, "key", bytes(100_000))
    engine, other = attach(gateway), attach(gateway, BETA)
    found = engine.get(BUCKET, "key", Deadline(10))
    assert isinstance(found, Grant)
    found.release()
    with pytest.raises(GatewayError) as raised:
        engine.get(BUCKET, "key", Deadline(10))
    assert (raised.value.status, raised.value.code) == (503, "SlowDown")
    for _ in range(20):
        found = other.get(BUCKET, "key", Deadline(10))
        assert isinstance(found, Grant)
        found.release()


def test_a_reservation_counts_as_written_bytes(start_shm: StartShm, attach: Attach) -> None:
    gateway = start_shm(tenants=tenants(write_bytes="1KiB"))
    engine = attach(gateway, write=True)
    engine.reserve(BUCKET, "key", 100_000, Deadline(10))
    with pytest.raises(GatewayError) as raised:
        engine.reserve(BUCKET, "other", 4, Deadline(10))
    assert (raised.value.status, raised.value.code) == (503, "SlowDown")


def test_each_frame_is_a_request(start_shm: StartShm, attach: Attach) -> None:
    gateway = start_shm(tenants=tenants(requests=0.01, burst="300s"))
    engine = attach(gateway)
    answers = []
    for _ in range(5):
        try:
            answers.append(engine.get(BUCKET, "none", Deadline(10)))
        except GatewayError as error:
            answers.append(error.code)
    assert answers[3:] == ["SlowDown", "SlowDown"]
    assert "SlowDown" not in answers[:3]
