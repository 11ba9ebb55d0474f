"""The digest of a model's weights, and a cheap sign that they may have changed."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from engine_adapters.transformers.lora import active_adapters, adapter_tensors, base_name, lora_layers
from engine_adapters.transformers.tensor_digest import tensor_digest

_NOT_ARITHMETIC = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"}
)
"""Configuration keys that cannot change a KV value. Every other key counts, known or not."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Two numbers that change when the weights, or the active LoRA adapters, may have changed."""

    weights: int
    lora: int


def fingerprint(model: Any) -> Fingerprint:
    """The fingerprint of `model` now, in milliseconds: it looks at where tensors lie and their versions, not at bytes.

    Seen: tensors replaced or written in place, and adapters that are loaded, switched, scaled or disabled. Not seen:
    writes through `tensor.data`, hooks, and modules whose code was replaced.
    Raises UnsupportedModel for a model that peft has changed in another way than by LoRA.
    """
    layers = lora_layers(model)
    of_adapters = {id(tensor) for _, layer in layers for _, tensor in adapter_tensors(layer)}
    base = [tensor for tensor in chain(model.parameters(), model.buffers()) if id(tensor) not in of_adapters]
    active = [
        (name, layer.scaling[adapter], [_state(tensor) for _, tensor in adapter_tensors(layer, adapter)])
        for name, layer in layers
        for adapter in active_adapters(layer)
    ]
    return Fingerprint(hash((model.training, *map(_state, base))), hash(repr(active)))


def weights_digest(model: Any) -> str:
    """sha256 over the configuration and every tensor of the state dict, without LoRA adapters: 64 hex digits.

    The configuration counts because constants of the arithmetic (norm epsilons, multipliers, activations) are nowhere
    else in a space. A checkpoint's commit hash would be cheaper, but is not safe: it stays the same when a model is
    trained, resized, quantised or edited after it was loaded.

    Raises UnsupportedModel for a tensor whose bytes cannot be read.
    """
    of_adapters = {id(tensor) for _, layer in lora_layers(model) for _, tensor in adapter_tensors(layer)}
    tensors = {
        base_name(name): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) not in of_adapters
    }
    names = sorted(tensors)
    digest = hashlib.sha256(_arithmetic(model.config))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves the GIL
        parts = threads.map(tensor_digest, names, [tensors[name] for name in names])
        for name, part in zip(names, parts, strict=True):
            digest.update(name.encode() + b"\0" + part)
    return digest.hexdigest()


def _state(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype, -1 if tensor.is_inference() else tensor._version


def _arithmetic(config: Any) -> bytes:
    counted = {name: value for name, value in config.to_dict().items() if name not in _NOT_ARITHMETIC}
    return json.dumps(counted, sort_keys=True, default=repr).encode()
