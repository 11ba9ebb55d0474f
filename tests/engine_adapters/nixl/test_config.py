from __future__ import annotations

from typing import Any

import pytest

from engine_adapters.nixl import NixlConfig
from kvgate.config import build
from kvgate.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"host": "worker-7"}, "host must be an IP address, got 'worker-7'"),
        ({"host": "0.0.0.0"}, "the address that others reach"),
        ({"peers": ["10.0.0.1/8"]}, "peers has networks such as 10.0.0.0/16"),
        ({"heartbeat": "3s", "heartbeat_timeout": "5s"}, "at least twice heartbeat, which is 3 s"),
        ({"port": 70000}, "port must be 0 to 65535"),
        ({"max_transfers": 0}, "at least 1"),
        ({"device": "eth0"}, "did you mean 'devices'?"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(NixlConfig, values, "direct")
    assert words in str(raised.value)


def test_only_the_networks_of_peers_may_be_called() -> None:
    config = build(NixlConfig, {"peers": ["10.0.7.0/24", "fd00::/8"]}, "direct")
    assert [config.may_call(host) for host in ("10.0.7.9", "10.0.8.9", "127.0.0.1", "fd00::1", "::1")] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert NixlConfig().may_call("127.0.0.1")
    assert not NixlConfig().may_call("169.254.169.254")
    with pytest.raises(ValueError):
        config.may_call("localhost")
