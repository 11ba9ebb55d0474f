"""A tenant that is over its rate is told to slow down, and when to come again; others notice nothing."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from kvgate.auth import sigv4
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.chunks import SPACE
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.s3.clients import s3_client
from tests.wire import send

MiB = 1 << 20
BUCKET = "shared-name"
AS_BETA = sigv4.Credential(BETA.access_key, BETA.secret_key)
StartGateway = Callable[..., RunningGateway]


def tenants(**rate: Any) -> dict[str, Any]:
    """Alpha with a rate, beta without."""
    alpha: dict[str, Any] = {"access_keys": [ALPHA.as_config()], "buckets": [BUCKET], "rate": rate}
    return {"alpha": alpha, "beta": {"access_keys": [BETA.as_config()], "buckets": [BUCKET]}}


def refusals(gateway: RunningGateway, reason: str) -> float:
    return gateway.metrics()[f'kvgate_refusals_total{{reason="{reason}"}}']


def test_requests_over_the_rate_are_told_when_to_come_again(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(requests=0.05, burst="60s"))  # three at once, and then one in 20 s
    for _ in range(2):
        assert send(gateway, "GET", f"/{BUCKET}")[0] == 200
    assert send(gateway, "GET", "/_kv/v1/stats")[0] == 200
    status, headers, body = send(gateway, "GET", f"/{BUCKET}")
    assert (status, b"<Code>SlowDown</Code>" in body) == (503, True)
    assert 10 <= int(headers["retry-after"]) <= 20
    status, headers, body = send(gateway, "GET", "/_kv/v1/stats")
    assert (status, b'"code":"SlowDown"' in body) == (503, True)
    assert 10 <= int(headers["retry-after"]) <= 20
    for _ in range(20):
        assert send(gateway, "GET", f"/{BUCKET}", credential=AS_BETA)[0] == 200
    assert refusals(gateway, "requests") == 2


def test_an_object_larger_than_the_burst_is_read_once_and_then_paid_for(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(read_bytes="64KiB"))
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as alpha:
        alpha.put(BUCKET, "large", bytes(MiB))
        assert alpha.get(BUCKET, "large").body == bytes(MiB)
        for start, stop in ((0, MiB), (0, 1)):
            with pytest.raises(GatewayError) as raised:
                alpha.get(BUCKET, "large", start=start, stop=stop)
            assert (raised.value.status, raised.value.code) == (503, "SlowDown")
        assert alpha.head(BUCKET, "large").nbytes == MiB, "what carries no body needs no bytes"
        alpha.put(BUCKET, "other", bytes(MiB))
    assert refusals(gateway, "read_bytes") == 2


def test_a_refused_upload_is_not_asked_for_its_body(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(write_bytes="1KiB"))
    before = {"content-length": "40000"}
    assert send(gateway, "PUT", f"/{BUCKET}/first", before, bytes(40_000))[0] == 200
    status, headers, _ = send(gateway, "PUT", f"/{BUCKET}/second", before | {"expect": "100-continue"}, b"")
    assert (status, int(headers["retry-after"]) > 20) == (503, True)
    assert send(gateway, "PUT", f"/{BUCKET}/empty", {"content-length": "0"})[0] == 503, "the debt is still open"


def test_calls_pay_for_the_chunks_that_they_move(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(read_bytes="1KiB", write_bytes="1KiB"))
    name = hashlib.sha256(b"a chunk").digest()
    chunk = ChunkHeader.encode(SPACE, name, bytes(32), 0) + bytes(SPACE.layout.nbytes)
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as alpha:
        alpha.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        assert alpha.reserve(BUCKET, SPACE.id, name, bytes(32), 0).name
        with pytest.raises(GatewayError, match="SlowDown"):
            alpha.put(BUCKET, str(ChunkKey(SPACE.id, name.hex())), chunk)
        with pytest.raises(GatewayError, match="SlowDown"):
            alpha.reserve(BUCKET, SPACE.id, bytes(32), bytes(32), 0)
        assert alpha.match(BUCKET, SPACE.id, [name]).matched == 0
    with Client(gateway.url, BETA.access_key, BETA.secret_key) as beta:
        beta.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        beta.put(BUCKET, str(ChunkKey(SPACE.id, name.hex())), chunk)
    gateway.stop()
    gateway.config["tenants"]["beta"]["rate"] = {"read_bytes": "1KiB"}
    gateway.start()
    with Client(gateway.url, BETA.access_key, BETA.secret_key) as beta:
        assert beta.read_chunks(BUCKET, SPACE.id, [name])[0].body == chunk
        with pytest.raises(GatewayError, match="SlowDown"):
            beta.read_chunks(BUCKET, SPACE.id, [name])


def test_copies_are_written_too(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(write_bytes="1KiB"))
    assert send(gateway, "PUT", f"/{BUCKET}/first", {"content-length": "1000"}, bytes(1000))[0] == 200
    copy = {"x-amz-copy-source": f"/{BUCKET}/first", "content-length": "0"}
    statuses = [send(gateway, "PUT", f"/{BUCKET}/copy-{number}", copy)[0] for number in range(40)]
    assert 503 in statuses


def test_who_shares_with_everyone_pays_for_everyone(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(requests=0.01, burst="300s"), unsigned_tenant="alpha")
    unsigned = f"http://127.0.0.1:{gateway.port}/{BUCKET}/public"
    acl = {"content-length": "4", "x-amz-acl": "public-read"}
    assert send(gateway, "PUT", f"/{BUCKET}/public", acl, b"four")[0] == 200
    for path, statuses in ((f"{unsigned}-not", {403}), (unsigned, {200, 503})):
        seen = {fetch(path) for _ in range(8)}
        assert seen == statuses, "what is refused anyway costs the owner nothing"


def fetch(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_boto3_gets_through_slowly_and_another_tenant_is_not_held_up(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tenants=tenants(write_bytes="8MiB"))
    body = bytes(range(256)) * (40 * MiB // 256)
    client = s3_client(gateway, ALPHA, retries={"mode": "standard", "total_max_attempts": 12})
    puts = 0
    done = threading.Event()

    def go_on_as_beta() -> None:
        nonlocal puts
        beta = s3_client(gateway, BETA)  # which never tries twice: one refusal would end it
        while not done.is_set():
            beta.put_object(Bucket=BUCKET, Key=f"key-{puts % 8}", Body=bytes(64 << 10))
            puts += 1

    other = threading.Thread(target=go_on_as_beta)
    other.start()
    began = time.monotonic()
    try:
        transfer = TransferConfig(multipart_threshold=8 * MiB, multipart_chunksize=8 * MiB, max_concurrency=2)
        client.upload_fileobj(io.BytesIO(body), BUCKET, "large", Config=transfer)
    finally:
        took_s = time.monotonic() - began
        done.set()
        other.join()
    assert client.get_object(Bucket=BUCKET, Key="large")["Body"].read() == body
    assert refusals(gateway, "write_bytes") > 0
    assert took_s > 2.5, "40 MiB at 8 MiB a second, of which a burst and the last part come at once"
    assert puts >= 10
