"""Engines of several ranks: what they store together is what one rank would have stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import LLAMA, MLA, Engine, connector
from tests.engine_adapters.vllm.kept import CHUNK_TOKENS, PATIENT, Kept, check_nothing_is_held
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

CHUNKS = 4
EXACT: dict[str, Any] = {"dtype": "float32"}


@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        (MLA, {"tensor_parallel_size": 2}),
        (LLAMA, {"pipeline_parallel_size": 2}),
        (LLAMA, {"tensor_parallel_size": 2, "load": "layerwise"}),
    ],
    ids=["latent", "pipeline", "layerwise"],
)
def test_ranks_share_chunks_with_an_engine_of_one(
    start_engine: Callable[..., Engine],
    start_gateway: Callable[..., RunningGateway],
    model: Path,
    ranks: dict[str, Any],
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    loads = {"load": ranks.pop("load", "async"), "layers_at_once": 1}
    shared = {"kv_transfer_config": connector(gateway, **PATIENT, **loads), **EXACT}
    several = start_engine(model, **shared, **ranks)
    tokens = prompt((model.name, str(ranks)), CHUNKS * CHUNK_TOKENS + 5)
    computed = several.tell(tokens, max_tokens=8)
    assert computed.external_tokens == 0
    assert list(kept.wait(CHUNKS).values()) == [CHUNKS]
    several.reset_prefix_cache()
    loaded = several.tell(tokens, max_tokens=8)
    assert (loaded.external_tokens, loaded.tokens) == (CHUNKS * CHUNK_TOKENS, computed.tokens)
    check_nothing_is_held(several, kept)
    several.close()

    one = start_engine(model, **shared)
    alone = one.tell(tokens, max_tokens=8)
    assert (alone.external_tokens, alone.tokens) == (CHUNKS * CHUNK_TOKENS, computed.tokens)
    assert kept.settle().total() == CHUNKS
