"""Prefill and decode in servers of their own, with the gateway between them, behind the example's proxy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import (
    LLAMA,
    REPOSITORY,
    Engine,
    Server,
    complete,
    connector,
)
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import RunningGateway, free_port

CHUNK = 64
NEW_TOKENS = 12
EXACT: dict[str, Any] = {"dtype": "float32"}
"""With bfloat16 the same prompt gives other tokens when it is computed in other pieces."""
PROMPTS = [prompt(("pd", number), length) for number, length in enumerate((40, 64, 130, 600, 1025))]


@pytest.fixture(scope="module")
def expected(shared_engine: Callable[..., Engine]) -> list[list[int]]:
    """What one instance alone gives."""
    engine = shared_engine(LLAMA, **EXACT)
    return [engine.tell(each, max_tokens=NEW_TOKENS).tokens for each in PROMPTS]


@contextmanager
def proxy(prefill: str, decode: str) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "examples/pd/proxy.py", "--port", str(port), "--prefill", prefill, "--decode", decode],
        cwd=REPOSITORY,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tokens(answer: dict[str, Any]) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


def external(server: Server) -> float:
    """Tokens whose KV the server has taken from elsewhere."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:external_prefix_cache_hits_total")
    )


@pytest.mark.timeout(900)  # three starts of vLLM, each of which takes minutes on a busy machine
def test_a_decode_server_goes_on_from_the_kv_of_a_prefill_server(
    gateway: RunningGateway, start_server: Callable[..., Server], expected: list[list[int]]
) -> None:
    """Also when either is killed: the text stays the same."""
    config = connector(gateway, chunk_tokens=CHUNK, wait_for_handoff="20s")
    first, second = (start_server(LLAMA, kv_transfer_config=config, **EXACT) for _ in range(2))
    for server in (first, second):
        server.wait_until_ready()
    with proxy(first.url, second.url) as url:
        for each, right in zip(PROMPTS, expected, strict=True):
            assert tokens(complete(url, str(LLAMA), each, NEW_TOKENS)) == right
        chunked = sum(len(each) // CHUNK * CHUNK for each in PROMPTS)
        assert external(second) == chunked, "the decode server computed what was handed over"
        assert external(first) == 0

        streamed = complete_streaming(url, PROMPTS[3])
        assert streamed == expected[3]

        first.kill()
        fresh = prompt("pd without prefill", 300)
        alone = tokens(complete(second.url, str(LLAMA), fresh, NEW_TOKENS))
        again = prompt("pd without prefill", 300)
        assert tokens(complete(url, str(LLAMA), again, NEW_TOKENS)) == alone


def complete_streaming(url: str, tokens_in: list[int]) -> list[int]:
    values = {"model": str(LLAMA), "prompt": tokens_in, "max_tokens": NEW_TOKENS, "temperature": 0.0}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(values | {"ignore_eos": True, "stream": True, "return_token_ids": True}).encode(),
        headers={"content-type": "application/json"},
    )
    found: list[int] = []
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    found += choice.get("token_ids") or []
    return found


def test_chunks_that_never_come_are_waited_for_no_longer_than_allowed(
    gateway: RunningGateway, shared_engine: Callable[..., Engine]
) -> None:
    """An announcement is only a claim, and anybody can make it."""
    engine = shared_engine(LLAMA, kv_transfer_config=connector(gateway, chunk_tokens=CHUNK, wait_for_handoff="1s"))
    never = prompt("never handed over", 300)
    for chunks in (4, 10**9, -1, "4", None):
        params = {"do_remote_prefill": True, "kvgate_chunks": chunks}
        result = engine.tell(never, max_tokens=NEW_TOKENS, kv_transfer_params=params)
        assert result.finish == "length"
        engine.reset_prefix_cache()
        never = prompt(("never handed over", chunks), 300)
