"""vLLM with its KV in a gateway says what it says without, and computes less."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import (
    LLAMA,
    LORA_ONE,
    LORA_TWO,
    SLIDING,
    SMOLLM2,
    Engine,
    Request,
    Result,
    connector,
)
from tests.engine_adapters.vllm.kept import Kept, check_nothing_is_held, wait_until
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway, default_config

pytestmark = pytest.mark.engine

CHUNK = 64
EXACT: dict[str, Any] = {"dtype": "float32"}
"""In bfloat16 the rounding depends on how many tokens are computed together, so that a tie may end otherwise."""

BUCKETS = ["tiny-llama", "tiny-sliding", "smollm2", "adapters", "busy"]

SHARED = [(0, 300), (128, 50), (200, 100), (300, 10), (500, 77), (512, 0), (64, 1), (63, 2), (640, 33), (1000, 200)]
TWENTY = [prompt("shared", shared) + prompt(number, own) for number, (shared, own) in enumerate(2 * SHARED)]
"""Prompts that begin with so many of the same tokens, and go on with so many of their own."""

DIFFERENT = len({tuple(each[:stop]) for each in TWENTY for stop in range(CHUNK, len(each) + 1, CHUNK)})
"""Their whole chunks, each prefix once."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One for all tests of this file, each with a bucket of its own; on its host it hands its memory out."""
    folder, short = tmp_path_factory.mktemp("gateway"), Path(tempfile.mkdtemp(prefix="kvgate-"))
    config = default_config(folder)
    config["listen"]["shm_socket"] = str(short / "shm")
    config["tenants"]["alpha"]["buckets"] = BUCKETS
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()
    shutil.rmtree(short)


def sharing(gateway: RunningGateway, bucket: str, chunk_tokens: int = CHUNK, **extra: Any) -> dict[str, Any]:
    """The engine's argument with which it keeps its KV in this bucket."""
    return {"kv_transfer_config": connector(gateway, bucket=bucket, chunk_tokens=chunk_tokens, **extra)}


def tokens_of(results: list[Result]) -> list[list[int]]:
    return [result.tokens for result in results]


@pytest.mark.parametrize("model", [LLAMA, SLIDING], ids=lambda model: model.name)
def test_twenty_prompts_say_the_same_here_and_in_a_second_process_that_computes_next_to_nothing(
    shared_engine: Callable[..., Engine], start_engine: Callable[..., Engine], gateway: RunningGateway, model: Path
) -> None:
    bucket, groups = model.name, 2 if model == SLIDING else 1
    requests = [Request(tokens, max_tokens=12) for tokens in TWENTY]
    alone = tokens_of(shared_engine(model, **EXACT).generate(requests))
    first = start_engine(model, **sharing(gateway, bucket), **EXACT)
    assert tokens_of(first.generate(requests, concurrency=4)) == alone
    Kept(gateway, bucket).wait_at_least(groups * DIFFERENT)
    first.close()

    second = start_engine(model, **sharing(gateway, bucket), **EXACT)
    again = second.generate(requests, concurrency=4)
    assert tokens_of(again) == alone
    # One token of a prompt is computed whatever is there; what is not shared is the rest of its last chunk.
    possible = sum(len(tokens) // CHUNK * CHUNK for tokens in TWENTY)
    assert sum(result.external_tokens + result.local_tokens for result in again) >= 0.95 * possible
    assert sum(result.external_tokens for result in again) >= 0.95 * CHUNK * DIFFERENT
    check_nothing_is_held(second, Kept(gateway))


def test_of_two_thousand_tokens_a_second_process_computes_the_last_chunk(
    start_engine: Callable[..., Engine], gateway: RunningGateway
) -> None:
    arguments = sharing(gateway, "smollm2", chunk_tokens=256) | EXACT | {"max_model_len": 2048}
    first = start_engine(SMOLLM2, **arguments)
    story = "Once upon a time there was a lighthouse keeper who counted the ships that passed. " * 200
    tokens = first.tokenize(story)[:2000]
    computed = first.tell(tokens, max_tokens=8)
    assert computed.computed_tokens == 2000
    Kept(gateway, "smollm2").wait_at_least(7)
    first.kill()
    second = start_engine(SMOLLM2, **arguments)
    loaded = second.tell(tokens, max_tokens=8)
    assert (loaded.external_tokens, loaded.computed_tokens) == (7 * 256, 2000 - 7 * 256)
    assert loaded.computed_tokens <= 0.15 * computed.computed_tokens
    assert loaded.text == computed.text


def test_what_one_salt_or_adapter_has_stored_is_nothing_to_another(
    start_engine: Callable[..., Engine], gateway: RunningGateway
) -> None:
    engine = start_engine(LLAMA, **sharing(gateway, "adapters"), **EXACT, enable_lora=True, max_lora_rank=8)
    tokens = prompt("adapters", 4 * CHUNK + 7)
    readers: list[dict[str, Any]] = [{}, {"salt": "red"}, {"salt": "blue"}, {"lora": LORA_ONE}, {"lora": LORA_TWO}]
    said = []
    for count, reader in enumerate(readers, start=1):
        result = engine.tell(tokens, max_tokens=12, **reader)
        assert result.computed_tokens == len(tokens)
        Kept(gateway, "adapters").wait_at_least(4 * count)
        engine.reset_prefix_cache()
        said.append(result.tokens)
    assert said[0] == said[1] == said[2]
    assert len({tuple(each) for each in said}) == 3
    for reader, before in zip(readers, said, strict=True):
        engine.reset_prefix_cache()
        result = engine.tell(tokens, max_tokens=12, **reader)
        assert result.external_tokens == 4 * CHUNK
        assert result.tokens == before


def test_two_hundred_requests_with_preemption_leave_no_lease_and_no_block(
    shared_engine: Callable[..., Engine], start_engine: Callable[..., Engine], gateway: RunningGateway
) -> None:
    requests = [
        Request(prompt(("document", number % 10), 2 * CHUNK) + prompt(("busy", number), 20 + number % 90), 24)
        for number in range(200)
    ]
    alone = tokens_of(shared_engine(LLAMA, **EXACT).generate(requests, concurrency=8))
    engine = start_engine(LLAMA, **sharing(gateway, "busy"), **EXACT, num_gpu_blocks_override=40, max_model_len=1024)
    assert tokens_of(engine.generate(requests, concurrency=8)) == alone
    assert engine.metrics()["vllm:num_preemptions"] > 0
    assert engine.metrics()["vllm:external_prefix_cache_hits"] > 0
    check_nothing_is_held(engine, Kept(gateway))


def test_requests_go_on_while_the_gateway_is_killed_and_comes_back(
    shared_engine: Callable[..., Engine],
    start_engine: Callable[..., Engine],
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    requests = [Request(prompt(("killed", number % 12), 4 * CHUNK + 7), 24) for number in range(48)]
    alone = tokens_of(shared_engine(LLAMA, **EXACT).generate(requests, concurrency=4))
    engine = start_engine(
        LLAMA, **sharing(gateway, "alpha-bucket"), **EXACT, num_gpu_blocks_override=64, max_model_len=1024
    )
    engine.wait_until_ready()
    engine.begin(requests, concurrency=4)
    Kept(gateway).wait_at_least(12)
    gateway.kill()
    gateway.start()
    assert tokens_of(engine.end()) == alone

    def is_used_again() -> bool:
        engine.reset_prefix_cache()
        (result,) = engine.generate(requests[:1])
        assert result.tokens == alone[0]
        return result.external_tokens == 4 * CHUNK

    wait_until(is_used_again, "the gateway is used again")
    check_nothing_is_held(engine, Kept(gateway))
