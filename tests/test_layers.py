"""What the gateway loads when it runs. That modules import only from layers below their own, `lint-imports` checks."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENGINE_SIDE = ["cupy", "torch", "transformers", "numpy", "safetensors", "boto3", "botocore"]


@pytest.mark.parametrize(
    "module", ["kvgate.server.gateway", "kvgate.tiers.gpu", "kvgate.client.sync", "kvgate.client.aio"]
)
def test_neither_gateway_nor_client_loads_an_engine_even_where_one_is_installed(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(ENGINE_SIDE) & set(answer.stdout.split())


def test_the_blocking_client_needs_no_event_loop() -> None:
    code = "import sys, kvgate.client.sync; print(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"aiohttp", "kvgate.server", "kvgate.s3"} & set(answer.stdout.split())
