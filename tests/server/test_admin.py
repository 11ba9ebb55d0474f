"""The operator's listener."""

from __future__ import annotations

import json
import urllib.request

from tests.gateways import RunningGateway


def test_readyz_names_the_tiers(gateway: RunningGateway) -> None:
    with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=10) as answer:
        assert json.load(answer) == {"ready": True, "tiers": {"host": {"state": "ready"}, "disk": {"state": "ready"}}}
