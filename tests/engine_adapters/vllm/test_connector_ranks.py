"""Engines of several ranks: what they store together is what one rank would have stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import MLA, Engine, connector
from tests.engine_adapters.vllm.kept import CHUNK_TOKENS, PATIENT, Kept, check_nothing_is_held
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

CHUNKS = 4
EXACT: dict[str, Any] = {"dtype": "float32", "enable_prefix_caching": True}


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
