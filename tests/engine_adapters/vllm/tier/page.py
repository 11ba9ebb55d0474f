"""The configurations of docs/vllm-offloading.md: the tests run them as they stand, but for what is of the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.gateways import ALPHA

PAGE = Path(__file__).parents[4] / "docs" / "vllm-offloading.md"
CPU_NBYTES = 64 << 20
BLOCKS_PER_CHUNK = 2


def configuration(heading: str) -> dict[str, Any]:
    """The `--kv-transfer-config` under a heading of the page; on the machine of the tests.

    There, memory is small, and vLLM's CPU build has no worker that copies between GPU and CPU: see cpu_offloading.py.
    """
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    config: dict[str, Any] = json.loads(re.findall(r"^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0])
    extra = config["kv_connector_extra_config"]
    assert extra["spec_name"] == "TieringOffloadingSpec"
    extra["spec_name"] = "CPUTieringOffloadingSpec"
    extra["spec_module_path"] = "tests.engine_adapters.vllm.cpu_offloading"
    extra["cpu_bytes_to_use"] = CPU_NBYTES
    extra["blocks_per_chunk"] = BLOCKS_PER_CHUNK  # the prompts of the tests are short
    return config


def access_to(url: str) -> dict[str, str]:
    """The environment in which the page has vLLM started."""
    return {"KVGATE_URL": url, "AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}


def tier_of(config: dict[str, Any]) -> dict[str, Any]:
    """The one entry of `secondary_tiers`, to be changed."""
    (tier,) = config["kv_connector_extra_config"]["secondary_tiers"]
    return tier
