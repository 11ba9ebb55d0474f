from __future__ import annotations

from typing import Any

import pytest

from kvgate.config import build
from kvgate.errors import ConfigError
from kvgate.server.config import GatewayConfig

KEY = {"access_key": "KEY0", "secret_key": "0123456789abcdef"}


def config(**sections: Any) -> GatewayConfig:
    return build(GatewayConfig, {"tenants": {"one": {"access_keys": [KEY]}}, **sections})


def test_memory_is_the_first_tier_whatever_the_file_says(tmp_path: Any) -> None:
    tiers = config(tiers={"disk": {"path": str(tmp_path)}, "host": {"capacity": "2GiB"}}).tier_options()
    assert [tier.name for tier in tiers] == ["host", "disk"]
    assert tiers[0].options.capacity == 2 << 30
    assert [tier.name for tier in config().tier_options()] == ["host"]


def test_two_tiers_of_a_kind_have_names_and_rules_of_their_own(tmp_path: Any) -> None:
    tiers = config(
        tiers={
            "fast": {"kind": "disk", "path": str(tmp_path / "fast"), "write": "through"},
            "slow": {"kind": "disk", "path": str(tmp_path / "slow"), "write": "on-evict", "threads": 2},
        }
    ).tier_options()
    assert [tier.make().name for tier in tiers] == ["host", "fast", "slow"]
    assert [tier.rules.write for tier in tiers] == ["back", "through", "on-evict"]
    assert tiers[2].options.threads == 2


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tenants": {}}, "tenants: expected at least one"),
        ({"tiers": {"dusk": {}}}, "no plug-in 'dusk' in kvgate.tiers; installed: disk, "),
        ({"tiers": {"disk": {"capacity": "1GiB"}}}, "tiers.disk.path: this key is required"),
        ({"tiers": {"host": {"capacty": "1GiB"}}}, "tiers.host.capacty: unknown key; did you mean 'capacity'"),
        ({"tiers": {"Cold": {"kind": "disk", "path": "x"}}}, "tiers.Cold: a tier's name is"),
        ({"tiers": {"ram": {"kind": "host"}}}, "tiers.ram.kind: there is one tier of the kind host"),
        ({"tiers": {"disk": {"path": "x", "write": "late"}}}, "tiers.disk.write: expected"),
        ({"tiers": {"disk": {"path": "x", "writers": 0}}}, "writers: expected 1 to 64"),
        ({"store": {"ack": "disk"}}, "store.ack: `disk` needs a tier below memory"),
        ({"listen": {"port": 9000, "admin_port": 9000}}, "another port"),
        ({"tenants": {"one": {"access_keys": [KEY], "buckets": ["No"]}}}, "tenants.one.buckets: a bucket name is"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key_named(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**sections)
    assert words in str(raised.value)
    assert KEY["secret_key"] not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tiers": {"dusk": {"floor": "1MiB"}}}, "tenants.one.tiers.dusk: expected one of host"),
        ({"tiers": {"host": {"flor": "1MiB"}}}, "tenants.one.tiers.host.flor: unknown key; did you mean 'floor'"),
        ({"tiers": {"host": {"floor": "3GiB"}}}, "tenants.one.tiers.host.floor: 3221225472 bytes together, and"),
        ({"tiers": {"host": {"floor": "9MiB", "limit": "8MiB"}}}, "tiers.host: limit: expected at least the floor"),
        ({"tiers": {"host": {"limit": "1MiB"}}}, "tenants.one.tiers.host: limit: expected at least 4MiB, got 1MiB"),
        ({"tiers": {"host": {"weight": -1}}}, "tenants.one.tiers.host: weight: expected 1e-06 to 1e+06, got -1"),
        ({"weight": 0}, "tenants.one: weight: expected 1e-06 to 1e+06, got 0"),
        ({"rate": {"requests": 0}}, "tenants.one.rate: requests: expected more than 0, got 0"),
        ({"rate": {"request": 5}}, "tenants.one.rate.request: unknown key; did you mean 'requests'"),
        ({"rate": {"burst": "0s"}}, "tenants.one.rate: burst: expected more than 0"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_with_the_key_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(tenants={"one": {"access_keys": [KEY]} | options}, tiers={"host": {"capacity": "2GiB"}})
    assert words in str(raised.value)
