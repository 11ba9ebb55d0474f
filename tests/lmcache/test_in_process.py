"""LMCache inside of an engine's process: its engine, remote backend and S3 connector, as they are on PyPI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateways import RunningGateway, free_port
from tests.lmcache.processes import Engine, requests, s3_options
from tests.s3.clients import s3_client

CHUNK_TOKENS = 256
LAYER_NBYTES = 1 << 20  # of one chunk: 2 * 256 tokens * 8 heads * 128 * 2 bytes


@pytest.mark.parametrize("layers", [3, 10], ids=["in one piece", "in parts"])
def test_chunks_come_back_after_a_restart_of_the_gateway(
    start_gateway: Callable[..., RunningGateway], start_lmcache: Callable[..., Any], tmp_path: Path, layers: int
) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "alpha-bucket"}])
    config = tmp_path / "lmcache.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "chunk_size": CHUNK_TOKENS,
                "local_cpu": False,
                "max_local_cpu_size": 0.25,
                "remote_url": f"s3://127.0.0.1:{port}",
                "remote_serde": "naive",
                "extra_config": s3_options(),
            }
        )
    )
    engine, later = (start_lmcache(Engine, "engine_in_process.py", str(config), str(layers)) for _ in range(2))

    assert engine.ask("lookup", 1, 800) == 0
    assert engine.ask("store", 1, 800) == {"under_way": 0, "failed": 0}
    assert engine.ask("store", 1, 300, label="blue/green 50%") == {"under_way": 0, "failed": 0}
    assert engine.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    in_parts = layers * LAYER_NBYTES > 8 << 20
    answered = requests(gateway)
    assert answered.get("PutObject 200", 0) == (0 if in_parts else 4)
    assert answered.get("CompleteMultipartUpload 200", 0) == (4 if in_parts else 0)
    assert answered["GetObject 206"] == (6 if in_parts else 3)

    keys = engine.ask("keys", 1, 768) + engine.ask("keys", 1, 256, label="blue/green 50%")
    assert keys[3] == keys[0] + "@team%blue/green 50%"
    s3 = s3_client(gateway)
    listed = {item["Key"]: item["Size"] for item in s3.list_objects_v2(Bucket="alpha-bucket")["Contents"]}
    assert listed == dict.fromkeys((key.replace("/", "_") for key in keys), layers * LAYER_NBYTES)

    gateway.restart()
    assert engine.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert later.ask("lookup", 1, 800) == 768
    assert later.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert later.ask("load", 1, 256, label="blue/green 50%") == {"loaded": 256, "right": 256}
    assert later.ask("lookup", 1, 256, label="red") == 0
    assert later.ask("load", 1, 512, tail_seed=2, tail=300) == {"loaded": 512, "right": 512}

    s3.delete_object(Bucket="alpha-bucket", Key=keys[1].replace("/", "_"))
    assert later.ask("load", 1, 800) == {"loaded": 256, "right": 256}
