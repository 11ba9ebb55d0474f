"""KV reuse for Hugging Face causal language models.

with KVGateCache(model, tokenizer, url="http://gateway:9000", bucket="acme") as cache:
    result = cache.generate(document + question, max_new_tokens=64)
    print(result.text, result.stats.reused_tokens, result.stats.ttft_s)
"""

from engine_adapters.transformers.cache import GenerateResult, KVGateCache, Prefilled
from engine_adapters.transformers.stats import RequestStats, Totals

__all__ = ["GenerateResult", "KVGateCache", "Prefilled", "RequestStats", "Totals"]
