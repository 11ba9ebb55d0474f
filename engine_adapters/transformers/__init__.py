"""KV reuse for Hugging Face causal language models."""

from engine_adapters.transformers.cache import GenerateResult, KVGateCache, Prefilled
from engine_adapters.transformers.stats import RequestStats, Totals

__all__ = ["GenerateResult", "KVGateCache", "Prefilled", "RequestStats", "Totals"]
