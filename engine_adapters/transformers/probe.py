"""What a model really puts into its cache, found by running it on a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, DynamicLayer

from kvgate.errors import UnsupportedModel

_PROBE_TOKENS = 6
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class CachedKV:
    """The KV of each layer: K and V of [1, kv_heads, tokens, head_dim] and one dtype, in safetensors names."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str


CACHE_OPTION = (
    "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
)
"""What models call the cache that they are given; it is `cache` since transformers 5.24."""


def empty_cache(model: Any) -> Any:
    """A DynamicCache for one sequence of `model`. Raises UnsupportedModel unless every layer keeps all its tokens."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise UnsupportedModel(
                f"layer {index} keeps its KV in a {type(layer).__name__}, not in a plain DynamicLayer"
            )
    return cache


def probe(model: Any) -> CachedKV:
    """The shape and dtype of the KV that `model` caches.

    Raises UnsupportedModel when layers differ, when K and V differ, when the dtype has no name, or when the KV of a
    token depends on a token after it.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.arange(_PROBE_TOKENS, device=model.device) % vocabulary
    other = tokens.clone()
    other[-1] = (other[-1] + 1) % vocabulary
    kv, other_kv = _run(model, tokens), _run(model, other)
    first = kv[0][0]
    for index, (keys, values) in enumerate(kv):
        for name, tensor in (("K", keys), ("V", values)):
            if tensor.shape != first.shape or tensor.dtype != first.dtype:
                raise UnsupportedModel(
                    f"{name} of layer {index} is {tensor.dtype} {list(tensor.shape)}, "
                    f"K of layer 0 is {first.dtype} {list(first.shape)}"
                )
    if first.ndim != 4 or first.shape[0] != 1 or first.shape[2] != _PROBE_TOKENS:
        raise UnsupportedModel(f"the KV of {_PROBE_TOKENS} tokens is {list(first.shape)}")
    if first.dtype not in _DTYPES:
        raise UnsupportedModel(f"KV of {first.dtype}; named are {', '.join(_DTYPES.values())}")
    for index, (pair, other_pair) in enumerate(zip(kv, other_kv, strict=True)):
        if not all(map(_same_before_the_last, pair, other_pair)):
            raise UnsupportedModel(f"the KV of layer {index} depends on later tokens; the attention is not causal")
    return CachedKV(len(kv), first.shape[1], first.shape[3], _DTYPES[first.dtype])


def _run(model: Any, tokens: Any) -> list[tuple[Any, Any]]:
    cache = empty_cache(model)
    with torch.no_grad():
        model(input_ids=tokens[None], use_cache=True, **{CACHE_OPTION: cache})
    if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers):
        raise UnsupportedModel("the model does not use the cache that it is given in every layer")
    return [(layer.keys, layer.values) for layer in cache.layers]


def _same_before_the_last(one: Any, other: Any) -> bool:
    one, other = one[:, :, :-1].float(), other[:, :, :-1].float()
    # Not bit for bit: expert routing of the last token may change the order of sums for the others.
    return bool((one - other).abs().max() <= 0.01 * one.abs().max())
