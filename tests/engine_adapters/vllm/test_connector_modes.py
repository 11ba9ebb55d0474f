"""The connector's ways to load and save, and loads that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvgate.chunk.layout import DATA_START
from tests.engine_adapters.tcp_proxy import Proxy, flip_late
from tests.engine_adapters.vllm.engine import LLAMA, LORA_ONE, LORA_TWO, SLIDING, Engine, connector
from tests.engine_adapters.vllm.kept import CHUNK_TOKENS, PATIENT, Kept, check_nothing_is_held
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

EXACT: dict[str, Any] = {"dtype": "float32"}


@pytest.mark.parametrize(
    ("model", "load"), [(LLAMA, "layerwise"), (LLAMA, "async"), (SLIDING, "async")], ids=lambda value: str(value)[-9:]
)
def test_a_load_that_fails_is_computed_and_nothing_that_came_of_it_is_stored(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway], model: Any, load: str
) -> None:
    gateway = start_gateway()
    kept, groups = Kept(gateway), 2 if model is SLIDING else 1
    first = prompt("fails", 3 * CHUNK_TOKENS)
    longer = [*first, *prompt("goes on", 3 * CHUNK_TOKENS + 5)]
    with Proxy(gateway.port) as proxy:
        shared = connector(gateway, **PATIENT, url=proxy.url, load=load, layers_at_once=1)
        engine = start_engine(model, **EXACT, kv_transfer_config=shared)
        right = engine.tell(longer, max_tokens=8, salt="computed apart").tokens
        engine.tell([*first, *prompt("ends", 5)])
        kept.wait(groups * 9)
        engine.reset_prefix_cache()

        proxy.answer = flip_late
        failed = engine.tell(longer, max_tokens=8)
        assert failed.tokens == right
        proxy.answer = bytes
        assert engine.metrics()["vllm:kvgate_failures"] > 0
        kept.wait(groups * 12)

        engine.reset_prefix_cache()
        loaded = engine.tell(longer, max_tokens=8)
        assert (loaded.external_tokens, loaded.tokens) == (6 * CHUNK_TOKENS, right)
        check_nothing_is_held(engine, kept)


def test_an_engine_may_only_load_or_only_store_or_store_late(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    one, other = prompt("one", 4 * CHUNK_TOKENS + 5), prompt("other", 4 * CHUNK_TOKENS + 5)

    def start(**extra: Any) -> Engine:
        return start_engine(LLAMA, **EXACT, kv_transfer_config=connector(gateway, **PATIENT, **extra))

    late = start(save="lazy")
    said = late.tell(one, max_tokens=8)
    assert kept.settle().total() == 0  # its blocks are not needed yet

    writer = start(load="none")
    assert writer.tell(one, max_tokens=8).tokens == said.tokens
    kept.wait(4)
    writer.reset_prefix_cache()
    assert writer.tell(one).external_tokens == 0
    writer.close()

    # What the gateway makes smaller on its disk is to its clients as it was.
    assert kept.compress() > 0
    gateway.restart()
    reader = start(save="none")
    found = reader.tell(one, max_tokens=8)
    assert (found.external_tokens, found.tokens) == (4 * CHUNK_TOKENS, said.tokens)
    reader.tell(other)
    assert kept.settle().total() == 4
    check_nothing_is_held(late, kept)


def test_chunks_stored_in_a_lossless_codec_are_as_good_as_any_and_a_broken_one_is_computed(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    tokens = prompt("lossless", 4 * CHUNK_TOKENS + 5)
    writer = start_engine(
        LLAMA, **EXACT, kv_transfer_config=connector(gateway, **PATIENT, lossless="zstd-split", load="layerwise")
    )
    reader = start_engine(LLAMA, **EXACT, kv_transfer_config=connector(gateway, **PATIENT))
    said = writer.tell(tokens, max_tokens=8)
    (space,) = kept.wait(4)
    assert kept.codecs() == {"zstd-split": 4}

    # One asks for layers, which such chunks do not have, and the other for whole chunks.
    writer.reset_prefix_cache()
    for engine in (writer, reader):
        found = engine.tell(tokens, max_tokens=8)
        assert (found.external_tokens, found.tokens) == (4 * CHUNK_TOKENS, said.tokens)
        assert "vllm:kvgate_failures" not in engine.metrics()

    first_block = DATA_START + 8 * 4  # after the sizes of four layers' blocks
    kept.change(
        kept.keys(space)[2 * CHUNK_TOKENS], lambda body: body[:first_block] + bytes(100) + body[first_block + 100 :]
    )
    for engine in (writer, reader):
        engine.reset_prefix_cache()
        assert engine.tell(tokens, max_tokens=8).tokens == said.tokens
        assert engine.metrics()["vllm:kvgate_failures"] > 0
        check_nothing_is_held(engine, kept)


def test_an_adapter_is_the_same_in_another_process_whatever_its_number(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    arguments = {"enable_lora": True, "max_lora_rank": 8, "kv_transfer_config": connector(gateway, **PATIENT), **EXACT}
    tokens = prompt("adapters", 4 * CHUNK_TOKENS + 5)
    first = start_engine(LLAMA, **arguments)
    said = first.tell(tokens, max_tokens=8, lora=LORA_ONE)
    kept.wait(4)
    first.close()
    second = start_engine(LLAMA, **arguments)
    assert second.tell(tokens, lora=LORA_TWO).external_tokens == 0  # the same name, and the number that ONE had
    again = second.tell(tokens, max_tokens=8, lora=LORA_ONE)
    assert (again.external_tokens, again.tokens) == (4 * CHUNK_TOKENS, said.tokens)
    assert second.tell(tokens).external_tokens == 0
    kept.wait(12)


@pytest.mark.skipif("avx512f" not in Path("/proc/cpuinfo").read_text(), reason="vLLM has fp8 KV on CPUs with AVX-512")
def test_fp8_kv_is_shared_with_fp8_kv_alone(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    kept = Kept(gateway)
    tokens = prompt("fp8", 4 * CHUNK_TOKENS + 5)
    arguments = {"kv_transfer_config": connector(gateway, **PATIENT), **EXACT}
    start_engine(LLAMA, **arguments).tell(tokens)
    kept.wait(4)
    small = start_engine(LLAMA, kv_cache_dtype="fp8", **arguments)
    computed = small.tell(tokens, max_tokens=8)
    assert computed.external_tokens == 0
    assert set(kept.wait(8).values()) == {4}
    small.reset_prefix_cache()
    loaded = small.tell(tokens, max_tokens=8)
    assert (loaded.external_tokens, loaded.tokens) == (4 * CHUNK_TOKENS, computed.tokens)
    assert {manifest["dtype"] for manifest in kept.manifests().values()} == {"F32", "F8_E4M3"}
