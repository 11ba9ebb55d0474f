"""LMCache's multiprocess mode: `lmcache server` with its S3 adapter, and vLLM's side of it, as they are on PyPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.gateways import RunningGateway, free_port
from tests.lmcache.processes import Engine, LMCacheServer, requests
from tests.s3.clients import s3_client

MODEL = "acme/tiny-llama"
CHUNK_TOKENS, LAYERS = 256, 10
CHUNK_NBYTES = LAYERS << 20  # 2 * 256 tokens * 8 heads * 128 * 2 bytes a layer: more than LMCache sends in one piece


def test_chunks_come_back_after_a_restart_of_the_gateway(
    start_gateway: Callable[..., RunningGateway], start_lmcache: Callable[..., Any]
) -> None:
    port = free_port()
    gateway = start_gateway(listeners=[{"port": port, "bucket": "alpha-bucket"}])
    server, later_server = (start_lmcache(LMCacheServer, port, CHUNK_TOKENS) for _ in range(2))
    server.wait_until_ready()
    engine = start_lmcache(Engine, "engine_with_server.py", server.url, str(LAYERS))
    later_server.wait_until_ready()
    later = start_lmcache(Engine, "engine_with_server.py", later_server.url, str(LAYERS))

    assert engine.ask("load", 1, 800) == {"loaded": 0, "right": 0}
    assert engine.ask("store", 1, 800) == "stored"
    assert engine.ask("store", 1, 300, label="salt + pepper") == "stored"
    stored = server.wait_for_objects(MODEL, 4)
    assert [entry["size_bytes"] for entry in stored] == [CHUNK_NBYTES] * 4

    keys = [entry["key"] for entry in stored]
    names = {f"{MODEL}@{key['kv_rank']:08x}@0@{key['chunk_hash_hex']}" + salt(key) for key in keys}
    s3 = s3_client(gateway)
    assert {item["Key"] for item in s3.list_objects_v2(Bucket="alpha-bucket")["Contents"]} == names

    server.clear_memory()
    assert engine.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    answered = requests(gateway)
    assert "PutObject 200" not in answered
    assert answered["CompleteMultipartUpload 200"] == 4
    assert answered["GetObject 206"] == 6

    gateway.restart()
    server.clear_memory()
    assert engine.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert later.ask("load", 1, 800) == {"loaded": 768, "right": 768}
    assert later.ask("load", 1, 256, label="salt + pepper") == {"loaded": 256, "right": 256}
    assert later.ask("load", 1, 256, label="other salt") == {"loaded": 0, "right": 0}
    assert later.ask("load", 1, 512, tail_seed=2, tail=300) == {"loaded": 512, "right": 512}

    salted = [key for key in keys if key["cache_salt"]]
    assert later_server.delete(salted) == 1
    later_server.clear_memory()
    assert later.ask("load", 1, 256, label="salt + pepper") == {"loaded": 0, "right": 0}
    assert later.ask("load", 1, 800) == {"loaded": 768, "right": 768}


def salt(key: dict[str, Any]) -> str:
    return f"@{key['cache_salt']}" if key["cache_salt"] else ""
