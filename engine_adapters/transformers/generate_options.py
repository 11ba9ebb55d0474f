"""Which options of `generate` leave the KV what the chain hash says it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from kvgate.errors import UnsupportedModel

_BESIDE_THE_CONFIG = frozenset(
    {"generation_config", "logits_processor", "stopping_criteria", "streamer", "prefix_allowed_tokens_fn", "tokenizer"}
)
_ONE_SEQUENCE = {"num_beams": 1, "num_return_sequences": 1}
_OWN_CACHE = ("cache_implementation", "prompt_lookup_num_tokens", "token_healing")


def check_options(options: Mapping[str, Any], defaults: Any) -> None:
    """Accept options that decode one sequence from its tokens alone, in the cache that they are given.

    defaults: the model's GenerationConfig
    Raises UnsupportedModel naming the first option that does not: model inputs beside the tokens (images, embeddings,
    masks, positions), beams, another cache, or anything unknown.
    """
    config = options.get("generation_config") or defaults
    known = vars(GenerationConfig())
    for name in options:
        if name not in known and name not in _BESIDE_THE_CONFIG:
            raise UnsupportedModel(f"generate({name}=…): its effect on the KV is not in the chain hash")

    def value(name: str) -> Any:
        given = options.get(name)
        return getattr(config, name, None) if given is None else given

    for name, accepted in _ONE_SEQUENCE.items():
        if value(name) not in (None, accepted):
            raise UnsupportedModel(f"generate({name}={value(name)}): KV is cached for one sequence at a time")
    for name in _OWN_CACHE:
        if value(name):
            raise UnsupportedModel(f"generate({name}={value(name)}): KV is cached in a plain DynamicCache only")
    if options.get("use_cache", getattr(config, "use_cache", None)) is False:
        raise UnsupportedModel("generate(use_cache=False): without a cache there is nothing to reuse")
