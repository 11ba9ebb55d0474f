"""vLLM alone, as the other tests of this folder run it: what they conclude from its answers holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine_adapters.vllm.engine import (
    BLOCK_TOKENS,
    LLAMA,
    LORA_ONE,
    LORA_TWO,
    MLA,
    SLIDING,
    SMOLLM2,
    Engine,
    Request,
    Server,
)
from tests.engine_adapters.vllm.prompts import prompt

pytestmark = pytest.mark.engine

BLOCKS = 8
PROMPT_TOKENS = BLOCKS * BLOCK_TOKENS + 5


GROUPS = {MLA: {"MLAAttentionSpec"}, SLIDING: {"FullAttentionSpec", "SlidingWindowSpec"}, LLAMA: {"FullAttentionSpec"}}
"""The kinds of attention of which each model has a group of KV caches."""


@pytest.mark.parametrize("model", GROUPS, ids=lambda model: model.name)
def test_tokens_are_the_same_twice_and_follow_from_the_whole_prompt(
    shared_engine: Callable[..., Engine], model: Path
) -> None:
    engine = shared_engine(model)
    tokens = prompt(model.name, PROMPT_TOKENS)
    said = engine.tell(tokens, max_tokens=16)
    assert {group["kind"] for group in engine.groups()} == GROUPS[model]
    assert said.computed_tokens == said.prompt_tokens == PROMPT_TOKENS
    assert len(set(said.tokens)) > 8
    assert engine.tell(tokens, max_tokens=16).tokens == said.tokens
    for place in (0, PROMPT_TOKENS // 2, PROMPT_TOKENS - 1):
        other = [*tokens[:place], tokens[place] + 1, *tokens[place + 1 :]]
        assert engine.tell(other, max_tokens=16).tokens != said.tokens


def test_what_the_engine_has_itself_is_told_and_can_be_forgotten(shared_engine: Callable[..., Engine]) -> None:
    engine = shared_engine(LLAMA)
    tokens = prompt("local", PROMPT_TOKENS)
    before = engine.metrics()["vllm:prefix_cache_hits"]
    first, second = engine.tell(tokens), engine.tell(tokens)
    assert (first.local_tokens, second.local_tokens) == (0, BLOCKS * BLOCK_TOKENS)
    assert second.computed_tokens == PROMPT_TOKENS - BLOCKS * BLOCK_TOKENS
    assert second.tokens == first.tokens
    assert engine.metrics()["vllm:prefix_cache_hits"] - before == BLOCKS * BLOCK_TOKENS
    assert engine.tell(tokens, salt="another").local_tokens == 0
    engine.reset_prefix_cache()
    assert engine.tell(tokens).local_tokens == 0


def test_requests_run_side_by_side_and_give_all_blocks_back(shared_engine: Callable[..., Engine]) -> None:
    engine = shared_engine(LLAMA)
    before = engine.blocks()
    requests = [Request(prompt(("many", seed), 100), max_tokens=8) for seed in range(12)]
    together = engine.generate(requests, concurrency=4)
    assert [result.finish for result in together] == ["length"] * 12
    aborted = engine.tell(prompt("aborted", 100), max_tokens=1000, abort_after=3)
    assert 3 <= len(aborted.tokens) < 1000
    assert engine.blocks() == before == {"total": before["total"], "free": before["total"] - 1, "requests": 0}


def test_adapters_of_one_name_say_different_things(shared_engine: Callable[..., Engine]) -> None:
    engine = shared_engine(LLAMA, enable_lora=True, max_lora_rank=8)
    tokens = prompt("lora", PROMPT_TOKENS)
    said = [engine.tell(tokens, max_tokens=16, lora=lora).tokens for lora in (None, LORA_ONE, LORA_TWO)]
    assert len({tuple(each) for each in said}) == 3


def test_two_ranks_share_the_heads(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine(LLAMA, tensor_parallel_size=2)
    tokens = prompt("ranks", PROMPT_TOKENS)
    first, second = engine.tell(tokens), engine.tell(tokens)
    assert second.tokens == first.tokens
    assert second.local_tokens == BLOCKS * BLOCK_TOKENS
    engine.close()


def test_smollm2_knows_the_capital_of_france(shared_engine: Callable[..., Engine]) -> None:
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert "Paris" in shared_engine(SMOLLM2).tell(chat, max_tokens=12).text


def test_the_server_says_what_the_engine_says(
    start_server: Callable[..., Server], shared_engine: Callable[..., Engine]
) -> None:
    server = start_server(LLAMA)
    tokens = prompt("server", PROMPT_TOKENS)
    said = shared_engine(LLAMA).tell(tokens, max_tokens=8)
    server.wait_until_ready()
    (choice,) = server.complete(tokens, max_tokens=8)["choices"]
    assert choice["token_ids"] == said.tokens
