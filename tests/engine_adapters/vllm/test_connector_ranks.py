"""Engines of several ranks: what they store together is what one rank would have stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from tests.engine_adapters.tcp_proxy import Proxy
from tests.engine_adapters.vllm.engine import LLAMA, MLA, Engine, connector
from tests.engine_adapters.vllm.kept import CHUNK_TOKENS, PATIENT, Kept, check_nothing_is_held
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

CHUNKS = 4
EXACT: dict[str, Any] = {"dtype": "float32", "enable_prefix_caching": True}


class Refusing:
    """A proxy's `ask` that spoils what the second rank of two asks for: some layers of all chunks but the first.

    layers: which, as they are asked for; empty for none
    """

    def __init__(self) -> None:
        self.layers, self.first, self.refused = "", b"", 0

    def __call__(self, piece: bytes) -> bytes:
        head, _, body = piece.partition(b"\r\n\r\n")
        if not self.layers or b" /_kv/v1/read " not in head:
            return piece
        asked = msgpack.unpackb(body)
        if (asked["layers"], asked["heads"]) != (self.layers, "2-3") or asked["hashes"].startswith(self.first):
            return piece
        self.refused += 1
        return piece.replace(b" /_kv/v1/read ", b" /_kv/v1/nowhere ", 1)


def test_a_step_of_two_ranks_loads_its_layers_and_what_one_rank_misses_both_compute(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway, refusing = start_gateway(), Refusing()
    kept = Kept(gateway)
    tokens, other = prompt("layers", CHUNKS * CHUNK_TOKENS + 5), prompt("other", 13 * CHUNK_TOKENS)
    with Proxy(gateway.port, ask=refusing) as proxy:
        shared = connector(gateway, **PATIENT, url=proxy.url, load="layerwise", layers_at_once=1)
        few = {"num_gpu_blocks_override": 32, "max_model_len": 896}
        engine = start_engine(LLAMA, kv_transfer_config=shared, tensor_parallel_size=2, **EXACT, **few)
        said = engine.tell(tokens, max_tokens=8).tokens
        ((space, chunks),) = kept.wait(CHUNKS).items()
        assert chunks == CHUNKS
        refusing.first = bytes.fromhex(kept.keys(space)[0].rpartition("/")[2])

        def ask_again() -> int:
            """How many tokens are external, with nothing of theirs in the engine's blocks."""
            engine.reset_prefix_cache()
            engine.tell(other)
            engine.reset_prefix_cache()
            result = engine.tell(tokens, max_tokens=8)
            assert result.tokens == said
            return result.external_tokens

        assert ask_again() == CHUNKS * CHUNK_TOKENS
        for layers in ("1-1", "3-3"):  # of four: those after it do not come either; nobody waits for any after it
            refusing.refused, refusing.layers = 0, layers
            ask_again()
            refusing.layers = ""
            assert refusing.refused
        assert ask_again() == CHUNKS * CHUNK_TOKENS
        check_nothing_is_held(engine, kept)


def test_ranks_of_a_model_with_latent_attention_store_what_they_all_have_once(
    start_engine: Callable[..., Engine],
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    shared = {"kv_transfer_config": connector(gateway, **PATIENT), **EXACT}
    several = start_engine(MLA, **shared, tensor_parallel_size=2)
    tokens = prompt("ranks", CHUNKS * CHUNK_TOKENS + 5)
    computed, local = several.tell(tokens, max_tokens=8), several.tell(tokens, max_tokens=8)
    assert (computed.computed_tokens, local.local_tokens) == (len(tokens), CHUNKS * CHUNK_TOKENS)
    assert list(kept.wait(CHUNKS).values()) == [CHUNKS]
    several.reset_prefix_cache()
    loaded = several.tell(tokens, max_tokens=8)
    assert (loaded.external_tokens, loaded.tokens) == (CHUNKS * CHUNK_TOKENS, local.tokens)
    check_nothing_is_held(several, kept)
    several.close()

    one = start_engine(MLA, **shared)
    # What it says differs: with another number of ranks sums are rounded otherwise.
    assert one.tell(tokens).external_tokens == CHUNKS * CHUNK_TOKENS
    assert kept.settle().total() == CHUNKS
