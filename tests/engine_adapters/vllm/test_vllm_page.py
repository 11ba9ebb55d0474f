"""docs/vllm.md: its configurations run as they are printed there, and its tables tell all there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from engine_adapters.vllm.settings import Settings
from kvgate.client.sync import Client
from tests.engine_adapters.vllm.engine import LLAMA, REPOSITORY, Engine
from tests.engine_adapters.vllm.prompts import prompt
from tests.gateways import ALPHA, RunningGateway

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
