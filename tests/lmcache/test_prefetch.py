"""What LMCache looks up is in memory before it reads it, and its hits are counted by model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.gateways import RunningGateway, free_port
from tests.lmcache.processes import Engine, LMCacheServer, requests, s3_options

CHUNK_TOKENS, LAYERS = 256, 10
MODEL = "acme/tiny-llama"


def test_chunks_that_are_looked_up_in_process_are_read_from_memory(
    start_gateway: Callable[..., RunningGateway], start_lmcache: Callable[..., Any], tmp_path: Path
) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "alpha-bucket"}])
    config = tmp_path / "lmcache.yaml"
    options = {"chunk_size": CHUNK_TOKENS, "local_cpu": False, "max_local_cpu_size": 0.25, "remote_serde": "naive"}
    options |= {"remote_url": f"s3://127.0.0.1:{port}", "extra_config": s3_options()}
    config.write_text(yaml.safe_dump(options))
    engine, later = (start_lmcache(Engine, "engine_in_process.py", str(config), str(LAYERS)) for _ in range(2))
    assert engine.ask("store", 1, 800) == {"under_way": 0, "failed": 0}
    gateway.restart()

    assert later.ask("lookup", 1, 1200) == 768
    deadline = time.monotonic() + 10
    while gateway.metrics()["kvgate_prefetched_objects_total"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert later.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert gateway.metrics()["kvgate_prefetch_useful_objects_total"] == 3
    assert reads(gateway) == {"host": requests(gateway)["GetObject 206"]}
    assert lookups(gateway, "lmcache", MODEL.replace("/", "_")) == {"hit": 3, "miss": 1}


def test_what_the_server_reads_comes_through_memory_once(
    start_gateway: Callable[..., RunningGateway], start_lmcache: Callable[..., Any]
) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "alpha-bucket"}])
    server, later_server = (start_lmcache(LMCacheServer, port, CHUNK_TOKENS) for _ in range(2))
    server.wait_until_ready()
    engine = start_lmcache(Engine, "engine_with_server.py", server.url, str(LAYERS))
    assert engine.ask("store", 1, 800) == "stored"
    server.wait_for_objects(MODEL, 3)
    gateway.restart()

    later_server.wait_until_ready()
    later = start_lmcache(Engine, "engine_with_server.py", later_server.url, str(LAYERS))
    assert later.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert gateway.metrics()["kvgate_promoted_objects_total"] == 3
    assert reads(gateway) == {"host": requests(gateway)["GetObject 206"]}
    assert lookups(gateway, "lmcache-mp", MODEL)["hit"] == 3


def reads(gateway: RunningGateway) -> dict[str, float]:
    """How many reads each tier has served."""
    return {
        name.split('"')[1]: count for name, count in gateway.metrics().items() if name.startswith("kvgate_reads_total{")
    }


def lookups(gateway: RunningGateway, system: str, model: str) -> dict[str, float]:
    """Hits and misses of the HEADs for a model."""
    name = 'kvgate_model_requests_total{{method="HEAD",model="{}",result="{}",system="{}"}}'
    metrics = gateway.metrics()
    return {result: metrics.get(name.format(model, result, system), 0.0) for result in ("hit", "miss")}
