"""What the tier needs to know of the engine, and vLLM does not hand to tiers: the connector lays it out here."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_CONTENT_HASH = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?")


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
    if any(not _CONTENT_HASH.fullmatch(feature.identifier or "") for feature in request.mm_features or ()):
        return "multimodal uuid"  # the caller's name for an input, which need not be of its content
    return ""
