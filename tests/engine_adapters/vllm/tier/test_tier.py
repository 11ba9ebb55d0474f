"""kvgate as a tier of vLLM's own offloading, in the real engine, with the configuration of the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from tests.engine_adapters.vllm.engine import (
    BLOCK_TOKENS,
    LLAMA,
    LORA_ONE,
    LORA_TWO,
    MLA,
    SLIDING,
    Engine,
    Request,
    Result,
)
from tests.engine_adapters.vllm.prompts import prompt
from tests.engine_adapters.vllm.tier.page import BLOCKS_PER_CHUNK, access_to, configuration, tier_of
from tests.faults.proxy import Corrupt, FaultProxy
from tests.gateways import ALPHA, RunningGateway

pytestmark = pytest.mark.engine

BUCKET = "alpha-bucket"
CHUNKS = 4
CHUNK_TOKENS = BLOCKS_PER_CHUNK * BLOCK_TOKENS
TOKENS = CHUNKS * CHUNK_TOKENS + 5
STORED_S = 60.0

StartEngine = Callable[..., Engine]


@pytest.fixture
def start_tiered(start_engine: StartEngine) -> StartEngine:
    """Start an engine whose KV goes to the gateway of this URL."""

    def start(url: str, model: Path = LLAMA, options: dict[str, Any] | None = None, **arguments: Any) -> Engine:
        config = configuration("The kvgate tier")
        tier_of(config).update({"bucket": BUCKET} | (options or {}))
        return start_engine(model, environment=access_to(url), **{"kv_transfer_config": config} | arguments)

    return start


def client_of(gateway: RunningGateway) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20)


def chunks_in(gateway: RunningGateway) -> set[str]:
    with client_of(gateway) as client:
        keys = {entry.key for entry in client.list(BUCKET, "kv/")}
    return {key for key in keys if not key.endswith("manifest.json")}


def wait_for_chunks(engine: Engine, gateway: RunningGateway, count: int) -> set[str]:
    """Let the engine step until so many chunks are stored."""
    deadline = time.monotonic() + STORED_S
    while len(found := chunks_in(gateway)) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} chunks are stored"
        engine.idle(0.2)
    return found


def outcomes(engine: Engine, kind: str) -> dict[str, float]:
    """How many chunks were looked up, loaded or stored, by what came of it."""
    return engine.by_outcome(f"vllm:kv_offload_kvgate_{kind}")


def open_leases(gateway: RunningGateway) -> int:
    with client_of(gateway) as client:
        return client.stats().leases


def tokens_of(results: list[Result]) -> list[list[int]]:
    return [result.tokens for result in results]


def test_a_second_engine_says_the_same_from_what_the_first_has_stored(
    shared_engine: StartEngine, start_tiered: StartEngine, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    document = prompt("document", 3 * CHUNK_TOKENS)
    requests = [Request([*document, *prompt(f"question {n}", CHUNK_TOKENS + 3)]) for n in range(4)]
    requests += [Request(prompt(f"alone {n}", TOKENS)) for n in range(2)]
    alone = tokens_of(shared_engine(LLAMA).generate(requests))
    stored = 3 + 4 + 2 * CHUNKS

    first = start_tiered(gateway.url)
    assert tokens_of(first.generate(requests, concurrency=3)) == alone
    assert len(wait_for_chunks(first, gateway, stored)) == stored, "nothing but full chunks of prompts is stored"
    first.close()

    second = start_tiered(gateway.url)
    results = second.generate(requests, concurrency=3)
    assert tokens_of(results) == alone
    possible = sum(len(request.prompt) // CHUNK_TOKENS * CHUNK_TOKENS for request in requests)
    assert sum(result.external_tokens + result.local_tokens for result in results) >= 0.95 * possible
    assert outcomes(second, "loads") == {"loaded": stored}
    assert outcomes(second, "stores").get("stored", 0) == 0
    deadline = time.monotonic() + STORED_S
    while open_leases(gateway):
        assert time.monotonic() < deadline, "a lease was not given back"
        second.idle(0.1)
    second.close()
    (manifest,) = {key.split("/")[1] for key in chunks_in(gateway)}
    with client_of(gateway) as client:
        space = Space.from_canonical_json(client.get(BUCKET, f"kv/{manifest}/manifest.json").body)
    assert (space.dtype, space.chunk_tokens, space.hash_scheme) == ("U8", CHUNK_TOKENS, "vllm-sha256-cbor-v1")
    assert space.packing.startswith("vllm-offload-tp1-g0-")
    assert space.weights.startswith("sha256:")


@pytest.mark.parametrize(
    ("model", "arguments", "groups"),
    [(SLIDING, {}, 2), (MLA, {}, 1), (LLAMA, {"tensor_parallel_size": 2}, 1)],
    ids=["sliding-window", "mla", "two-ranks"],
)
def test_every_kind_of_attention_is_found_again(
    shared_engine: StartEngine,
    start_tiered: StartEngine,
    start_gateway: Callable[..., RunningGateway],
    model: Path,
    arguments: dict[str, Any],
    groups: int,
) -> None:
    gateway = start_gateway()
    tokens = prompt(f"kinds {model.name}", TOKENS)
    alone = shared_engine(model).tell(tokens).tokens
    first = start_tiered(gateway.url, model, **arguments)
    assert first.tell(tokens).tokens == alone
    wait_for_chunks(first, gateway, 1)
    first.reset_prefix_cache()
    again = first.tell(tokens)
    assert again.external_tokens == CHUNKS * CHUNK_TOKENS, "from vLLM's own CPU tier"
    # vLLM's MLA for CPUs rounds otherwise after a prefix, wherever it comes from.
    assert model == MLA or again.tokens == alone
    first.close()
    keys = chunks_in(gateway)
    assert len({key.split("/")[1] for key in keys}) == groups, "each group of layers has a space of its own"
    assert len(keys) >= CHUNKS + groups - 1, "what waits is stored when the engine ends"
    second = start_tiered(gateway.url, model, **arguments)
    result = second.tell(tokens)
    assert result.tokens == again.tokens
    assert result.external_tokens == CHUNKS * CHUNK_TOKENS


def test_requests_outlive_a_gateway_that_is_killed_and_use_it_when_it_is_back(
    shared_engine: StartEngine, start_tiered: StartEngine, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway(store={"ack": "disk"})
    requests = [Request(prompt(f"killed {n}", TOKENS), max_tokens=24) for n in range(8)]
    alone = tokens_of(shared_engine(LLAMA).generate(requests))
    engine = start_tiered(gateway.url)
    engine.generate(requests[:2])
    wait_for_chunks(engine, gateway, 2 * CHUNKS)
    engine.close()

    engine = start_tiered(gateway.url)
    engine.wait_until_ready()
    engine.begin(requests, concurrency=2)
    while gateway.answered("Match") < 2:
        time.sleep(0.01)
    gateway.kill()
    assert tokens_of(engine.end()) == alone
    gateway.start()
    deadline = time.monotonic() + STORED_S
    new = 0
    while not outcomes(engine, "stores").get("stored"):
        assert time.monotonic() < deadline, "the gateway is back, and nothing is stored"
        engine.tell(prompt(f"after {new}", TOKENS))
        engine.idle(0.5)
        new += 1
    engine.close()


def test_chunks_that_come_corrupted_are_computed_again(
    shared_engine: StartEngine, start_tiered: StartEngine, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    tokens = prompt("corrupt", TOKENS)
    alone = shared_engine(LLAMA).tell(tokens).tokens
    first = start_tiered(gateway.url)
    assert first.tell(tokens).tokens == alone
    wait_for_chunks(first, gateway, CHUNKS)
    first.close()
    with FaultProxy(gateway.port) as proxy:
        second = start_tiered(f"http://127.0.0.1:{proxy.port}")
        second.wait_until_ready()
        proxy.fault = Corrupt(at=150_000)
        result = second.tell(tokens)
        assert result.tokens == alone
        assert result.external_tokens < CHUNKS * CHUNK_TOKENS
        assert outcomes(second, "loads")["broken"] >= 1
        second.close()


def test_salts_and_adapters_do_not_meet(
    shared_engine: StartEngine, start_tiered: StartEngine, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    lora = {"enable_lora": True, "max_lora_rank": 8}
    tokens = prompt("salted", TOKENS)
    plain = shared_engine(LLAMA, **lora)
    alone = [plain.tell(tokens, lora=adapter).tokens for adapter in (None, LORA_ONE, LORA_TWO)]
    first = start_tiered(gateway.url, **lora)
    assert first.tell(tokens, lora=LORA_ONE).tokens == alone[1]
    assert first.tell(tokens, salt="one").tokens == alone[0]
    salted = wait_for_chunks(first, gateway, CHUNKS)
    assert len(salted) == CHUNKS, "the adapter's chunks stay out: vLLM's hash has its name, not its weights"
    assert outcomes(first, "stores")["lora"] == CHUNKS
    first.close()
    second = start_tiered(gateway.url, **lora)
    results = [
        second.tell(tokens, lora=LORA_TWO),
        second.tell(tokens, salt="two"),
        second.tell(tokens),
        second.tell(tokens, salt="one"),
    ]
    assert tokens_of(results) == [alone[2], alone[0], alone[0], alone[0]]
    assert [result.external_tokens for result in results] == [0, 0, 0, CHUNKS * CHUNK_TOKENS]
    second.close()


def test_after_a_reset_the_tier_rests_because_weights_may_have_changed(
    start_tiered: StartEngine, start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    engine = start_tiered(gateway.url)
    tokens = prompt("reset", TOKENS)
    said = engine.tell(tokens).tokens
    wait_for_chunks(engine, gateway, CHUNKS)
    engine.reset_prefix_cache(connector=True)
    result = engine.tell(tokens)
    assert (result.tokens, result.external_tokens) == (said, 0)
    assert outcomes(engine, "stores")["reset"] == CHUNKS
    engine.close()


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"prefix_caching_hash_algo": "xxhash"}, "set it to sha256_cbor"),
        ({"connector": "OffloadingConnector"}, "set kv_connector to KVGateOffloadingConnector"),
        ({"options": {"buckett": "b"}}, "unknown key; "),
    ],
    ids=["hashes-that-collide", "vllms-own-connector", "misspelt-option"],
)
def test_engines_whose_kv_has_no_safe_name_are_refused_with_the_mend(
    start_tiered: StartEngine,
    start_gateway: Callable[..., RunningGateway],
    changes: dict[str, Any],
    mend: str,
) -> None:
    changes = dict(changes)
    if connector := changes.pop("connector", None):
        config = configuration("The kvgate tier")
        config["kv_connector"] = connector
        del config["kv_connector_module_path"]
        tier_of(config)["bucket"] = BUCKET
        changes["kv_transfer_config"] = config
    engine = start_tiered("http://127.0.0.1:1", **changes)
    with pytest.raises(AssertionError, match=mend):
        engine.wait_until_ready()
