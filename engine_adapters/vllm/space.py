"""The spaces of a vLLM engine: one for each group of layers that share a block table.

Everything comes from vLLM's own configuration. What has no name there, or could change KV without changing a name, is
refused: UnsupportedModel says what it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVQuantMode,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from engine_adapters.file_digest import files_digest
from engine_adapters.packing import packing_tag
from engine_adapters.vllm.settings import Settings
from kvgate.chunk.layer_set import ALL_LAYERS, spell_layer_set
from kvgate.chunk.space import HASH_SCHEME, NO_LORA, NO_PACKING, Space, layout_version_of
from kvgate.errors import UnsupportedModel

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.json")
_NOT_WEIGHTS = re.compile(
    r"(tokenizer|special_tokens|added_tokens|vocab|preprocessor|processor|chat_template|generation_config).*"
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "*.tiktoken", "vocab.*", "merges.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_ARITHMETIC = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
_FP8 = {"fp8": "F8_E4M3", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}
_LENGTH_INDEPENDENT_ROPE = frozenset({"default", "linear", "llama3", "yarn", "deepseek_yarn", "mrope"})
_CRYPTOGRAPHIC = frozenset({"sha256", "sha256_cbor"})


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table.

    index:        in vLLM's list of KV cache groups
    layer_names:  in the order in which chunks hold them; with pipeline parallelism only those of this worker
    first_layer:  where the first of `layer_names` lies among the chunk's layers
    block_tokens: tokens a block
    window:       tokens that a token attends to, itself included; None for all
    spec:         vLLM's own description of a layer's KV
    space:        without a LoRA adapter
    """

    index: int
    layer_names: tuple[str, ...]
    first_layer: int
    block_tokens: int
    window: int | None
    spec: Any
    space: Space

    @property
    def layers(self) -> range:
        """The layers of a chunk that this worker holds."""
        return range(self.first_layer, self.first_layer + len(self.layer_names))


def engine_groups(vllm_config: Any, kv_cache_config: Any, settings: Settings) -> tuple[Group, ...]:
    """The groups whose KV is shared, each with its space. Raises UnsupportedModel and InvalidManifest."""
    reason = next(_reasons_against(vllm_config, kv_cache_config), None)
    if reason is not None:
        raise UnsupportedModel(f"kvgate cannot share the KV of this engine: {reason}")
    model_config = vllm_config.model_config
    common = model_fields(vllm_config, settings.model_name, settings.weights) | {
        "chunk_tokens": settings.chunk_tokens,
        "hash_scheme": HASH_SCHEME,
    }
    groups = tuple(
        _group(index, kv_cache_config.kv_cache_groups[index], vllm_config, common)
        for index in kv_cache_config.prefix_cacheable_group_ids
    )
    whole = model_config.get_total_num_hidden_layers()
    if len(groups) == 1 and groups[0].space.layers > whole:
        raise UnsupportedModel("it has layers of a draft model, whose weights are not in the space")
    return groups


def model_fields(vllm_config: Any, model_name: str | None, weights: str | None) -> dict[str, Any]:
    """What a space says of the model itself, without LoRA adapters. Raises UnsupportedModel.

    model_name, weights: from the user; None to find them out, for which all files of the weights are hashed
    """
    model_config = vllm_config.model_config
    return {
        "model": model_name or _model_name(model_config),
        "weights": _with_arithmetic(weights or _weights_id(model_config), vllm_config),
        "tokenizer": _tokenizer_digest(model_config),
        "rope": _rope(model_config),
        "lora": NO_LORA,
        "multimodal": "vllm-mm-hash-v1" if model_config.is_multimodal_model else "none",
    }


def with_lora(space: Space, digest: str) -> Space:
    """The same space with the KV of a LoRA adapter."""
    return space if digest == NO_LORA else Space.from_manifest({**space.manifest(), "lora": digest})


