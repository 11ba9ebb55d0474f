"""Run by vLLM's Python: the table of layouts beside the functions with which vLLM really lays its KV out and reads it.

Prints how many cases agreed; an assertion ends it otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheTensor,
    KVQuantMode,
    MLAAttentionSpec,
    compute_layout_strides,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from engine_adapters.layouts import of_vllm
from engine_adapters.packing import packing_tag
from engine_adapters.paged_copy import SKIP
from engine_adapters.staging import plan
from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError

LAYERS, BLOCKS, HEADS, DIM, TOKENS = 3, 7, 2, 32, 32
IDS = [[5, 0], [2, 6]]
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "F8_E4M3"}


def full(dtype: torch.dtype, **options: Any) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=TOKENS, num_kv_heads=HEADS, head_size=DIM, dtype=dtype, **options)


def mla(dtype: torch.dtype, **options: Any) -> MLAAttentionSpec:
    return MLAAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=DIM, dtype=dtype, **options)


def views(spec: Any, layout: KVCacheLayout, page_tokens: int | None = None) -> list[Any]:
    """What allocate_kv_cache makes for one group, by the strides that get_kv_cache_config gives it."""
    layer_stride, block_stride, _, _, _ = compute_layout_strides(spec, BLOCKS, LAYERS, layout)
    size = BLOCKS * LAYERS * spec.page_size_bytes
    tensor = KVCacheTensor(
        size=size, layers=[str(layer) for layer in range(LAYERS)], layer_stride=layer_stride, block_stride=block_stride
    )
    raw = torch.randint(-128, 128, (size,), dtype=torch.int8)
    return create_kv_cache_views(raw, spec, BLOCKS, layout, tensor, kernel_block_size=page_tokens)


def noise(*shape: int, dtype: torch.dtype) -> Any:
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).view(dtype)


def check(spec: Any, caches: list[Any]) -> None:
    """What the backends' own indexing writes is what is gathered, and what is scattered is what it reads."""
    latent = isinstance(spec, MLAAttentionSpec)
    layout = Layout(LAYERS, 1 if latent else 2, spec.num_kv_heads, 2 * TOKENS, DIM, DTYPES[spec.dtype])
    made = plan(layout, [of_vllm(cache, spec) for cache in caches])
    kv = noise(2, *layout.shape, dtype=spec.dtype)
    write(caches, kv, latent)
    out = torch.zeros((2, made.slice_nbytes), dtype=torch.uint8)
    made.gather(IDS, out)
    assert torch.equal(out, kv.view(torch.uint8).flatten(1)), (spec, caches[0].stride())
    other = noise(2, *layout.shape, dtype=spec.dtype)
    made.scatter(IDS, other.view(torch.uint8).flatten(1))
    storage = torch.tensor([], dtype=torch.uint8).set_(caches[0].untyped_storage())
    found = storage.clone()
    write(caches, other, latent)
    assert torch.equal(found, storage), (spec, caches[0].stride())


