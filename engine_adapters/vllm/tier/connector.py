"""vLLM's OffloadingConnector, which lets the tier know what the KV is of."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from engine_adapters.vllm.logs import log_as_vllm
from engine_adapters.vllm.tier.engine import ENGINE, REQUEST, Engine


class KVGateOffloadingConnector(OffloadingConnector):  # type: ignore[misc, unused-ignore]
    """As its base in everything. vLLM tells tiers a model's name and dtype: too little to share KV between engines."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        log_as_vllm()
        token = ENGINE.set(Engine(vllm_config, kv_cache_config))
        try:
            super().__init__(vllm_config, role, kv_cache_config)
        finally:
            ENGINE.reset(token)

    def on_new_request(self, request: Any) -> None:
        """See KVConnectorBase_V1."""
        token = REQUEST.set(request)
        try:
            super().on_new_request(request)
        finally:
            REQUEST.reset(token)