def reasons_against(vllm_config: Any) -> Iterator[str]:
    """Why this engine's KV has no name that other engines could trust, whatever form it is shared in."""
    cache = vllm_config.cache_config
    if vllm_config.model_config.is_encoder_decoder:
        yield "an encoder-decoder; its KV depends on the encoder's input"
    if cache.prefix_caching_hash_algo not in _CRYPTOGRAPHIC:
        yield (
            f"prefix_caching_hash_algo is {cache.prefix_caching_hash_algo}, which can collide and put another prompt's "
            "KV into the shared cache; set it to sha256_cbor"
        )
    if getattr(cache, "calculate_kv_scales", False):
        yield "calculate_kv_scales takes the scales of fp8 KV from the first prompt, so that no name covers them"
    if vllm_config.speculative_config is not None and vllm_config.speculative_config.use_eagle():
        yield "speculative decoding with a draft model that has KV of its own, whose weights are not in the space"


def _reasons_against(vllm_config: Any, kv_cache_config: Any) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism spreads the tokens of a block over ranks"
    yield from reasons_against(vllm_config)
    if len(kv_cache_config.prefix_cacheable_group_ids) > 1 and parallel.pipeline_parallel_size > 1:
        yield "several groups of layers with pipeline parallelism: no worker knows the others' layers"
    if not kv_cache_config.prefix_cacheable_group_ids:
        yield "it has no group of layers whose KV can be cached"
    for group in kv_cache_config.transfer_groups:
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            yield "layers of one group have KV of different shapes"
        elif not isinstance(spec, FullAttentionSpec | SlidingWindowSpec):
            yield f"layers with {type(spec).__name__}; shared are full and sliding-window attention"
        elif spec.kv_quant_mode not in (KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR):
            yield f"its KV is quantised as {spec.kv_quant_mode.name}, with scales beside it"
        elif spec.tokens_per_state != 1:
            yield "one state covers several tokens"
        elif group.is_eagle_group:
            yield "layers of a draft model"


