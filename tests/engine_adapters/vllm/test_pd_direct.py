"""Prefill and decode in processes of their own, which hand the KV over with NIXL, over UCX tcp.

They store nothing in the gateway (`save: none`) where a test is to see that KV went directly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import (
    LLAMA,
    SLIDING,
    Engine,
    Request,
    Server,
    complete,
    connector,
    why_unavailable,
)
from tests.engine_adapters.vllm.kept import Kept, check_nothing_is_held, wait_until
from tests.engine_adapters.vllm.prompts import prompt
from tests.engine_adapters.vllm.test_pd_gateway import EXACT, external, proxy, tokens
from tests.gateways import RunningGateway

pytestmark = pytest.mark.engine

NEW_TOKENS = 12
CHUNKED: dict[str, Any] = {"chunk_tokens": 64}
DIRECT: dict[str, Any] = {"transports": "tcp"}
PATIENT = DIRECT | {"deadline": "200s", "heartbeat": "90s", "heartbeat_timeout": "200s", "confirm_within": "200s"}
"""Nothing ends because time has passed, and nobody says anything that is not about a transfer."""

PREFILL: dict[str, Any] = {"do_remote_decode": True, "do_remote_prefill": False}
PROMPTS = [prompt(("direct", number), length) for number, length in enumerate((1, 31, 32, 40, 130, 600, 1025))]
SHARED = PROMPTS[-1][:512] + prompt("another end", 70)
"""Its beginning is in the decode instance already, as far as that keeps it."""

Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def servers(gateway: RunningGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """One for prefill and one for decode."""
    if reason := why_unavailable():
        pytest.skip(reason)
    folder, config = tmp_path_factory.mktemp("servers"), connector(gateway, **CHUNKED, save="none", direct=DIRECT)
    started = [Server(folder / f"{n}.log", LLAMA, kv_transfer_config=config, **EXACT) for n in range(2)]
    for server in started:
        server.wait_until_ready()
    yield started
    for server in started:
        server.kill()


def used(server: Server) -> float:
    """The share of the server's blocks that are in use."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:kv_cache_usage_perc"))


def prefill(engine: Engine, ids: list[int]) -> dict[str, Any]:
    """What the decode instance is to be told, while the blocks are held for it."""
    engine.begin([Request(ids, 1, kv_transfer_params=PREFILL)], drain=False)
    told = engine.end()[0].kv_transfer_params
    engine.idle(0.1)  # the offer goes to its worker with the next step
    assert told is not None
    assert told["kvgate_direct"]["at"]
    return told


def is_free(engine: Engine) -> bool:
    """Whether no block is in use, once the engine has heard of what has ended."""
    engine.idle(0.1)
    blocks = engine.blocks()
    return blocks["free"] == blocks["total"] - 1


@pytest.mark.timeout(900)  # the starts of vLLM's server, which takes minutes on a busy machine
def test_tokens_are_those_of_one_instance_and_no_prompt_is_computed_twice(
    servers: list[Server], shared_engine: Callable[..., Engine]
) -> None:
    alone = shared_engine(LLAMA, **EXACT)
    first, second = servers
    with proxy(first.url, second.url) as url:
        for each in PROMPTS:
            assert tokens(complete(url, str(LLAMA), each, NEW_TOKENS)) == alone.tell(each, max_tokens=NEW_TOKENS).tokens
        assert external(second) == sum(map(len, PROMPTS)), "the decode server computed what was handed over"
        right = alone.tell(SHARED, max_tokens=NEW_TOKENS).tokens
        assert tokens(complete(url, str(LLAMA), SHARED, NEW_TOKENS)) == right
    for server in servers:
        wait_until(lambda server=server: used(server) == 0, "blocks are given back")  # type: ignore[misc]


def test_of_layers_with_a_window_goes_what_they_keep(
    gateway: RunningGateway, start_engine: Start, shared_engine: Callable[..., Engine]
) -> None:
    alone = shared_engine(SLIDING, **EXACT)
    config = connector(gateway, **CHUNKED, save="none", direct=PATIENT)
    first, second = (start_engine(SLIDING, kv_transfer_config=config, **EXACT) for _ in range(2))
    for each in PROMPTS:
        result = second.tell(each, max_tokens=NEW_TOKENS, kv_transfer_params=prefill(first, each))
        assert result.tokens == alone.tell(each, max_tokens=NEW_TOKENS).tokens
    assert second.metrics()["vllm:external_prefix_cache_hits"] == sum(map(len, PROMPTS))
    result = second.tell(SHARED, max_tokens=NEW_TOKENS, kv_transfer_params=prefill(first, SHARED))
    assert result.tokens == alone.tell(SHARED, max_tokens=NEW_TOKENS).tokens
    for engine in (first, second):
        wait_until(lambda engine=engine: is_free(engine), "blocks are given back")  # type: ignore[misc]


