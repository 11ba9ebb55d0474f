"""The connector and every kind of attention: what is loaded is what would have been computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine_adapters.vllm.engine import LLAMA, MLA, SLIDING, Engine, connector
from tests.engine_adapters.vllm.kept import CHUNK_TOKENS, PATIENT, Kept, check_nothing_is_held
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

CHUNKS = 4
PROMPT_TOKENS = CHUNKS * CHUNK_TOKENS + 5
GROUPS = {LLAMA: 1, MLA: 1, SLIDING: 2}


@pytest.mark.parametrize("model", GROUPS, ids=lambda model: model.name)
def test_loaded_kv_is_what_the_engine_had_itself(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway], model: Path
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    engine = start_engine(model, enable_prefix_caching=True, kv_transfer_config=connector(gateway, **PATIENT))
    tokens = prompt(model.name, PROMPT_TOKENS)
    computed = engine.tell(tokens, max_tokens=12)
    local = engine.tell(tokens, max_tokens=12)
    assert (computed.computed_tokens, local.local_tokens) == (PROMPT_TOKENS, CHUNKS * CHUNK_TOKENS)
    if model is not MLA:  # vLLM's MLA for CPUs rounds differently after a prefix
        assert local.tokens == computed.tokens
    assert set(kept.wait(GROUPS[model] * CHUNKS).values()) == {CHUNKS}

    engine.reset_prefix_cache()
    loaded = engine.tell(tokens, max_tokens=12)
    assert (loaded.local_tokens, loaded.external_tokens) == (0, CHUNKS * CHUNK_TOKENS)
    assert loaded.tokens == local.tokens

    # A part is in the engine's own blocks, up to the middle of a chunk, and the rest comes.
    for local_tokens in (2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS + CHUNK_TOKENS // 2):
        engine.reset_prefix_cache()
        engine.tell(tokens[: local_tokens + 5])
        mixed = engine.tell(tokens, max_tokens=12)
        assert (mixed.local_tokens, mixed.external_tokens) == (local_tokens, CHUNKS * CHUNK_TOKENS - local_tokens)
        if model is not MLA or local_tokens % CHUNK_TOKENS == 0:
            assert mixed.tokens == local.tokens

    # Every token may come, and vLLM computes the last one again; with a window one chunk less comes.
    engine.reset_prefix_cache()
    whole = engine.tell(tokens[: CHUNKS * CHUNK_TOKENS], max_tokens=12)
    assert whole.external_tokens == (CHUNKS - (model is SLIDING)) * CHUNK_TOKENS
    if model is not MLA:
        alone = engine.tell(tokens[: CHUNKS * CHUNK_TOKENS], max_tokens=12, salt="computed")
        assert (whole.tokens, alone.computed_tokens) == (alone.tokens, CHUNKS * CHUNK_TOKENS)
    check_nothing_is_held(engine, kept)


def test_a_window_needs_only_what_the_next_token_sees(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    # Steps much smaller than the prompt: the window's first blocks are gone before the prompt is computed.
    engine = start_engine(SLIDING, max_num_batched_tokens=128, kv_transfer_config=connector(gateway, **PATIENT))
    tokens = prompt("window", 7 * CHUNK_TOKENS + 5)
    computed = engine.tell(tokens, max_tokens=12)
    assert set(kept.wait(2 * 7).values()) == {7}
    (windowed,) = (id for id, manifest in kept.manifests().items() if manifest["layer_set"].startswith("0"))
    (whole,) = (id for id in kept.manifests() if id != windowed)
    keys = {windowed: kept.keys(windowed), whole: kept.keys(whole)}
    assert sorted(keys[whole]) == sorted(keys[windowed]) == [CHUNK_TOKENS * chunk for chunk in range(7)]

    def loaded_without(space: str, *gone: int) -> int:
        """How many chunks are loaded once these chunks of a group are gone."""
        kept.delete(*(keys[space][chunk * CHUNK_TOKENS] for chunk in gone))
        engine.reset_prefix_cache()
        result = engine.tell(tokens, max_tokens=12)
        assert result.tokens == computed.tokens
        return result.external_tokens // CHUNK_TOKENS

    assert loaded_without(whole) == 7
    # The window of 64 tokens ends in the chunk before the next token: no other one is needed.
    assert loaded_without(windowed, 0, 1, 2, 3, 5) == 7
    # Without chunk 6 there is none before it that the window could go on from but 4; the rest is stored again.
    assert loaded_without(windowed, 6) == 5
    assert kept.wait(7 + 3)[windowed] == 3
    assert loaded_without(windowed) == 7
    assert loaded_without(whole, 4) == 0  # that group could go on from 3, but the windows before are gone
    assert set(kept.wait(2 * 7).values()) == {7}
    assert loaded_without(whole) == 7
    check_nothing_is_held(engine, kept)