def _group(index: int, group: Any, vllm_config: Any, common: Mapping[str, Any]) -> Group:
    spec, model_config = group.kv_cache_spec, vllm_config.model_config
    numbered = sorted((extract_layer_index(name), name) for name in group.layer_names)
    numbers = [number for number, _ in numbered]
    if len(set(numbers)) < len(numbers):
        raise UnsupportedModel("several attentions have the same layer number; kvgate could not tell them apart")
    whole = model_config.get_total_num_hidden_layers()
    pipelined = vllm_config.parallel_config.pipeline_parallel_size > 1
    if numbers[-1] >= whole:
        raise UnsupportedModel("it has layers of a draft model, whose weights are not in the space")
    own = len(numbers) < whole and not pipelined
    layer_set = spell_layer_set(numbers, whole) if own else ALL_LAYERS
    if pipelined and numbers[-1] - numbers[0] >= len(numbers):
        raise UnsupportedModel("pipeline parallelism, and layers without KV of their own between others")
    packing = packing_of(vllm_config, spec)
    mla = isinstance(spec, MLAAttentionSpec)
    kv_heads = 1 if mla else model_config.get_total_num_kv_heads()
    if not mla and spec.num_kv_heads != max(1, kv_heads // vllm_config.parallel_config.tensor_parallel_size):
        raise UnsupportedModel(f"layers with {spec.num_kv_heads} KV heads a rank, of {kv_heads} that the model tells")
    space = Space(
        **common,
        dtype=_dtype(spec, vllm_config),
        layers=len(numbers) if own else whole,
        kv_heads=kv_heads,
        head_dim=spec.head_size,
        attention="mla" if mla else _attention(model_config, kv_heads),
        layout_version=layout_version_of(common["hash_scheme"], packing, layer_set),
        packing=packing,
        layer_set=layer_set,
    )
    window = spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None
    first_layer = numbers[0] if pipelined else 0
    return Group(index, tuple(name for _, name in numbered), first_layer, spec.block_size, window, spec, space)


def _attention(model_config: Any, kv_heads: int) -> str:
    heads = model_config.model_arch_config.total_num_attention_heads
    if kv_heads == 1 != heads:
        return "mqa"
    return "mha" if kv_heads == heads else "gqa"


def _dtype(spec: AttentionSpec, vllm_config: Any) -> str:
    named = vllm_config.cache_config.cache_dtype
    if named in _FP8:
        return _FP8[named]
    if str(spec.dtype) not in _DTYPES:
        raise UnsupportedModel(f"KV of {spec.dtype} (kv_cache_dtype {named}) has no dtype in a space")
    return _DTYPES[str(spec.dtype)]


def packing_of(vllm_config: Any, spec: AttentionSpec) -> str:
    """How the engine orders the elements of a block on this machine, as a tag for a space."""
    if not current_platform.is_cpu() or isinstance(spec, MLAAttentionSpec):
        return NO_PACKING
    from vllm import _custom_ops as ops  # noqa: PLC0415 - registers the CPU kernels
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: PLC0415 - there is no public way to ask

    cache_dtype = vllm_config.cache_config.cache_dtype
    try:
        isa = _get_attn_isa(vllm_config.model_config.dtype, spec.block_size, spec.head_size, cache_dtype)
    except NotImplementedError as error:
        raise UnsupportedModel(f"vLLM's attention on this CPU: {error}") from error

    def write(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa, 1.0, 1.0, cache_dtype)

    return packing_tag(isa, spec.block_size, spec.head_size, vllm_config.model_config.dtype, spec.dtype, write)


def _model_name(model_config: Any) -> str:
    path = Path(model_config.model)
    return path.resolve().name if path.exists() else str(model_config.model)


def _folder(name: str, revision: str | None) -> Path:
    """Where a model's files lie. Raises UnsupportedModel."""
    path = Path(name)
    if path.exists():
        return path
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for models of the hub

        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise UnsupportedModel(
            f"the files of {name!r} are not found here, so the weights have no name; set weights in "
            "kv_connector_extra_config to their revision or digest"
        ) from error


def _weights_id(model_config: Any) -> str:
    folder = _folder(model_config.model_weights or model_config.model, model_config.revision)
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return f"commit:{folder.name}"
    if folder.is_file():
        return f"sha256:{files_digest([folder])}"
    found = {path for pattern in _WEIGHT_FILES for path in folder.glob(pattern) if not _NOT_WEIGHTS.match(path.name)}
    if not any(path.suffix != ".json" for path in found):
        raise UnsupportedModel(f"no weights in {folder}; set weights in kv_connector_extra_config to name them")
    return f"sha256:{files_digest(found)}"


def _with_arithmetic(weights: str, vllm_config: Any) -> str:
    """The weights' name, with a digest of what else turns them into KV: configuration, precision, quantisation."""
    model_config, load = vllm_config.model_config, vllm_config.load_config
    config = {name: value for name, value in model_config.hf_config.to_dict().items() if name not in _NOT_ARITHMETIC}
    told = [config, str(model_config.dtype), model_config.quantization, str(load.load_format)]
    told.append(model_config.seed if load.load_format == "dummy" else None)
    text = json.dumps(told, sort_keys=True, default=repr)
    return f"{weights}+{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _tokenizer_digest(model_config: Any) -> str:
    if model_config.skip_tokenizer_init:
        return hashlib.sha256(b"no tokenizer").hexdigest()
    folder = _folder(model_config.tokenizer, model_config.tokenizer_revision)
    found = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
    if not found:
        raise UnsupportedModel(f"no tokenizer in {folder} that could be hashed")
    return files_digest(found)


def _rope(model_config: Any) -> dict[str, Any]:
    rope = dict(getattr(model_config.hf_text_config, "rope_parameters", None) or {})
    kinds = {each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, Mapping)}
    if kinds - _LENGTH_INDEPENDENT_ROPE - {None}:
        rope["max_model_len"] = model_config.max_model_len
    return rope
