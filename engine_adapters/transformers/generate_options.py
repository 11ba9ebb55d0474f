"""Which options of `generate` leave the KV what the chain hash says it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from kvgate.errors import UnsupportedModel

_BESIDE_THE_CONFIG = frozenset(
    {"generation_config", "logits_processor", "stopping_criteria", "streamer", "prefix_allowed_tokens_fn", "tokenizer"}
)
_ACCEPTED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "token_healing": (False,),
    "use_cache": (True,),
    "cache_implementation": (),
}
"""Settings that decide how many sequences there are, how they are decoded, and in which cache; and what, beside None,
means one sequence, decoded one token after the other in the cache that it is given."""


def check_options(options: Mapping[str, Any], defaults: Any) -> None:
    """Accept options that decode one sequence from its tokens alone, in the cache that they are given.

    defaults: the model's own GenerationConfig
    Raises UnsupportedModel naming the first option that does not: model inputs beside the tokens (images, embeddings,
    masks, positions), beams, another cache, and whatever is unknown.
    """
    known = vars(GenerationConfig())
    for name in options:
        if name not in known and name not in _BESIDE_THE_CONFIG:
            raise UnsupportedModel(f"generate({name}=…): its effect on the KV is not in the chain hash")
    for name, accepted in _ACCEPTED.items():
        given = (
            options.get(name),
            getattr(options.get("generation_config"), name, None),
            getattr(defaults, name, None),
        )
        value = next((value for value in given if value is not None), None)
        if value is not None and value not in accepted:
            raise UnsupportedModel(f"generate({name}={value}): KV is cached for one plainly decoded sequence only")
