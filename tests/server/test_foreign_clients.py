"""Clients of other KV systems at a real gateway: their keys stay as they are, and their runs are recognised."""

from __future__ import annotations

import io
import json
import os
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import quote

import pytest
from awscrt.auth import AwsCredentialsProvider
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType, create_default_s3_signing_config

from kvgate.auth.sigv4 import Credential
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.s3.clients import s3_client
from tests.wire import send

MiB = 1 << 20
MODEL = "meta-llama/Llama-3.1-8B"
BUCKET = "shared-name"
ALPHA_CREDENTIAL = Credential(ALPHA.access_key, ALPHA.secret_key)
BETA_CREDENTIAL = Credential(BETA.access_key, BETA.secret_key)
LMCACHE_RANGE = {"range": "bytes=0-8388607"}

KEYS = {
    "lmcache": [f"meta-llama_Llama-3.1-8B@1@0@{number:x}@bfloat16@user%a b" for number in range(3)],
    "lmcache-mp": [f"{MODEL}@01000100@0@{number:064x}@salt-ü" for number in range(3)],
    "vllm": [
        f"cache/meta-llama_Llama-3.1-8B_0123456789ab_r0/{number:03x}/00_g0/{number:03x}{'0' * 61}.bin"
        for number in range(3)
    ],
    "sglang": [f"{number:064x}_meta-llama-Llama-3.1-8B_0_1_k" for number in range(3)],
    "nixl": [f"meta-llama_Llama-3.1-8B_1_0_{number:x}_bfloat16_user%25a%2520b" for number in range(3)],
}
MODELS = {
    "lmcache": "meta-llama_Llama-3.1-8B",
    "lmcache-mp": MODEL,
    "vllm": "meta-llama_Llama-3.1-8B",
    "sglang": "meta-llama-Llama-3.1-8B",
    "nixl": "meta-llama_Llama-3.1-8B",
}


def key(number: int) -> str:
    return f"{MODEL}@01000100@0@{number:064x}"


def path(name: str, bucket: str = BUCKET) -> str:
    return f"/{bucket}/{quote(name)}"


def head(gateway: RunningGateway, name: str, credential: Credential = ALPHA_CREDENTIAL) -> int:
    status, headers, _ = send(gateway, "HEAD", path(name), credential=credential)
    return int(headers["content-length"]) if status == 200 else -status


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def prefetched(gateway: RunningGateway) -> float:
    return gateway.metrics()["kvgate_prefetched_objects_total"]


def asked(gateway: RunningGateway, system: str, model: str, result: str, method: str = "HEAD") -> float:
    labels = f'method="{method}",model="{model}",result="{result}",system="{system}"'
    return gateway.metrics().get(f"kvgate_model_requests_total{{{labels}}}", 0.0)


def fill(gateway: RunningGateway, count: int, nbytes: int, credential: Credential = ALPHA_CREDENTIAL) -> list[bytes]:
    """Objects of one run."""
    bodies = [os.urandom(nbytes) for _ in range(count)]
    length = {"content-length": str(nbytes)}
    for number, body in enumerate(bodies):
        assert send(gateway, "PUT", path(key(number)), length, body, credential=credential)[0] == 200
    return bodies


@pytest.mark.parametrize("system", KEYS)
def test_foreign_keys_are_stored_untouched(gateway: RunningGateway, system: str) -> None:
    client = s3_client(gateway)
    bodies = {name: os.urandom(5000) for name in KEYS[system]}
    hits, misses = (asked(gateway, system, MODELS[system], result) for result in ("hit", "miss"))
    read = asked(gateway, system, MODELS[system], "hit", "GET")
    for name, body in bodies.items():
        assert head(gateway, name) == -404
        client.put_object(Bucket=BUCKET, Key=name, Body=body)
        assert head(gateway, name) == 5000
    listed = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert [name for name in listed if name in bodies] == sorted(bodies)
    for name, body in bodies.items():
        assert client.get_object(Bucket=BUCKET, Key=name)["Body"].read() == body
    assert asked(gateway, system, MODELS[system], "hit") == hits + 3
    assert asked(gateway, system, MODELS[system], "miss") == misses + 3
    assert asked(gateway, system, MODELS[system], "hit", "GET") == read + 3


