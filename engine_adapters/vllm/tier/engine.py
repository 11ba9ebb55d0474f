"""What the tier needs to know of the engine, and vLLM does not hand to tiers: the connector lays it out here."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from engine_adapters.vllm.multimodal import is_named_by_caller


@dataclass(frozen=True, slots=True)
class Engine:
    """vLLM's VllmConfig and KVCacheConfig."""

    vllm_config: Any
    kv_cache_config: Any


ENGINE: ContextVar[Engine | None] = ContextVar("ENGINE", default=None)
"""Set while the connector makes its tiers."""

REQUEST: ContextVar[Any] = ContextVar("REQUEST", default=None)
"""Set while the connector tells its tiers of a new request."""


@dataclass(frozen=True, slots=True)
class RequestNote:
    """Why the chunks of a request stay out of the gateway; empty when they do not."""

    unshared: str


def why_unshared(request: Any) -> str:
    """What of a request could change its KV without changing vLLM's block hashes; empty when nothing does.

    request: None for one of which nothing is known
    """
    if request is None:
        return "unknown request"
    if request.lora_request is not None:
        return "lora"  # hashed are its name and path, and not what lies there
    if is_named_by_caller(request):
        return "multimodal uuid"
    return ""
