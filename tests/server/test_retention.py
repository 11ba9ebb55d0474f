"""Lifetimes and pins as S3 clients and `retain` set them, across restarts and the gateway's sudden death."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kvgate.auth.sigv4 import Credential
from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import CREDENTIAL, send

BUCKET = "alpha-bucket"
MiB = 1 << 20


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask_kv(
    gateway: RunningGateway, path: str, members: dict[str, Any] | None = None, credential: Credential = CREDENTIAL
) -> Any:
    body = b"" if members is None else json.dumps(members).encode()
    method, headers = ("GET", {}) if members is None else ("POST", {"content-length": str(len(body))})
    return json.loads(send(gateway, method, path, headers, body, credential=credential)[2])


def keys(client: Any, prefix: str) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def test_a_lifetime_goes_with_a_put_of_any_s3_client(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    put = client.put_object(Bucket=BUCKET, Key="ttl/short", Body=b"x", Metadata={"kvgate-ttl": "1500ms"})
    assert put["Expiration"].endswith('rule-id="kvgate-ttl"')
    client.put_object(Bucket=BUCKET, Key="ttl/long", Body=b"x", Metadata={"kvgate-ttl": "1h"})
    head = client.head_object(Bucket=BUCKET, Key="ttl/short")
    assert (head["Expiration"], head["Metadata"]) == (put["Expiration"], {"kvgate-ttl": "1500ms"})
    wait_until(lambda: keys(client, "ttl/") == ["ttl/long"])
    for call in (client.get_object, client.head_object):
        assert refused(call, Bucket=BUCKET, Key="ttl/short")[1] == 404
    wait_until(lambda: gateway.metrics()["kvgate_expired_objects_total"] >= 1)


def test_a_lifetime_goes_with_uploads_in_parts_and_copies(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="lifetime-in-parts/1", Metadata={"kvgate-ttl": "2"})[
        "UploadId"
    ]
    time.sleep(2.5)  # the upload itself has no end
    part = client.upload_part(Bucket=BUCKET, Key="lifetime-in-parts/1", UploadId=upload, PartNumber=1, Body=b"x" * 100)
    client.complete_multipart_upload(
        Bucket=BUCKET,
        Key="lifetime-in-parts/1",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert "kvgate-ttl" in client.head_object(Bucket=BUCKET, Key="lifetime-in-parts/1")["Expiration"]
    source = {"Bucket": BUCKET, "Key": "lifetime-in-parts/1"}
    client.copy_object(Bucket=BUCKET, Key="lifetime-in-parts/2", CopySource=source)
    client.copy_object(
        Bucket=BUCKET, Key="lifetime-in-parts/3", CopySource=source, MetadataDirective="REPLACE", Metadata={}
    )
    wait_until(lambda: keys(client, "lifetime-in-parts/") == ["lifetime-in-parts/3"])


@pytest.mark.parametrize("text", ["0", "soon", "-5", "1e99"])
def test_a_lifetime_that_is_none_is_refused(gateway: RunningGateway, text: str) -> None:
    client = s3_client(gateway)
    answer = refused(client.put_object, Bucket=BUCKET, Key="ttl/bad", Body=b"x", Metadata={"kvgate-ttl": text})
    assert answer == ("InvalidArgument", 400)


def test_pins_and_ends_that_were_answered_survive_sigkill(start_gateway: Callable[..., RunningGateway]) -> None:
    """Two threads pin and unpin their keys until the gateway dies; what was answered last holds afterwards."""
    gateway = start_gateway(store={"ack": "disk"})
    client = s3_client(gateway)
    names = [f"k{number}" for number in range(8)]
    for name in names:
        client.put_object(Bucket=BUCKET, Key=name, Body=b"x")
    answered: dict[str, str] = {}
    asked: dict[str, str] = {}
    for round_ in range(8):
        dying = threading.Event()

        def pin(first: int, dying: threading.Event = dying) -> None:
            number = first
            while not dying.is_set():
                name = names[number % len(names)]
                asked[name] = "hard" if asked.get(name) != "hard" else "none"
                try:
                    answer = ask_kv(gateway, "/_kv/v1/retain", {"bucket": BUCKET, "keys": [name], "pin": asked[name]})
                except (OSError, ValueError):
                    return
                assert answer["states"] == ["done"]
                answered[name] = asked[name]
                number += 2

        threads = [threading.Thread(target=pin, args=(first,)) for first in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.1 + 0.05 * round_)
        gateway.kill()
        dying.set()
        for thread in threads:
            thread.join()
        gateway.start()
        for name in names:
            pinned = _is_pinned(gateway, name)
            wanted = {answered.get(name, "none"), asked.get(name, "none")}  # the last one may not have been answered
            assert ("hard" if pinned else "none") in wanted
            asked[name] = answered[name] = "hard" if pinned else "none"
    assert len(answered) == len(names)


def test_what_ended_or_was_to_stay_is_so_after_sigkill(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"ack": "disk"}, tiers={"host": {"capacity": "8MiB"}})
    client = s3_client(gateway)
    client.put_object(Bucket=BUCKET, Key="put", Body=b"x", Metadata={"kvgate-ttl": "2"})
    client.put_object(Bucket=BUCKET, Key="r/1", Body=b"x")
    client.put_object(Bucket=BUCKET, Key="called", Body=b"x")
    client.put_object(Bucket=BUCKET, Key="never", Body=b"x", Metadata={"kvgate-ttl": "2"})
    for members in ({"prefix": "r/", "ttl_s": 2}, {"keys": ["called"], "ttl_s": 2}, {"keys": ["never"], "ttl_s": 0}):
        ask_kv(gateway, "/_kv/v1/retain", {"bucket": BUCKET, **members})
    gateway.kill()
    time.sleep(2.1)
    gateway.start()
    assert keys(client, "") == ["never"]
    wait_until(lambda: ask_kv(gateway, "/_kv/v1/stats")["objects"] == 1)
    gateway.restart()
    assert keys(client, "") == ["never"]
    assert "Expiration" not in client.head_object(Bucket=BUCKET, Key="never")


def test_another_tenants_pins_stay_its_own(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    client.put_object(Bucket=BUCKET, Key="mine", Body=b"x")
    asked = {"bucket": "alpha_alpha-bucket", "keys": ["mine"], "pin": "hard"}
    beta = Credential(BETA.access_key, BETA.secret_key)
    assert ask_kv(gateway, "/_kv/v1/retain", asked, beta)["code"] == "NoSuchBucket"
    assert not _is_pinned(gateway, "mine")


def _is_pinned(gateway: RunningGateway, key: str) -> bool:
    (found,) = ask_kv(gateway, "/_kv/v1/explain", {"bucket": BUCKET, "keys": [key]})["objects"]
    return bool(found["pin"] == "hard")
