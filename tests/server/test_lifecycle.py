"""Lifecycle rules on a gateway whose days have a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chunks import SPACE, chunk
from tests.gateways import BETA, RunningGateway, default_config
from tests.s3.clients import refused, s3_client

BUCKET = "alpha-bucket"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("lifecycle")
    config = default_config(folder)
    config["store"] = {"lifecycle_day": "1s", "lifecycle_interval": "100ms", "min_part": "1KiB"}
    gateway = RunningGateway(folder, config).start()
    yield gateway
    gateway.kill()


def rule(id: str, days: int, **scope: Any) -> dict[str, Any]:
    return {"ID": id, "Status": "Enabled", "Filter": scope, "Expiration": {"Days": days}}


def set_rules(client: Any, *rules: dict[str, Any]) -> None:
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": list(rules)})


def keys(client: Any, prefix: str) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_objects_expire_by_prefix_tag_size_and_age(fast: RunningGateway) -> None:
    client = s3_client(fast)
    for key, tags in (("p/old", ""), ("p/keep/x", ""), ("q/tagged", "ttl=short&a=b"), ("q/other", "ttl=long")):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * 10, Tagging=tags)
    client.put_object(Bucket=BUCKET, Key="s/large", Body=b"x" * 5000)
    client.put_object(Bucket=BUCKET, Key="s/small", Body=b"x" * 50)
    s3_client(fast, BETA).put_object(Bucket="beta-bucket", Key="p/old", Body=b"x")
    before = fast.metrics()["kvgate_expired_objects_total"]
    set_rules(
        client,
        rule("prefix", 1, Prefix="p/"),
        rule("tag", 1, Tag={"Key": "ttl", "Value": "short"}),
        rule("size", 1, And={"Prefix": "s/", "ObjectSizeGreaterThan": 1000}),
        {**rule("off", 1, Prefix="q/"), "Status": "Disabled"},
        rule("later", 1000, Prefix="q/"),
    )
    wait_until(lambda: keys(client, "") == ["q/other", "s/small"])
    assert fast.metrics()["kvgate_expired_objects_total"] - before == 4
    assert s3_client(fast, BETA).get_object(Bucket="beta-bucket", Key="p/old")["Body"].read() == b"x"


def test_what_is_written_anew_begins_to_age_again(fast: RunningGateway) -> None:
    client = s3_client(fast)
    set_rules(client, rule("three", 3, Prefix="again/"))
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        client.put_object(Bucket=BUCKET, Key="again/k", Body=str(time.monotonic()).encode())
        time.sleep(0.5)
    assert keys(client, "again/") == ["again/k"]
    wait_until(lambda: keys(client, "again/") == [])


def test_answers_say_when_an_object_expires(fast: RunningGateway) -> None:
    client = s3_client(fast)
    set_rules(client, rule("long and late", 5000, Prefix="told/"), rule("sooner", 1000, Prefix="told/s"))
    put = client.put_object(Bucket=BUCKET, Key="told/k", Body=b"x")
    assert put["Expiration"].endswith('rule-id="long%20and%20late"')
    assert client.get_object(Bucket=BUCKET, Key="told/k")["Expiration"] == put["Expiration"]
    assert client.head_object(Bucket=BUCKET, Key="told/k")["Expiration"] == put["Expiration"]
    assert client.put_object(Bucket=BUCKET, Key="told/s", Body=b"x")["Expiration"].endswith('rule-id="sooner"')
    assert "Expiration" not in client.put_object(Bucket=BUCKET, Key="untold", Body=b"x")


def test_unfinished_uploads_are_given_up(fast: RunningGateway) -> None:
    client = s3_client(fast)
    abort = {"DaysAfterInitiation": 1}
    set_rules(
        client,
        {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": "up/"}, "AbortIncompleteMultipartUpload": abort},
    )
    gone = client.create_multipart_upload(Bucket=BUCKET, Key="up/1")["UploadId"]
    client.upload_part(Bucket=BUCKET, Key="up/1", UploadId=gone, PartNumber=1, Body=b"x" * 2000)
    kept = client.create_multipart_upload(Bucket=BUCKET, Key="other")["UploadId"]
    wait_until(lambda: len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])) == 1)
    assert refused(client.list_parts, Bucket=BUCKET, Key="up/1", UploadId=gone) == ("NoSuchUpload", 404)
    client.abort_multipart_upload(Bucket=BUCKET, Key="other", UploadId=kept)


def test_manifests_stay_and_chunks_go(fast: RunningGateway) -> None:
    client = s3_client(fast)
    client.put_object(Bucket=BUCKET, Key=f"kv/{SPACE.id}/manifest.json", Body=SPACE.canonical_json())
    key, body = chunk()
    client.put_object(Bucket=BUCKET, Key=key, Body=body)
    set_rules(client, rule("kv", 1, Prefix="kv/"))
    wait_until(lambda: keys(client, "kv/") == [f"kv/{SPACE.id}/manifest.json"])


def test_rules_come_back_as_they_were_set_and_survive_a_restart(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"lifecycle_day": "2s", "lifecycle_interval": "100ms"})
    client = s3_client(gateway)
    assert refused(client.get_bucket_lifecycle_configuration, Bucket=BUCKET) == ("NoSuchLifecycleConfiguration", 404)
    wanted = rule("r", 1, And={"Prefix": "p/", "Tags": [{"Key": "a", "Value": "b"}]})
    set_rules(client, wanted)
    client.put_object(Bucket=BUCKET, Key="p/k", Body=b"x", Tagging="a=b")
    gateway.restart()
    assert client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"] == [wanted]
    wait_until(lambda: keys(client, "p/") == [])
    gateway.restart()
    assert keys(client, "p/") == []
    client.delete_bucket_lifecycle(Bucket=BUCKET)
    assert refused(client.get_bucket_lifecycle_configuration, Bucket=BUCKET) == ("NoSuchLifecycleConfiguration", 404)
    for transition in ({"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]},):
        bad = {"ID": "t", "Status": "Enabled", "Filter": {"Prefix": ""}, **transition}
        answer = refused(
            client.put_bucket_lifecycle_configuration, Bucket=BUCKET, LifecycleConfiguration={"Rules": [bad]}
        )
        assert answer == ("NotImplemented", 501)