def test_heads_in_order_bring_objects_to_memory_before_their_gets(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    bodies = fill(gateway, 12, MiB)
    gateway.restart()
    for number in range(12):
        assert head(gateway, key(number)) == MiB
    assert head(gateway, key(12)) == -404
    until(lambda: prefetched(gateway) == 12)
    for number, body in enumerate(bodies):
        status, headers, got = send(gateway, "GET", path(key(number)), LMCACHE_RANGE)
        assert (status, headers["content-range"]) == (206, f"bytes 0-{MiB - 1}/{MiB}")
        assert got == body
    metrics = gateway.metrics()
    assert metrics['kvgate_reads_total{tier="host"}'] == 12
    assert 'kvgate_reads_total{tier="disk"}' not in metrics
    assert metrics["kvgate_prefetch_useful_objects_total"] == 12
    assert metrics["kvgate_prefetch_unread_bytes"] == 0
    assert metrics["kvgate_run_keys"] == 13
    assert asked(gateway, "lmcache-mp", MODEL, "hit") == 12
    assert asked(gateway, "lmcache-mp", MODEL, "miss") == 1


def test_lmcaches_own_s3_client_finds_everything_in_memory(start_gateway: Callable[..., RunningGateway]) -> None:
    """Multipart PUTs, and GETs in ranges with If-Match, as they come from the AWS Common Runtime."""
    gateway = start_gateway()
    nbytes, bodies = 20 * MiB, [os.urandom(20 * MiB) for _ in range(3)]
    crt = Crt(gateway)
    for number, body in enumerate(bodies):
        crt.put(path(key(number)), body)
    metrics = gateway.metrics()
    assert metrics['kvgate_requests_total{operation="CompleteMultipartUpload",status="200"}'] == 3
    assert metrics["kvgate_run_keys"] == 3, "completed uploads teach the order; their parts are no keys of a run"
    gateway.restart()
    crt = Crt(gateway)
    for number in range(3):
        assert head(gateway, key(number)) == nbytes
    until(lambda: prefetched(gateway) == 3)
    for number, body in enumerate(bodies):
        assert crt.get(path(key(number))) == body
    metrics = gateway.metrics()
    ranges = metrics['kvgate_requests_total{operation="GetObject",status="206"}']
    assert ranges >= 6, "several ranges each"
    assert metrics['kvgate_reads_total{tier="host"}'] == ranges
    assert 'kvgate_reads_total{tier="disk"}' not in metrics


def test_head_needs_no_disk(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"prefetch": {"share": 0}})
    fill(gateway, 3, MiB)
    gateway.restart()
    (gateway.disk / "objects").rename(gateway.disk / "elsewhere")
    for number in range(3):
        assert head(gateway, key(number)) == MiB
    assert not [name for name in gateway.metrics() if name.startswith("kvgate_reads_total{")]
    assert send(gateway, "GET", path(key(0)))[0] == 404, "the objects are really out of reach"


def test_prefetched_objects_take_their_share_of_memory_and_no_more(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "32MiB", "segment": "4MiB"}})
    bodies = fill(gateway, 24, MiB)
    gateway.restart()
    for number in range(24):
        assert head(gateway, key(number)) == MiB
    until(lambda: prefetched(gateway) == 8)
    time.sleep(0.2)
    metrics = gateway.metrics()
    assert metrics["kvgate_prefetch_unread_bytes"] == metrics['kvgate_tier_used_bytes{tier="host"}'] == 8 * MiB
    for number, body in enumerate(bodies):
        until(lambda number=number: prefetched(gateway) > number)  # type: ignore[misc]
        assert send(gateway, "GET", path(key(number)), LMCACHE_RANGE)[2] == body
    assert gateway.metrics()["kvgate_prefetch_useful_objects_total"] == 24


