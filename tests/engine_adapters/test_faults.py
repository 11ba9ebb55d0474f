"""A gateway that is absent, silent, slow, wrong or gone: the same text, no exception, and a bounded delay."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from engine_adapters.breaker import Breaker
from engine_adapters.transformers import KVGateCache
from kvgate.client.sync import Client
from kvgate.client.values import Loaded
from tests.engine_adapters.tcp_proxy import Proxy, Silent, flip_late, slowly
from tests.engine_adapters.tiny import CHUNK_TOKENS, greedy, prompt, tiny_model, tiny_tokenizer
from tests.gateways import ALPHA, RunningGateway, free_port

pytestmark = pytest.mark.engine

DEADLINE_S = 0.5
SLACK_S = 1.5
"""For the tiny model itself, on a machine that does other things too."""
FLUSH_S = 20.0


def cache_for(model: Any, url: str, **options: Any) -> KVGateCache:
    values = {"bucket": "alpha-bucket", "chunk_tokens": CHUNK_TOKENS, "load_deadline_s": DEADLINE_S}
    return KVGateCache(
        model,
        tiny_tokenizer(),
        url=url,
        access_key=ALPHA.access_key,
        secret_key=ALPHA.secret_key,
        **(values | options),
    )


def stored(gateway: RunningGateway, seed: int, tokens: list[int]) -> Any:
    """A model whose KV of `tokens` the gateway holds."""
    model = tiny_model(seed=seed)
    with cache_for(model, gateway.url, load_deadline_s=10.0) as cache:
        cache.generate(tokens, max_new_tokens=1, do_sample=False)
        assert cache.flush(FLUSH_S)
        totals = cache.totals()  # another try of the same test finds its chunks there
        assert totals.stored_chunks + totals.loaded_chunks == len(tokens) // CHUNK_TOKENS
    return model


def generate(cache: KVGateCache, tokens: list[int]) -> tuple[Any, float]:
    start_s = time.monotonic()
    result = cache.generate(tokens, max_new_tokens=6, do_sample=False)
    return result, time.monotonic() - start_s


def test_without_a_gateway_the_model_answers_alone() -> None:
    model, tokens = tiny_model(seed=200), prompt(200, 4 * CHUNK_TOKENS + 1)
    with cache_for(model, f"http://127.0.0.1:{free_port()}") as cache:
        result, elapsed_s = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens == 0
        assert "no connection" in result.stats.miss
        assert elapsed_s < SLACK_S


def test_a_name_that_does_not_resolve_is_an_absent_gateway() -> None:
    model, tokens = tiny_model(seed=201), prompt(201, 2 * CHUNK_TOKENS + 1)
    with cache_for(model, "http://gateway.invalid:9000") as cache:
        result, elapsed_s = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert elapsed_s < DEADLINE_S + SLACK_S


def test_a_silent_gateway_costs_its_deadline_once_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # A pause longer than four generations take on any machine; how long it is otherwise, test_breaker.py says.
    monkeypatch.setattr("engine_adapters.transformers.cache.Breaker", partial(Breaker, 120.0, 120.0))
    model, tokens = tiny_model(seed=202), prompt(202, 4 * CHUNK_TOKENS + 1)
    alone = greedy(model, tokens, 6)
    with Silent() as server, cache_for(model, server.url) as cache:
        first, first_s = generate(cache, tokens)
        assert first.token_ids == alone
        assert DEADLINE_S <= first.stats.load_s < DEADLINE_S + 0.5
        assert first_s < DEADLINE_S + SLACK_S
        for _ in range(3):
            again, _ = generate(cache, tokens)
            assert again.token_ids == alone
            assert again.stats.load_s < 0.1
            assert again.stats.miss == "the gateway was unavailable a moment ago"
        assert server.connections == 1


def test_a_gateway_that_falls_silent_with_the_salt_known_is_no_worse(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_adapters.transformers.cache.Breaker", partial(Breaker, 120.0, 120.0))
    tokens = prompt(203, 4 * CHUNK_TOKENS + 1)
    model = stored(gateway, 203, tokens)

    def silence(piece: bytes) -> bytes:
        time.sleep(60)
        return piece

    with Proxy(gateway.port) as proxy, cache_for(model, proxy.url, load_deadline_s=5.0) as cache:
        assert generate(cache, tokens)[0].stats.reused_tokens == 4 * CHUNK_TOKENS
        proxy.answer = silence
        result, _ = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens == 0
        assert result.stats.load_s < 5.0 + SLACK_S
        assert generate(cache, tokens)[0].stats.miss == "the gateway was unavailable a moment ago"


def test_chunks_that_come_too_late_are_computed(gateway: RunningGateway) -> None:
    tokens = prompt(204, 20 * CHUNK_TOKENS + 1)
    model = stored(gateway, 204, tokens)
    with Proxy(gateway.port, slowly) as proxy, cache_for(model, proxy.url, load_deadline_s=1.5) as cache:
        result, elapsed_s = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens < 20 * CHUNK_TOKENS
        assert result.stats.miss
        assert result.stats.load_s < 2.0
        assert elapsed_s < 1.5 + SLACK_S


def test_kv_corrupted_on_the_way_is_never_used(gateway: RunningGateway) -> None:
    tokens = prompt(205, 4 * CHUNK_TOKENS + 1)
    model = stored(gateway, 205, tokens)
    with Proxy(gateway.port, flip_late) as proxy, cache_for(model, proxy.url, load_deadline_s=5.0) as cache:
        result, _ = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens == 0
        assert result.stats.miss == "0 of 4 chunks arrived whole"
        assert cache.totals().failed_chunks == {"broken": 1}
    with cache_for(model, gateway.url) as cache:  # the copy in the gateway is as good as before
        assert generate(cache, tokens)[0].stats.reused_tokens == 4 * CHUNK_TOKENS


def test_a_connection_that_breaks_midway_leaves_the_chunks_before(gateway: RunningGateway) -> None:
    tokens = prompt(206, 10 * CHUNK_TOKENS + 1)
    model = stored(gateway, 206, tokens)
    passed = 0

    def break_after_a_while(piece: bytes) -> bytes:
        nonlocal passed
        passed += len(piece)
        if passed > 40_000:
            raise OSError
        return piece

    with Proxy(gateway.port, break_after_a_while) as proxy, cache_for(model, proxy.url, load_deadline_s=5.0) as cache:
        result, _ = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens < 10 * CHUNK_TOKENS


def test_a_chunk_of_another_sequence_under_the_right_name_is_not_used(gateway: RunningGateway) -> None:
    """What a defect elsewhere could do: the body of a key is another valid chunk, with a matching checksum."""
    tokens = prompt(207, 2 * CHUNK_TOKENS + 1)
    model = stored(gateway, 207, tokens)
    with (
        Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client,
        cache_for(model, gateway.url, load_deadline_s=10.0) as cache,
    ):
        names = [entry.key for entry in client.list("alpha-bucket", f"kv/{cache.space.id}/") if len(entry.key) > 120]
        assert len(names) == 2
        cache._loader._client = Swapping(client, dict(zip(names, reversed(names), strict=True)))
        result, _ = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert result.stats.reused_tokens == 0
        assert "chunk 0: metadata hash" in result.stats.miss


class Swapping:
    """A client that gets one object for another."""

    def __init__(self, client: Client, instead: dict[str, str]) -> None:
        self._client = client
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def load_chunks(
        self, bucket: str, space: str, hashes: list[bytes], buffers: list[memoryview], deadline_s: float, exact: bool
    ) -> Loaded:
        for chunk_hash, buffer in zip(hashes, buffers, strict=True):
            self._client.get(bucket, self._instead[f"kv/{space}/{chunk_hash.hex()}"], into=buffer)
        return Loaded((True,) * len(hashes))


def test_a_defect_in_the_loading_costs_the_kv_and_not_the_request(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the accelerator has no room left for the last layer."""
    tokens = prompt(210, 2 * CHUNK_TOKENS + 1)
    model = stored(gateway, 210, tokens)
    real, calls = torch.Tensor.clone, 0

    def clone(tensor: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError
        return real(tensor, **options)

    with cache_for(model, gateway.url, load_deadline_s=10.0) as cache:
        monkeypatch.setattr(torch.Tensor, "clone", clone)
        result = cache.prefill(tokens)
        monkeypatch.undo()
        assert result.stats.reused_tokens == 0
        assert result.stats.miss == "defect: OutOfMemoryError"
        torch.testing.assert_close(result.logits, model(input_ids=torch.tensor([tokens])).logits[0, -1])
    assert "the load of a prefix failed" in caplog.text


def test_a_gateway_that_comes_back_is_used_again(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    tokens = prompt(208, 4 * CHUNK_TOKENS + 1)
    model = tiny_model(seed=208)
    alone = greedy(model, tokens, 6)
    with cache_for(model, gateway.url, load_deadline_s=5.0) as cache:
        generate(cache, tokens)
        assert cache.flush(FLUSH_S)
        gateway.stop()
        down, _ = generate(cache, tokens)
        assert down.token_ids == alone
        assert down.stats.reused_tokens == 0
        gateway.start()
        end_s = time.monotonic() + 20
        while not generate(cache, tokens)[0].stats.reused_tokens:
            assert time.monotonic() < end_s
            time.sleep(0.2)
        assert generate(cache, tokens)[0].token_ids == alone


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bucket": "no-such-bucket"}, "NoSuchBucket"),
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"access_key": "NOBODY"}, "InvalidAccessKeyId"),
    ],
    ids=["bucket", "secret", "key"],
)
def test_a_gateway_that_refuses_says_why(gateway: RunningGateway, options: dict[str, Any], reason: str) -> None:
    model, tokens = tiny_model(seed=209), prompt(209, 2 * CHUNK_TOKENS + 1)
    with KVGateCache(
        model,
        tiny_tokenizer(),
        url=gateway.url,
        chunk_tokens=CHUNK_TOKENS,
        **({"bucket": "alpha-bucket", "access_key": ALPHA.access_key, "secret_key": ALPHA.secret_key} | options),
    ) as cache:
        result, _ = generate(cache, tokens)
        assert result.token_ids == greedy(model, tokens, 6)
        assert reason in result.stats.miss