def test_failed_handover_takes_what_the_gateway_has(
    start_gateway: Callable[..., RunningGateway], start_engine: Start, shared_engine: Callable[..., Engine]
) -> None:
    gateway, ids = start_gateway(), prompt("fallback", 700)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    config = connector(gateway, **CHUNKED, wait_for_handoff="60s", load_deadline="60s", direct=DIRECT)
    first, second = (start_engine(LLAMA, kv_transfer_config=config, **EXACT) for _ in range(2))
    told = prefill(first, ids)
    Kept(gateway).wait(len(ids) // 64)
    first.kill()
    assert second.tell(ids, max_tokens=NEW_TOKENS, kv_transfer_params=told).tokens == expected
    assert second.metrics()["vllm:kvgate_loaded_chunks"] == len(ids) // 64
    check_nothing_is_held(second, Kept(gateway))


def queues(pid: int) -> dict[int, tuple[int, int]]:
    """The bytes in the kernel that a process's connections, by their own port, have yet to send and to read."""
    found = {}
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(str(descriptor.readlink()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, waiting, _, _, _, _, inode, *_ = line.split()
        if state == "01" and f"socket:[{inode}]" in own:
            unsent, unread = (int(number, 16) for number in waiting.split(":"))
            sent_before, read_before = found.get(port := int(local.rpartition(":")[2], 16), (0, 0))
            found[port] = (max(unsent, sent_before), max(unread, read_before))
    return found


def in_mid_write(first: Engine, second: Engine, seed: str) -> list[int]:
    """Have the first engine write a prompt's KV into the second, which is frozen meanwhile; the prompt.

    The decode engine asks while the prefill engine is frozen, and takes nothing more out of its sockets when the write
    begins. They hold less than the 30 MB that are to come, so that it stays under way, with bytes in them.
    """
    short, ids = prompt((seed, "session"), 40), prompt(seed, 3800)
    second.tell(short, kv_transfer_params=prefill(first, short))  # they know each other from here on
    told = prefill(first, ids)
    ((_, port),) = told["kvgate_direct"]["at"]
    os.kill(first.pid, signal.SIGSTOP)
    second.begin([Request(ids, NEW_TOKENS, kv_transfer_params=told)])
    wait_until(lambda: queues(first.pid)[port][1] > 0, "the decode engine asks")
    os.kill(second.pid, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGCONT)
    wait_until(lambda: is_writing(first), "bytes are under way")
    return ids


def is_writing(engine: Engine) -> bool:
    """Whether there are bytes in a connection of an engine's that do not get any further."""
    seen = []
    for _ in range(5):
        seen.append(max(unsent for unsent, _ in queues(engine.pid).values()))
        time.sleep(0.1)
    return seen[0] > 1 << 16 and len(set(seen)) == 1


def test_engine_that_is_killed_in_mid_write_costs_the_other_one_only_time(
    gateway: RunningGateway, start_engine: Start, shared_engine: Callable[..., Engine]
) -> None:
    config = connector(gateway, **CHUNKED, save="none", direct=PATIENT)
    first, second, third = (start_engine(LLAMA, kv_transfer_config=config, **EXACT) for _ in range(3))
    alone = shared_engine(LLAMA, **EXACT)

    in_mid_write(first, second, "decode is killed")
    assert not is_free(first)
    assert is_writing(first)
    second.kill()
    wait_until(lambda: is_free(first), "the prefill engine has its blocks back")
    ids = prompt("after the kill", 300)
    expected = alone.tell(ids, max_tokens=NEW_TOKENS).tokens
    assert first.tell(ids, max_tokens=NEW_TOKENS).tokens == expected

    ids = in_mid_write(first, third, "prefill is killed")
    assert is_writing(first)
    first.kill()
    os.kill(third.pid, signal.SIGCONT)
    (result,) = third.end()
    assert result.tokens == alone.tell(ids, max_tokens=NEW_TOKENS).tokens
    assert third.metrics()["vllm:kvgate_failures"] == 1
    wait_until(lambda: is_free(third), "the decode engine has its blocks back")


def test_params_that_somebody_made_up_are_not_believed(
    servers: list[Server], shared_engine: Callable[..., Engine]
) -> None:
    """What was announced for another prompt, and addresses and ids of all kinds: the tokens stay right."""
    ids, other = prompt("made up", 300), prompt("somebody else's", 300)
    expected = shared_engine(LLAMA, **EXACT).tell(ids, max_tokens=NEW_TOKENS).tokens
    first, second = servers
    before = external(second)
    real = first.complete(other, 1, kv_transfer_params=PREFILL)["kv_transfer_params"]["kvgate_direct"]
    assert real["at"]
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
    assert external(second) == before


def test_engine_whose_weights_may_have_changed_offers_nothing_any_more(
    gateway: RunningGateway, start_engine: Callable[..., Engine]
) -> None:
    config = connector(gateway, **CHUNKED, save="none", direct=DIRECT | {"deadline": "1s"})
    engine = start_engine(LLAMA, kv_transfer_config=config)
    ids = prompt("new weights", 300)
    prefill(engine, ids)
    engine.idle(3.0)  # the offer ends
    engine.reset_prefix_cache(connector=True)
    after = engine.tell(ids, max_tokens=1, kv_transfer_params=PREFILL)
    assert "kvgate_direct" not in (after.kv_transfer_params or {})
