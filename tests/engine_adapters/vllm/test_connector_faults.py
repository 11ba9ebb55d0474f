"""vLLM with a gateway that corrupts, is slow or is full says what it says alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_adapters.tcp_proxy import Proxy, flip_late, slowly
from tests.engine_adapters.vllm.engine import LLAMA, Engine, Request, connector
from tests.engine_adapters.vllm.kept import Kept, check_nothing_is_held, wait_until
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import ALPHA, BETA, RunningGateway

pytestmark = pytest.mark.engine

CHUNK = 64
CHUNKS = 4
REQUESTS = [Request(prompt(("faults", number), CHUNKS * CHUNK + 7), 12) for number in range(4)]
ENGINE: dict[str, Any] = {"dtype": "float32", "num_gpu_blocks_override": 64, "max_model_len": 1024}


@pytest.fixture(scope="module")
def alone(shared_engine: Callable[..., Engine]) -> list[list[int]]:
    """What an engine without a gateway says."""
    return [result.tokens for result in shared_engine(LLAMA, **ENGINE).generate(REQUESTS)]


def test_kv_that_comes_corrupted_or_late_is_computed(
    alone: list[list[int]], start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    spoiled = 0

    def spoiling(spoil: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def answer(piece: bytes) -> bytes:
            nonlocal spoiled
            spoiled += len(piece) >= 4096  # chunks, not other answers
            return spoil(piece)

        return answer

    with Proxy(gateway.port) as proxy:
        config = connector(gateway, url=proxy.url, chunk_tokens=CHUNK, load_deadline=2)
        engine = start_engine(LLAMA, kv_transfer_config=config, **ENGINE)
        assert [result.tokens for result in engine.generate(REQUESTS)] == alone
        Kept(gateway).wait_at_least(CHUNKS * len(REQUESTS))

        def is_used() -> bool:
            engine.reset_prefix_cache()
            results = engine.generate(REQUESTS)
            assert [result.tokens for result in results] == alone
            return all(result.external_tokens == CHUNKS * CHUNK for result in results)

        for spoil in (flip_late, slowly):
            wait_until(is_used, "the gateway is used")
            engine.reset_prefix_cache()
            spoiled, proxy.answer = 0, spoiling(spoil)
            results = engine.generate(REQUESTS, concurrency=2)
            proxy.answer = bytes
            assert [result.tokens for result in results] == alone
            assert spoiled
        wait_until(is_used, "the gateway is used again")
        check_nothing_is_held(engine, Kept(gateway))


def test_what_a_full_gateway_does_not_take_is_computed_again(
    alone: list[list[int]], start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    tenants = {
        "alpha": {"access_keys": [ALPHA.as_config()], "buckets": ["alpha-bucket"], "quota": "64KiB"},
        "beta": {"access_keys": [BETA.as_config()], "buckets": ["beta-bucket"]},
    }
    gateway = start_gateway(tenants=tenants)
    engine = start_engine(LLAMA, kv_transfer_config=connector(gateway, chunk_tokens=CHUNK), **ENGINE)
    for _ in range(2):
        results = engine.generate(REQUESTS, concurrency=2)
        assert [result.tokens for result in results] == alone
        assert not any(result.external_tokens for result in results)
        engine.reset_prefix_cache()
    assert gateway.answered("PutObject") > 0
    assert Kept(gateway).chunks().total() == 0
    check_nothing_is_held(engine, Kept(gateway))
