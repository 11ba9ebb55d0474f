"""`tenants` and `stat` without an object, against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.gateways import ALPHA, BETA, RunningGateway

if TYPE_CHECKING:
    from .conftest import Kvgate

MiB = 1 << 20
PAIR = {"AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}
TENANTS: dict[str, Any] = {
    "alpha": {
        "access_keys": [ALPHA.as_config()],
        "buckets": ["bucket"],
        "quota": "64MiB",
        "weight": 3,
        "tiers": {"host": {"floor": "16MiB", "limit": "128MiB"}, "disk": {"weight": 1}},
        "rate": {"requests": 1000, "write_bytes": "1GiB"},
    },
    "beta": {"access_keys": [BETA.as_config()], "buckets": ["bucket"], "salt": "a salt that nobody is to see"},
}


@pytest.fixture
def used(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """A gateway where alpha has 2 MiB, and was refused 64 MiB."""
    gateway = start_gateway(tenants=TENANTS)
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as alpha:
        alpha.put("bucket", "key", bytes(2 * MiB))
        with pytest.raises(GatewayError, match="QuotaExceeded"):
            alpha.put("bucket", "large", bytes(64 * MiB))
    return gateway


def test_the_operator_sees_every_tenant_and_no_secret(kvgate: Kvgate, used: RunningGateway) -> None:
    answer = kvgate("tenants", "--admin-url", used.admin_url)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] == "alpha: 1 object, 2.0 MiB of 64.0 MiB"
    assert lines[1].split() == ["tier", "objects", "bytes", "limit", "floor", "fair", "share", "weight"]
    host = ["host", "1", "2.0", "MiB", "128.0", "MiB", "16.0", "MiB", "128.0", "MiB", "3"]
    assert lines[2].split() == host, "three parts of four are more than its limit"
    assert lines[4] == "  a second: 1000 requests, 1.0 GiB writes"
    assert lines[5] == "  refused since the gateway started: 1 by quota"
    assert lines[6] == "beta: 0 objects, 0 B"
    document = kvgate("tenants", "--json", "--admin-url", used.admin_url).stdout
    assert json.loads(document)["tenants"]["alpha"]["refused"]["quota"] == 1
    for secret in (ALPHA.secret_key, BETA.secret_key, "nobody is to see"):
        assert secret not in answer.stdout + document


def test_one_tenant_can_be_asked_for(kvgate: Kvgate, used: RunningGateway) -> None:
    answer = kvgate("tenants", "beta", env={"KVGATE_ADMIN_URL": used.admin_url})
    assert answer.stdout.splitlines()[0] == "beta: 0 objects, 0 B"
    assert "alpha" not in answer.stdout
    answer = kvgate("tenants", "gamma", env={"KVGATE_ADMIN_URL": used.admin_url})
    assert (answer.returncode, "alpha, beta" in answer.stderr) == (2, True)


def test_a_tenant_sees_its_own(kvgate: Kvgate, used: RunningGateway) -> None:
    answer = kvgate("stat", env=PAIR | {"KVGATE_URL": used.url})
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0] == "alpha: 1 object, 2.0 MiB of 64.0 MiB"
    assert "beta" not in answer.stdout
    stats = json.loads(kvgate("stat", "--json", env=PAIR | {"KVGATE_URL": used.url}).stdout)
    assert stats["tiers"]["host"]["limit_nbytes"] == 128 * MiB
    assert stats["tiers"]["disk"]["weight"] == 1
    assert stats["rates"] == {"requests": 1000, "read_bytes": None, "write_bytes": 1 << 30}
    assert stats["refused"]["quota"] == 1


def test_metrics_name_no_tenant(used: RunningGateway) -> None:
    samples = used.metrics()
    assert samples['kvgate_refusals_total{reason="quota"}'] == 1
    assert not any("alpha" in name or "beta" in name for name in samples)
