"""The spaces of what vLLM's tiers hold: whole rows of its CPU tier, as opaque bytes.

A row is a chunk of one group of layers: for each worker, the pages of its layers as they lie in its GPU's memory. So
its bytes depend on everything that orders them, and the space says all of it: what the KV is of, in the fields for
that; the rest as a digest in `packing`, whose beginning is for people.
"""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import canonical_format_id
from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed
from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

from engine_adapters.vllm.tier.config import TierConfig
from engine_adapters.vllm.tier.engine import Engine
from engine_adapters.vllm.tier.traffic import GroupSpace
from kvgate.chunk.space import EXTENDED_LAYOUT_VERSION, VLLM_SHA256, VLLM_SHA256_CBOR, Space
from kvgate.errors import UnsupportedModel

_SCHEMES = {"sha256_cbor": VLLM_SHA256_CBOR, "sha256": VLLM_SHA256}
_MAX_HEAD_DIM = 1 << 16


def hash_scheme(algorithm: str) -> str:
    """The scheme of vLLM's block hashes. Raises UnsupportedModel for hashes that can collide."""
    if algorithm not in _SCHEMES:
        raise UnsupportedModel(
            f"prefix_caching_hash_algo is {algorithm}: its hashes can be equal for different prompts, whose KV would "
            "then be mixed up in the shared cache; set it to sha256_cbor (--prefix-caching-hash-algo sha256_cbor)"
        )
    return _SCHEMES[algorithm]


def group_spaces(engine: Engine, offloading: Any, row_nbytes: int, config: TierConfig) -> dict[int, GroupSpace]:
    """The space of each of vLLM's groups of layers, by its index.

    offloading: vLLM's OffloadingConfig
    row_nbytes: of vLLM's CPU tier
    Raises UnsupportedModel and InvalidManifest.
    """
    cache = engine.vllm_config.cache_config
    scheme = hash_scheme(cache.prefix_caching_hash_algo)
    if getattr(cache, "calculate_kv_scales", False):
        raise UnsupportedModel(
            "calculate_kv_scales takes the scales of fp8 KV from the first prompt, so that no name covers them; "
            "kvgate cannot share the KV of this engine"
        )
    seed = resolve_none_hash_seed(get_hash_fn_by_name(cache.prefix_caching_hash_algo))
    identity = model_identity(engine.vllm_config, config)
    common = _what_orders_the_bytes(engine.vllm_config, offloading) | {
        "seed": hashlib.sha256(seed.encode()).hexdigest()
    }
    spaces = {}
    for group in offloading.groups:
        spec = engine.kv_cache_config.kv_cache_groups[group.group_id].kv_cache_spec
        told = common | {"group": group.group_id, "layers": list(group.layer_names), "spec": repr(spec)}
        digest = hashlib.sha256(rfc8785.dumps(told)).hexdigest()
        chunk_tokens = group.tokens_per_block * offloading.cache.blocks_per_chunk
        layers, head_dim = _opaque_shape(row_nbytes, chunk_tokens)
        space = Space(
            **identity,
            dtype="U8",
            layers=layers,
            kv_heads=1,
            head_dim=head_dim,
            attention="mla",
            lora="none",
            chunk_tokens=chunk_tokens,
            hash_scheme=scheme,
            layout_version=EXTENDED_LAYOUT_VERSION,
            packing=f"vllm-offload-tp{offloading.parallel.tp_size}-g{group.group_id}-{digest}",
        )
        spaces[group.group_id] = GroupSpace(space, isinstance(spec, FullAttentionSpec | UniformTypeKVCacheSpecs))
    return spaces


def _what_orders_the_bytes(vllm_config: Any, offloading: Any) -> dict[str, Any]:
    parallel, attention = offloading.parallel, vllm_config.attention_config
    return {
        "vllm": vllm.__version__,
        "device": f"{current_platform.device_name} {current_platform.get_device_name()}",
        "attention": str(getattr(attention, "backend", None)),
        "layout": str(offloading.kv_cache_layout),
        "canonical": canonical_format_id(offloading.kv_cache_layout) if offloading.canonical_layout else None,
        "replicated": offloading.replicated_layout,
        "dtype": offloading.model.dtype,
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "world": parallel.world_size,
        "tp": parallel.tp_size,
        "pp": parallel.pp_size,
        "pcp": parallel.pcp_size,
        "dcp": parallel.dcp_size,
        "tokens_per_hash": offloading.cache.tokens_per_hash,
        "blocks_per_chunk": offloading.cache.blocks_per_chunk,
        "groups": [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in offloading.groups],
    }


def _opaque_shape(row_nbytes: int, chunk_tokens: int) -> tuple[int, int]:
    """`layers` and `head_dim` that make `row_nbytes` of a chunk's bytes; nobody reads more into them."""
    token_nbytes, rest = divmod(row_nbytes, chunk_tokens)
    for layers in range(1, 4097):
        if not rest and not token_nbytes % layers and token_nbytes // layers <= _MAX_HEAD_DIM:
            return layers, token_nbytes // layers
    raise UnsupportedModel(
        f"a chunk of vLLM's CPU tier has {row_nbytes} bytes, which {chunk_tokens} tokens do not divide; set "
        "blocks_per_chunk in kv_connector_extra_config so that they do, a power of two for example"
    )


def model_identity(vllm_config: Any, config: TierConfig) -> dict[str, Any]:
    """TEMP"""
    if not config.weights:
        raise UnsupportedModel("weights")
    return {
        "model": config.model_name or vllm_config.model_config.model,
        "weights": config.weights,
        "tokenizer": "0" * 64,
        "rope": {},
        "multimodal": "none",
    }
