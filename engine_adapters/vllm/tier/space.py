"""The spaces of what vLLM's tiers hold: whole rows of its CPU tier, as opaque bytes.

A row is a chunk of one group of layers: for each worker, the pages of its layers as they lie in its GPU's memory. So
its bytes depend on everything that orders them, and the space says all of it: what the KV is of, in the fields for
that; the rest as a digest in `packing`, whose beginning is for people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import rfc8785
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import canonical_format_id
from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, UniformTypeKVCacheSpecs

from engine_adapters.vllm.space import model_fields, packing_of, reasons_against
from engine_adapters.vllm.tier.config import TierConfig
from engine_adapters.vllm.tier.engine import Engine
from engine_adapters.vllm.tier.traffic import GroupSpace
from kvgate.chunk.space import EXTENDED_LAYOUT_VERSION, VLLM_SHA256, VLLM_SHA256_CBOR, Space
from kvgate.errors import UnsupportedModel

_SCHEMES = {"sha256_cbor": VLLM_SHA256_CBOR, "sha256": VLLM_SHA256}
_MAX_HEAD_DIM = 1 << 16


def group_spaces(engine: Engine, offloading: Any, row_nbytes: int, config: TierConfig) -> dict[int, GroupSpace]:
    """The space of each of vLLM's groups of layers, by its index.

    offloading: vLLM's OffloadingConfig
    row_nbytes: of vLLM's CPU tier
    Raises UnsupportedModel and InvalidManifest.
    """
    reason = next(_reasons_against(engine, offloading), None)
    if reason is not None:
        raise UnsupportedModel(f"kvgate cannot share the KV of this engine: {reason}")
    algorithm = engine.vllm_config.cache_config.prefix_caching_hash_algo
    seed = resolve_none_hash_seed(get_hash_fn_by_name(algorithm))
    fields = model_fields(engine.vllm_config, config.model_name, config.weights)
    common = _what_orders_the_bytes(engine.vllm_config, offloading) | {
        "seed": hashlib.sha256(seed.encode()).hexdigest()
    }
    spaces = {}
    for group in offloading.groups:
        spec = engine.kv_cache_config.kv_cache_groups[group.group_id].kv_cache_spec
        told = common | {"group": group.group_id, "layers": list(group.layer_names), "spec": repr(spec)}
        if isinstance(spec, AttentionSpec):
            told["packing"] = packing_of(engine.vllm_config, spec)
        digest = hashlib.sha256(rfc8785.dumps(told)).hexdigest()
        chunk_tokens = group.tokens_per_block * offloading.cache.blocks_per_chunk
        layers, head_dim = _opaque_shape(row_nbytes, chunk_tokens)
        space = Space(
            **fields,
            dtype="U8",
            layers=layers,
            kv_heads=1,
            head_dim=head_dim,
            attention="mla",
            chunk_tokens=chunk_tokens,
            hash_scheme=_SCHEMES[algorithm],
            layout_version=EXTENDED_LAYOUT_VERSION,
            packing=f"vllm-offload-tp{offloading.parallel.tp_size}-g{group.group_id}-{digest}",
        )
        spaces[group.group_id] = GroupSpace(space, isinstance(spec, FullAttentionSpec | UniformTypeKVCacheSpecs))
    return spaces


def _reasons_against(engine: Engine, offloading: Any) -> Iterator[str]:
    yield from reasons_against(engine.vllm_config)
    if offloading.kv_cache_layout is None:
        yield "vLLM does not tell the layout of its KV cache"
    if any(engine.kv_cache_config.kv_cache_groups[group.group_id].is_eagle_group for group in offloading.groups):
        yield "layers of a draft model, whose weights are not in the space"


def _what_orders_the_bytes(vllm_config: Any, offloading: Any) -> dict[str, Any]:
    parallel = offloading.parallel
    return {
        "vllm": vllm.__version__,
        "device": current_platform.device_name,
        "layout": offloading.kv_cache_layout,
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
