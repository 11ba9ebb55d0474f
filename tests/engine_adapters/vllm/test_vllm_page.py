"""docs/vllm.md: its configurations run as they are printed there, and its tables tell all there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from engine_adapters.vllm.settings import Settings
from kvgate.client.sync import Client
from tests.engine_adapters.vllm.engine import ENVIRONMENT, HERE, LLAMA, REPOSITORY, Engine, Server, process_environment
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import ALPHA, RunningGateway, free_port

PAGE = (REPOSITORY / "docs" / "vllm.md").read_text()
BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
CONNECTORS = [block for block in BLOCKS if "kv_connector" in block]
(EVENTS,) = (block for block in BLOCKS if "enable_kv_cache_events" in block)

PROMPT = prompt("page", 2 * 256 + 5)


def row(option: Field[Any]) -> str:
    """A line of the page's table of settings."""
    default = option.default
    if default is MISSING or default is None:
        told = ""
    elif option.type == "Seconds":
        told = f"`{default:g}s`"
    elif option.type == "Size":
        told = f"`{default >> 20}MiB`"
    else:
        told = f"`{json.dumps(default).strip(chr(34))}`"
    return f"| `{option.name}` | {told} | {option.metadata['help']} |"


def surroundings(gateway: RunningGateway) -> dict[str, str]:
    """The environment that the page has people set."""
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.create_bucket("kvcache")
    return {
        "KVGATE_URL": gateway.url,
        "AWS_ACCESS_KEY_ID": ALPHA.access_key,
        "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key,
    }


def test_every_setting_is_in_the_table() -> None:
    missing = [line for option in fields(Settings) if (line := row(option)) not in PAGE]
    assert not missing, "\n".join(missing)
    told = re.findall(r"^\| `([a-z_]+)` \|", PAGE.split("## Settings")[1].split("\n## ")[0], re.MULTILINE)
    assert told == [option.name for option in fields(Settings)]


@pytest.mark.engine
@pytest.mark.parametrize("number", range(len(CONNECTORS)))
def test_a_configuration_of_the_page_shares_kv_between_two_engines(
    start_engine: Callable[..., Engine], start_gateway: Callable[..., RunningGateway], number: int
) -> None:
    gateway = start_gateway()
    environment = surroundings(gateway)
    config = CONNECTORS[number]
    lazy = config["kv_connector_extra_config"].get("save") == "lazy"
    # A cache of two prompts: what is stored late is stored when the third comes.
    arguments = {"kv_transfer_config": config, "num_gpu_blocks_override": 44, "max_model_len": 700}
    first = start_engine(LLAMA, environment=environment, **arguments)
    said = first.tell(PROMPT, max_tokens=8)
    for other in range(4 if lazy else 0):
        first.tell(prompt(("page", other), 2 * 256 + 5))
    first.close()
    second = start_engine(LLAMA, environment=environment, **arguments)
    found = second.tell(PROMPT, max_tokens=8)
    assert (found.external_tokens, found.tokens) == (512, said.tokens)


@pytest.mark.engine
def test_events_and_metrics_are_those_of_the_page(
    start_server: Callable[..., Server], start_gateway: Callable[..., RunningGateway]
) -> None:
    gateway = start_gateway()
    port = free_port()
    listener = subprocess.Popen(
        [str(ENVIRONMENT / "bin" / "python"), str(HERE / "listen.py"), f"tcp://127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | process_environment(),
    )
    server = start_server(
        LLAMA,
        environment=surroundings(gateway),
        kv_transfer_config=CONNECTORS[0],
        kv_events_config=EVENTS | {"endpoint": EVENTS["endpoint"].replace("5557", str(port))},
    )
    try:
        server.wait_until_ready()
        heard: list[dict[str, Any]] = []
        threading.Thread(target=lambda: heard.extend(map(json.loads, listener.stdout or ())), daemon=True).start()
        deadline = time.monotonic() + 240
        while not heard:  # who listens too late never hears what was told before
            assert time.monotonic() < deadline
            server.complete(prompt(time.monotonic(), 40), max_tokens=4)
            time.sleep(0.1)
        server.complete(PROMPT, max_tokens=40)
        while len(stored := [event for event in heard if event["medium"] == "STORAGE"]) < 2:
            assert time.monotonic() < deadline, heard
            server.complete(prompt(time.monotonic(), 5), max_tokens=4)  # events go out with a step of the engine
            time.sleep(0.1)
    finally:
        listener.kill()
        listener.communicate()
    assert [token for event in stored for token in event["token_ids"]] == PROMPT[:512]
    assert {(event["ownership"], event["locality"], event["block_size"]) for event in stored} == {
        ("kvgate", "REMOTE", 32)
    }

    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        shown = answer.read().decode()
    told = re.findall(r"^\| `(vllm:kvgate_\w+)` \|", PAGE, re.MULTILINE)
    assert len(told) > 5
    samples = {re.split(r"[{ ]", line)[0] for line in shown.splitlines() if line.startswith("vllm:kvgate_")}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples if not name.endswith("_created")}
    failures = {"vllm:kvgate_failures_total"}  # shown once there is one
    assert families | failures == set(told)
    assert re.search(r"^vllm:kvgate_stored_chunks_total\{.*\} 2\.0$", shown, re.MULTILINE)
