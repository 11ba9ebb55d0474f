"""Chunk bodies to a DynamicCache, and back."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load

from engine_adapters.transformers import kv_layout
from engine_adapters.transformers.probe import CACHE_OPTION, empty_cache
from engine_adapters.transformers.space import LiveSpace
from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.header import ChunkHeader, check_chunk
from kvgate.chunk.key import ChunkKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.errors import LayoutError
from tests.engine_adapters.tiny import CHUNK_TOKENS, prompt, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.engine

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CHUNKS = 3


def cached(model: Any, tokens: list[int]) -> list[tuple[Any, Any]]:
    cache = empty_cache(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=True, **{CACHE_OPTION: cache})
    return [(layer.keys, layer.values) for layer in cache.layers]


def to_bodies(space: Space, tokens: list[int], layers: list[tuple[Any, Any]]) -> Any:
    chain = [root(space.digest, b"salt")]
    chain += chain_hashes(chain[0], tokens, space.chunk_tokens)
    bodies = torch.empty((len(chain) - 1, DATA_START + space.layout.nbytes), dtype=torch.uint8)
    for index, body in enumerate(bodies):
        first_token = index * space.chunk_tokens
        header = ChunkHeader.encode(space, chain[index + 1], chain[index], first_token)
        body[:DATA_START] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        kv_layout.fill_chunk(body[DATA_START:], space.layout, layers, first_token)
        key = ChunkKey(space.id, chain[index + 1].hex())
        check_chunk(memoryview(body.numpy()), body.nbytes, key, space)
    return bodies


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kv_comes_back_bit_for_bit(dtype: Any) -> None:
    model = tiny_model(dtype=dtype)
    space = LiveSpace(model, tiny_tokenizer(), chunk_tokens=CHUNK_TOKENS).now()
    tokens = prompt(0, CHUNKS * CHUNK_TOKENS + 5)
    layers = cached(model, tokens)
    bodies = to_bodies(space, tokens, layers)

    cache = empty_cache(model)
    kv_layout.fill_cache(cache, space.layout, bodies[:, DATA_START:], model.device)
    bodies.zero_()  # the cache must not look into them any more

    assert len(bodies) == CHUNKS
    assert cache.get_seq_length() == CHUNKS * CHUNK_TOKENS
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        assert torch.equal(bits(layer.keys), bits(keys[:, :, : CHUNKS * CHUNK_TOKENS]))
        assert torch.equal(bits(layer.values), bits(values[:, :, : CHUNKS * CHUNK_TOKENS]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_pattern_survives(dtype: Any) -> None:
    model = tiny_model(dtype=dtype)
    space = LiveSpace(model, tiny_tokenizer(), chunk_tokens=CHUNK_TOKENS).now()
    tokens = prompt(1, CHUNKS * CHUNK_TOKENS)
    noise = torch.randint(0, 256, (2, 2, 1, 2, len(tokens), 16 * dtype.itemsize), dtype=torch.uint8).view(dtype)
    layers = [(keys, values) for keys, values in noise]
    cache = empty_cache(model)
    kv_layout.fill_cache(cache, space.layout, to_bodies(space, tokens, layers)[:, DATA_START:], model.device)
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        assert torch.equal(bits(layer.keys), bits(keys))
        assert torch.equal(bits(layer.values), bits(values))


def test_a_body_opens_with_safetensors() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    space = LiveSpace(model, tiny_tokenizer(), chunk_tokens=CHUNK_TOKENS).now()
    tokens = prompt(2, 2 * CHUNK_TOKENS)
    layers = cached(model, tokens)
    kv = load(bytes(to_bodies(space, tokens, layers)[1].numpy()))["kv"]
    assert kv.shape == (2, 2, 2, CHUNK_TOKENS, 16)
    assert torch.equal(kv[1, 0], layers[1][0][0, :, CHUNK_TOKENS:])
    assert torch.equal(kv[0, 1], layers[0][1][0, :, CHUNK_TOKENS:])


def test_a_filled_cache_goes_on_as_the_computed_one() -> None:
    model = tiny_model()
    space = LiveSpace(model, tiny_tokenizer(), chunk_tokens=CHUNK_TOKENS).now()
    tokens = prompt(3, 2 * CHUNK_TOKENS)
    bodies = to_bodies(space, tokens, cached(model, tokens))
    cache, computed = empty_cache(model), empty_cache(model)
    kv_layout.fill_cache(cache, space.layout, bodies[:, DATA_START:], model.device)
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=True, **{CACHE_OPTION: computed})
        more = torch.tensor([[5, 6, 7]])
        one = model(input_ids=more, use_cache=True, **{CACHE_OPTION: cache}).logits
        other = model(input_ids=more, use_cache=True, **{CACHE_OPTION: computed}).logits
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "shape",
    [(2, 2, 8, 16), (1, 4, 8, 16), (1, 2, 7, 16), (1, 2, 8, 32)],
    ids=["two sequences", "other heads", "too few tokens", "other dimension"],
)
def test_a_cache_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    layout = LiveSpace(tiny_model(), tiny_tokenizer(), chunk_tokens=8).now().layout
    with pytest.raises(LayoutError, match="layer 0"):
        kv_layout.check_cache([(torch.zeros(shape), torch.zeros(shape))] * 2, layout, 8)


def test_a_cache_of_another_dtype_or_depth_is_refused() -> None:
    layout = LiveSpace(tiny_model(), tiny_tokenizer(), chunk_tokens=8).now().layout
    good = (torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8, 16))
    kv_layout.check_cache([good] * 2, layout, 8)
    with pytest.raises(LayoutError, match="3 layers"):
        kv_layout.check_cache([good] * 3, layout, 8)
    with pytest.raises(LayoutError, match="bfloat16"):
        kv_layout.check_cache([(good[0], good[1].bfloat16())] * 2, layout, 8)