def write(caches: list[Any], kv: Any, latent: bool) -> None:
    for chunk, blocks in zip(kv, IDS, strict=True):
        for layer, cache in zip(chunk, caches, strict=True):
            page_tokens = cache.shape[2]
            for token in range(2 * TOKENS):
                slot = blocks[token // TOKENS] * TOKENS + token % TOKENS
                page, offset = divmod(slot, page_tokens)
                if latent:  # CPUMLAImpl and the others: rows of the flat cache
                    cache[page, 0, offset] = layer[0, 0, token]
                else:  # FlashAttentionImpl
                    keys, values = cache.transpose(1, 2).split(DIM, dim=-1)
                    keys[page, offset], values[page, offset] = layer[0, :, token], layer[1, :, token]


def check_cpu(dtype: torch.dtype, page_tokens: int, named: str = "auto") -> None:
    """Attention over blocks that were moved through a chunk is bit for bit the attention over those it computed."""
    isa = _get_attn_isa(dtype, page_tokens, DIM, named)
    spec = full(dtype if named == "auto" else torch.uint8)
    caches = views(spec, KVCacheLayout.LBHNC, page_tokens)
    cache_write = partial(ops.cpu_attn_reshape_and_cache, isa=isa, kv_cache_dtype=named)
    tag = packing_tag(isa, page_tokens, DIM, dtype, spec.dtype, cache_write)
    layout = Layout(LAYERS, 2, HEADS, 2 * TOKENS, DIM, DTYPES[spec.dtype])
    made = plan(layout, [of_vllm(cache, spec, tag) for cache in caches])
    assert made.packing == tag
    ratio = TOKENS // page_tokens
    tokens, query_heads = 2 * TOKENS, 2 * HEADS
    query = torch.randn(tokens, query_heads, DIM).to(dtype)
    halves = [cache.view(cache.shape[0], HEADS, 2 * page_tokens, DIM).chunk(2, dim=2) for cache in caches]
    for layer in halves:
        key, value = torch.randn(2, tokens, HEADS, DIM).to(dtype)
        slots = torch.tensor([IDS[0][token // TOKENS] * TOKENS + token % TOKENS for token in range(tokens)])
        cache_write(key, value, *layer, slots)

    def attend(blocks: list[int]) -> Any:
        lengths, starts = (torch.tensor(each, dtype=torch.int32) for each in ([tokens], [0, tokens]))
        pages = torch.tensor([[block * ratio + page for block in blocks for page in range(ratio)]], dtype=torch.int32)
        metadata = ops.cpu_attn_get_scheduler_metadata(
            1, query_heads, HEADS, DIM, lengths, dtype, starts, True, -1, isa, False, kv_cache_dtype=named
        )
        found = []
        for keys, values in halves:
            out = torch.zeros_like(query)
            ops.cpu_attention_with_kv_cache(
                query,
                keys,
                values,
                out,
                starts,
                lengths,
                DIM**-0.5,
                True,
                None,
                -1,
                pages,
                0.0,
                metadata,
                None,
                kv_cache_dtype=named,
            )
            found.append(out)
        return torch.stack(found)

    before = attend(IDS[0])
    chunk = torch.zeros((1, made.slice_nbytes), dtype=torch.uint8)
    made.gather(IDS[:1], chunk)
    made.scatter([[IDS[1][0], SKIP]], chunk)
    made.scatter([[SKIP, IDS[1][1]]], chunk)
    assert bool(before.any())
    assert torch.equal(attend(IDS[1]), before), (dtype, page_tokens, isa)
    swapped = torch.zeros_like(chunk)
    made.gather([IDS[0][::-1]], swapped)
    assert not torch.equal(swapped, chunk)


def main() -> None:
    cases = 0
    for dtype in DTYPES:
        for layout in KVCacheLayout:
            for spec in (full(dtype), mla(dtype)):
                check(spec, views(spec, layout))
                cases += 1
        for layout in (KVCacheLayout.LBHNC, KVCacheLayout.LBNHC):
            check(full(dtype), views(full(dtype), layout, page_tokens=16))
            padded = full(dtype, page_size_padded=full(dtype).page_size_bytes + 64)
            check(padded, views(padded, layout))
            cases += 2
        padded = mla(dtype, alignment=3 * mla(dtype).page_size_bytes // 2)
        assert padded.page_size_bytes > padded.unpadded_page_size_bytes
        check(padded, views(padded, KVCacheLayout.LBHNC))
        check(mla(dtype), views(mla(dtype), KVCacheLayout.LBNHC, page_tokens=16))
        cases += 2
    fp8 = replace(full(torch.uint8), kv_quant_mode=KVQuantMode.FP8_PER_TENSOR)
    check(fp8, views(fp8, KVCacheLayout.LBNHC))
    cases += 1
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for page_tokens in (32, 16):
            check_cpu(dtype, page_tokens)
            cases += 1
    if torch.cpu._is_avx512_supported():  # without it vLLM has no fp8 KV on the CPU
        check_cpu(torch.bfloat16, 32, "fp8_e4m3")
        cases += 1
    scaled = full(torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD, state_content_bytes=2 * DIM + 8)
    slots = full(torch.bfloat16, num_head_slots=2, state_content_bytes=HEADS * DIM * 2)
    for refused in (scaled, slots, full(torch.bfloat16, head_size_v=16), full(torch.bfloat16, tokens_per_state=2)):
        cache = views(refused, KVCacheLayout.LBNHC)[0]
        try:
            of_vllm(cache, refused)
        except LayoutError:
            cases += 1
        else:
            raise AssertionError(f"{refused} was accepted")
    print(f"{cases} cases agree")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
