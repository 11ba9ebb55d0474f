"""The digest of a model's weights."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from engine_adapters.transformers.lora import LoraLayers, base_name
from engine_adapters.transformers.tensor_digest import tensor_digest

_NOT_ARITHMETIC = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"}
)
"""Configuration keys that cannot change a KV value. Every other key counts, known or not."""


def base_tensors(model: Any, lora: LoraLayers) -> list[Any]:
    """Every parameter and buffer of `model`, without those of LoRA adapters."""
    return [tensor for tensor in chain(model.parameters(), model.buffers()) if not lora.owns(tensor)]


def weights_digest(model: Any, lora: LoraLayers) -> str:
    """sha256 over the configuration and every tensor of the state dict, without LoRA adapters: 64 hex digits.

    The configuration counts because constants of the arithmetic (norm epsilons, multipliers, activations) are nowhere
    else in a space. A checkpoint's commit hash would be cheaper, but is not safe: it stays the same when a model is
    trained, resized, quantised or edited after it was loaded.

    Raises UnsupportedModel for a tensor whose bytes cannot be read.
    """
    state = model.state_dict(keep_vars=True)
    tensors = {base_name(name): tensor for name, tensor in state.items() if not lora.owns(tensor)}
    names = sorted(tensors)
    digest = hashlib.sha256(_arithmetic(model.config))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves the GIL
        parts = threads.map(tensor_digest, names, [tensors[name] for name in names])
        for name, part in zip(names, parts, strict=True):
            digest.update(name.encode() + b"\0" + part)
    return digest.hexdigest()


def _arithmetic(config: Any) -> bytes:
    counted = {name: value for name, value in config.to_dict().items() if name not in _NOT_ARITHMETIC}
    return json.dumps(counted, sort_keys=True, default=repr).encode()