def test_one_tenants_requests_lead_to_nothing_of_another(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    for credential in (ALPHA_CREDENTIAL, BETA_CREDENTIAL):
        fill(gateway, 8, MiB, credential)
    gateway.restart()
    for _ in range(3):
        for number in range(8):
            assert head(gateway, key(number)) == MiB
    until(lambda: prefetched(gateway) == 8)
    assert head(gateway, key(0), BETA_CREDENTIAL) == MiB
    until(lambda: prefetched(gateway) == 9)
    time.sleep(0.2)
    assert prefetched(gateway) == 9, "beta has not named what follows"
    for number in range(8):
        assert send(gateway, "GET", path(key(number)), LMCACHE_RANGE, credential=BETA_CREDENTIAL)[0] == 206
    until(lambda: gateway.metrics()["kvgate_prefetch_unread_bytes"] == 8 * MiB)
    assert gateway.metrics()["kvgate_prefetch_useful_objects_total"] == 1


def test_who_reads_anothers_bucket_is_led_to_nothing_that_they_have_not_named(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    fill(gateway, 8, MiB)
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    s3_client(gateway).put_bucket_policy(Bucket=BUCKET, Policy=policy)
    gateway.restart()
    for _ in range(3):
        for number in range(1, 8):
            assert head(gateway, key(number)) == MiB
    until(lambda: prefetched(gateway) == 7)
    for number in range(1, 8):
        send(gateway, "GET", path(key(number)))
    shared = path(key(0), f"alpha_{BUCKET}")
    with urllib.request.urlopen(f"{gateway.url}{shared}") as answer:
        assert answer.read(1) != b""
    assert prefetched(gateway) == 7
    assert gateway.metrics()["kvgate_run_keys"] == 7, "unsigned requests teach nothing"
    assert send(gateway, "HEAD", shared, credential=BETA_CREDENTIAL)[0] == 200
    assert gateway.metrics()["kvgate_run_keys"] == 8, "beta's and alpha's are apart"


def test_models_beyond_the_limit_are_counted_together(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"prefetch": {"models": 2}})
    for number in range(5):
        assert head(gateway, f"model-{number}@1@0@{number}@half") == -404
        assert send(gateway, "GET", path(f"model-{number}@1@0@{number}@half"))[0] == 404
    for method in ("HEAD", "GET"):
        models = [*[f"model-{number}" for number in range(5)], "other"]
        assert [asked(gateway, "lmcache", model, "miss", method) for model in models] == [1, 1, 0, 0, 0, 3]


class Crt:
    """The AWS Common Runtime's S3 client as LMCache makes it."""

    def __init__(self, gateway: RunningGateway) -> None:
        credentials = AwsCredentialsProvider.new_static(ALPHA.access_key, ALPHA.secret_key)
        group = EventLoopGroup(1)
        self._client = S3Client(
            bootstrap=ClientBootstrap(group, DefaultHostResolver(group)),
            region="us-east-1",
            tls_mode=S3RequestTlsMode.DISABLED,
            signing_config=create_default_s3_signing_config(region="us-east-1", credential_provider=credentials),
        )
        self._host = f"127.0.0.1:{gateway.port}"

    def put(self, path: str, body: bytes) -> None:
        headers = HttpHeaders([("host", self._host), ("content-length", str(len(body)))])
        request = HttpRequest("PUT", path, headers, body_stream=io.BytesIO(body))
        self._client.make_request(request=request, type=S3RequestType.PUT_OBJECT).finished_future.result(60)

    def get(self, path: str) -> bytes:
        pieces: dict[int, bytes] = {}
        self._client.make_request(
            request=HttpRequest("GET", path, HttpHeaders([("host", self._host)])),
            type=S3RequestType.GET_OBJECT,
            on_body=lambda chunk, offset, **_: pieces.__setitem__(offset, chunk),
        ).finished_future.result(60)
        return b"".join(pieces[offset] for offset in sorted(pieces))
