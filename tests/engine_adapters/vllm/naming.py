"""Names what vLLM's own objects say, without starting an engine: a case a line on stdin, an answer a line on stdout.

A case has `arguments` of EngineArgs and `extra`, the connector's settings, and perhaps:

    set:      attributes of the VllmConfig, by dotted path, that are other than vLLM makes them here
    layers:   which layers the worker has; all by default
    window:   of a second group, which gets every other layer

The answer is the groups' manifests with their ids, or `refused`: why not. A case with `request` is answered with the
chain hashes, in hex, of a Request of those arguments; and with `stored`, numbers of its chunks in the order in which
they are stored, with the numbers of those that the KV events tell of after each. Runs in the environment that
`.ci/vllm` makes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import torch
from vllm import EngineArgs, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

from engine_adapters.vllm.adapters import Adapters
from engine_adapters.vllm.connector import _check
from engine_adapters.vllm.events import StoredEvents
from engine_adapters.vllm.job import SavedChunk
from engine_adapters.vllm.prompt import Chains
from engine_adapters.vllm.settings import read_settings
from engine_adapters.vllm.space import Group, engine_groups, with_lora
from kvgate.chunk.space import Space
from kvgate.errors import KVGateError

SALT = bytes(32)


def cache_config(config: Any, layers: list[int] | None, window: int | None) -> KVCacheConfig:
    """What vLLM makes of a model whose layers all have attention."""
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    numbers = range(model.get_total_num_hidden_layers()) if layers is None else layers
    names = [f"model.layers.{number}.self_attn.attn" for number in numbers]
    shape = {
        "block_size": cache.block_size,
        "num_kv_heads": model.get_num_kv_heads(parallel),
        "head_size": model.get_head_size(),
        "dtype": torch.uint8 if cache.cache_dtype.startswith("fp8") else model.dtype,
    }
    if window is None:
        groups = [KVCacheGroupSpec(names, FullAttentionSpec(**shape))]
    else:
        groups = [
            KVCacheGroupSpec(names[1::2], FullAttentionSpec(**shape)),
            KVCacheGroupSpec(names[::2], SlidingWindowSpec(sliding_window=window, **shape)),
        ]
    return KVCacheConfig(num_blocks=100, kv_cache_tensors=[], kv_cache_groups=groups)


def read(case: dict[str, Any]) -> tuple[KVCacheConfig, list[Group]]:
    """What vLLM would cache, and the connector's groups of it."""
    config = EngineArgs(**case["arguments"]).create_engine_config()
    for path, value in case.get("set", {}).items():
        *owners, name = path.split(".")
        owner = config
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, name, value)
    settings = read_settings({"bucket": "alpha-bucket", "chunk_tokens": 64} | case.get("extra", {}))
    cached = cache_config(config, case.get("layers"), case.get("window"))
    groups = engine_groups(config, cached, settings)
    _check(settings, groups, len(cached.kv_cache_groups) == 1, config)
    return cached, groups


def spaces_of(case: dict[str, Any], groups: list[Group]) -> list[Space]:
    lora = case.get("lora")
    digest = Adapters().digest(LoRARequest("style", 1, lora) if lora else None)
    return [with_lora(group.space, digest) for group in groups]


def request_of(said: dict[str, Any]) -> Request:
    features = [
        MultiModalFeatureSpec(None, "image", name, PlaceholderRange(offset=offset, length=length))
        for name, offset, length in said.get("images", [])
    ]
    lora = said.get("lora")
    return Request(
        "0",
        said["tokens"],
        SamplingParams(max_tokens=1),
        None,
        mm_features=features,
        cache_salt=said.get("salt"),
        lora_request=LoRARequest("style", 1, lora) if lora else None,
        block_hasher=get_request_block_hasher(32, sha256_cbor),
    )


def chains_of(said: dict[str, Any], request: Request, spaces: list[Space]) -> Chains:
    chains = Chains(request, spaces, SALT)
    for stop in said.get("stops", [len(said["tokens"]) // 64]):
        chains.extend(request.all_token_ids, stop)
    return chains


def told_of(order: list[int], cached: KVCacheConfig, group: Group, request: Request, chains: Chains) -> list[list[int]]:
    events = StoredEvents(cached, limit=100)
    parts = []
    for chunk in range(chains.chunks):
        parts.append(SavedChunk(0, chains.hash(0, chunk), chains.hash(0, chunk - 1), chunk * 64, ()))
        events.describe(parts[-1], request, group, 64)
    numbers = {tuple(request.all_token_ids[chunk * 64 : (chunk + 1) * 64]): chunk for chunk in range(chains.chunks)}
    told = []
    for chunk in order:
        events.stored(parts[chunk].hash)
        told.append([numbers[tuple(event.token_ids)] for event in events.take()])
    return told


def answer(case: dict[str, Any]) -> Any:
    try:
        cached, groups = read(case)
        spaces = spaces_of(case, groups)
        if "request" not in case:
            return [space.manifest() | {"id": space.id} for space in spaces]
        request = request_of(case["request"])
        chains = chains_of(case["request"], request, spaces)
        if "stored" in case:
            return told_of(case["stored"], cached, groups[0], request, chains)
        return [[each.hex() for each in chains.hashes(group, range(chains.chunks))] for group in range(len(spaces))]
    except KVGateError as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints is log
    logging.disable(logging.WARNING)
    init_none_hash(sha256_cbor)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)
