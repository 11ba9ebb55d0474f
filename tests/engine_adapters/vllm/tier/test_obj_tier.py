"""vLLM's own `obj` tier, over NIXL's plugin for S3, with kvgate as its store: the configuration of the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvgate.chunk.foreign.vllm_obj import VLLMObjParser
from kvgate.client.sync import Client
from tests.engine_adapters.vllm.engine import BLOCK_TOKENS, LLAMA, Engine
from tests.engine_adapters.vllm.prompts import prompt
from tests.engine_adapters.vllm.tier.page import BLOCKS_PER_CHUNK, access_to, configuration, tier_of
from tests.gateways import ALPHA, RunningGateway

pytestmark = pytest.mark.engine

BUCKET = "alpha-bucket"
CHUNKS = 4
CHUNK_TOKENS = BLOCKS_PER_CHUNK * BLOCK_TOKENS
TOKENS = CHUNKS * CHUNK_TOKENS + 5
STORED_S = 60.0


def start(start_engine: Callable[..., Engine], gateway: RunningGateway) -> Engine:
    config = configuration("vLLM's `obj` tier")
    tier_of(config)["store_config"] |= {"bucket": BUCKET, "endpoint_override": gateway.url}
    environment = access_to(gateway.url) | {"NIXL_TELEMETRY_ENABLE": "y"}
    return start_engine(LLAMA, environment=environment, kv_transfer_config=config)


def objects(gateway: RunningGateway) -> list[Any]:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20) as client:
        return list(client.list(BUCKET))


def test_a_second_engine_says_the_same_from_what_vllm_has_stored_with_no_code_of_ours(
    shared_engine: Callable[..., Engine],
    start_engine: Callable[..., Engine],
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(listen={"exact_ranges": True})
    requests = [prompt(f"obj {n}", TOKENS) for n in range(2)]
    alone = [shared_engine(LLAMA).tell(tokens).tokens for tokens in requests]
    first = start(start_engine, gateway)
    assert [first.tell(tokens).tokens for tokens in requests] == alone
    deadline = time.monotonic() + STORED_S
    while len(found := objects(gateway)) < 2 * CHUNKS:
        assert time.monotonic() < deadline, f"{len(found)} objects are stored"
        first.idle(0.2)
    first.close()

    for entry in found:
        key = VLLMObjParser().parse(entry.key)
        assert key is not None, f"{entry.key} is not read as one of vLLM's"
        assert key.model.endswith(LLAMA.name)
    second = start(start_engine, gateway)
    results = [second.tell(tokens) for tokens in requests]
    assert [result.tokens for result in results] == alone
    assert [result.external_tokens for result in results] == [CHUNKS * CHUNK_TOKENS] * 2
    second.close()
    hits = [
        value
        for name, value in gateway.metrics().items()
        if name.startswith("kvgate_model_requests_total") and LLAMA.name in name and 'result="hit"' in name
    ]
    assert sum(hits) >= 2 * CHUNKS
