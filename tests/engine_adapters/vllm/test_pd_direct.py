"""Prefill and decode in servers of their own, whose workers hand the KV over with NIXL, over UCX tcp.

The servers store nothing in the gateway (`save: none`) where a test is to see that KV went directly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import LLAMA, SLIDING, Engine, Server, complete, connector
from tests.engine_adapters.vllm.prompts import prompt
from tests.engine_adapters.vllm.test_pd_gateway import EXACT, external, proxy, tokens
from tests.gateways import RunningGateway

NEW_TOKENS = 12
DIRECT: dict[str, Any] = {"transports": "tcp"}
Start = Callable[..., Server]


def pair(start_server: Start, model: Any, config: dict[str, Any]) -> list[Server]:
    servers = [start_server(model, kv_transfer_config=config, **EXACT) for _ in range(2)]
    for server in servers:
        server.wait_until_ready()
    return servers


def prefill(server: Server, ids: list[int]) -> dict[str, Any]:
    """What the decode instance is to be told."""
    params = {"do_remote_decode": True, "do_remote_prefill": False}
    told: dict[str, Any] = server.complete(ids, 1, kv_transfer_params=params)["kv_transfer_params"]
    assert told["kvgate_direct"]["at"]
    return told


def used(server: Server) -> float:
    """The share of the server's blocks that are in use."""
    return metric(server, "vllm:kv_cache_usage_perc")


def metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def counted(server: Server, name: str) -> float:
    """A number of the connector's. An idle server does not tell it, so it is given something to do."""
    server.complete([1, 2, 3], 1)
    return metric(server, f"vllm:kvgate_{name}_total")


def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def until_unused(server: Server) -> None:
    until(lambda: used(server) == 0, "blocks were not given back")


@pytest.mark.parametrize("model", [LLAMA, SLIDING])
def test_tokens_are_those_of_one_instance_and_no_prompt_is_computed_twice(
    gateway: RunningGateway, start_server: Start, shared_engine: Callable[..., Engine], model: Any
) -> None:
    prompts = [prompt(("direct", number), length) for number, length in enumerate((1, 31, 32, 40, 130, 600, 1025))]
    alone = shared_engine(model, **EXACT)
    expected = [alone.tell(each, max_tokens=NEW_TOKENS).tokens for each in prompts]
    first, second = pair(start_server, model, connector(gateway, chunk_tokens=64, save="none", direct=DIRECT))
    with proxy(first.url, second.url) as url:
        for each, right in zip(prompts, expected, strict=True):
            assert tokens(complete(url, str(model), each, NEW_TOKENS)) == right
        assert external(second) == sum(len(each) for each in prompts), "the decode server computed what was handed over"
        shared = prompts[-1][:512] + prompt("another end", 70)  # its beginning is in the decode server already
        right = alone.tell(shared, max_tokens=NEW_TOKENS).tokens
        assert tokens(complete(url, str(model), shared, NEW_TOKENS)) == right
    for server in (first, second):
        until_unused(server)


def test_prefill_killed_before_its_kv_has_come_costs_only_time(
    gateway: RunningGateway, start_server: Start, shared_engine: Callable[..., Engine]
) -> None:
    """It is frozen as soon as it has announced the KV, so that the decode server waits for it, and then killed."""
    ids = prompt("killed prefill", 700)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    first, second = pair(start_server, LLAMA, connector(gateway, chunk_tokens=64, save="none", direct=DIRECT))
    told = prefill(first, ids)
    os.killpg(first.process.pid, signal.SIGSTOP)
    answers: list[list[int]] = []
    waiting = threading.Thread(
        target=lambda: answers.append(tokens(second.complete(ids, NEW_TOKENS, kv_transfer_params=told)))
    )
    waiting.start()
    time.sleep(1.0)
    assert not answers
    first.kill()
    waiting.join(120)
    assert answers == [expected]
    assert external(second) in (0, len(ids))  # vLLM counts a load when it begins
    until_unused(second)


def test_failed_handover_takes_what_the_gateway_has(
    gateway: RunningGateway, start_server: Start, shared_engine: Callable[..., Engine]
) -> None:
    ids = prompt("fallback", 700)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    config = connector(gateway, chunk_tokens=64, wait_for_handoff="20s", direct=DIRECT)
    first, second = pair(start_server, LLAMA, config)
    told = prefill(first, ids)

    def in_gateway() -> float:
        return counted(first, "stored_chunks") + counted(first, "present_chunks")

    until(lambda: in_gateway() >= len(ids) // 64, "the chunks were not stored")
    first.kill()
    result = second.complete(ids, NEW_TOKENS, kv_transfer_params=told)
    assert tokens(result) == expected
    until(lambda: counted(second, "loaded_chunks") == len(ids) // 64, "the chunks were not loaded")


def test_decode_killed_in_mid_transfer_gives_the_prefill_its_blocks_back(
    gateway: RunningGateway, start_server: Start, shared_engine: Callable[..., Engine]
) -> None:
    config = connector(gateway, chunk_tokens=64, save="none", direct=DIRECT | {"deadline": "5s"})
    first, second = pair(start_server, LLAMA, config)
    for number in range(3):
        ids = prompt(("killed decode", number), 700)
        told = prefill(first, ids)
        assert used(first) > 0
        threading.Thread(target=_ask, args=(second, ids, told), daemon=True).start()
    time.sleep(0.05)
    second.kill()
    until_unused(first)
    ids = prompt("after the kill", 300)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    assert tokens(first.complete(ids, NEW_TOKENS)) == expected


def _ask(server: Server, ids: list[int], told: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        server.complete(ids, NEW_TOKENS, kv_transfer_params=told)


def test_params_that_somebody_made_up_are_not_believed(
    gateway: RunningGateway, start_server: Start, shared_engine: Callable[..., Engine]
) -> None:
    """What was announced for another prompt, and addresses and ids of all kinds: the tokens stay right."""
    ids, other = prompt("made up", 300), prompt("somebody else's", 300)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    first, second = pair(start_server, LLAMA, connector(gateway, chunk_tokens=64, save="none", direct=DIRECT))
    told = prefill(first, other)
    real = told["kvgate_direct"]
    for forged in (
        real,
        {**real, "at": [["192.0.2.1", 80]]},
        {**real, "at": [["127.0.0.1", 1 << 40]]},
        {**real, "at": [["localhost", 80]]},
        {**real, "at": []},
        {"id": "x" * 100_000, "at": real["at"]},
        {"id": 7, "at": "everywhere"},
        "text",
        None,
    ):
        params = {"do_remote_prefill": True, "kvgate_direct": forged}
        assert tokens(second.complete(ids, NEW_TOKENS, kv_transfer_params=params)) == expected
    assert external(second) == 0


def test_engine_whose_weights_may_have_changed_offers_nothing_any_more(
    gateway: RunningGateway, start_engine: Callable[..., Engine]
) -> None:
    config = connector(gateway, chunk_tokens=64, save="none", direct=DIRECT | {"deadline": "1s"})
    engine = start_engine(LLAMA, kv_transfer_config=config)
    ids, params = prompt("new weights", 300), {"do_remote_decode": True, "do_remote_prefill": False}
    before = engine.tell(ids, max_tokens=1, kv_transfer_params=params)
    assert before.kv_transfer_params is not None
    assert "kvgate_direct" in before.kv_transfer_params
    engine.idle(3.0)  # the offer ends
    engine.reset_prefix_cache(connector=True)
    after = engine.tell(ids, max_tokens=1, kv_transfer_params=params)
    assert "kvgate_direct" not in (after.kv_transfer_params or {})
