"""A gateway with the native plane answers as one without it, from the request on that follows a change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.gateways import BETA, RunningGateway, default_config
from tests.s3.clients import refused, s3_client
from tests.server.test_retention import ask_kv
from tests.wire import send

pytest.importorskip("kvgate.native", reason="the native extension was not built")

DENY = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::%s/*"}
LIFECYCLE = {"Rules": [{"ID": "soon", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}}]}
BUCKET = "published"
HOT = 4
"""Reads after which the plane would answer, if it may."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("plane")
    running = RunningGateway(folder, default_config(folder)).start()
    yield running
    running.kill()


@pytest.fixture
def client(plane: RunningGateway) -> Iterator[Any]:
    """With an empty bucket of its own, for each test anew."""
    client = s3_client(plane)
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.delete_bucket_policy(Bucket=BUCKET)
    for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=each["Key"])
    client.delete_bucket(Bucket=BUCKET)


def read(client: Any, key: str = "key") -> bytes:
    body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert client.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == len(body)
    return body


def published(plane: RunningGateway) -> int:
    return int(plane.metrics()["kvgate_published_objects"])


def make_hot(plane: RunningGateway, client: Any, body: bytes = b"body") -> None:
    """Put an object, and read it until the plane answers."""
    before = plane.metrics()["kvgate_plane_requests_total"]
    client.put_object(Bucket=BUCKET, Key="key", Body=body)
    for _ in range(HOT):
        assert read(client) == body
    assert published(plane) == 1
    assert plane.metrics()["kvgate_plane_requests_total"] > before


def test_overwritten_object_is_the_new_one(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    for number in range(20):
        body = b"%d" % number * (number * 20_000 + 1)
        client.put_object(Bucket=BUCKET, Key="key", Body=body, Metadata={"number": str(number)})
        assert read(client) == read(client) == body
        assert client.head_object(Bucket=BUCKET, Key="key")["Metadata"] == {"number": str(number)}


def test_deleted_object_is_gone(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    client.delete_object(Bucket=BUCKET, Key="key")
    assert refused(client.get_object, Bucket=BUCKET, Key="key") == ("NoSuchKey", 404)
    assert published(plane) == 0


def test_tags_change_the_description(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    client.put_object_tagging(Bucket=BUCKET, Key="key", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    for _ in range(HOT):
        assert client.head_object(Bucket=BUCKET, Key="key")["TagCount"] == 1


def test_policy_denies_from_the_next_request_on(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    statement = DENY | {"Resource": DENY["Resource"] % BUCKET}  # type: ignore[operator]
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert refused(client.get_object, Bucket=BUCKET, Key="key") == ("AccessDenied", 403)
    client.delete_bucket_policy(Bucket=BUCKET)
    for _ in range(HOT):
        assert read(client) == b"body"
    assert published(plane) == 1


def test_lifecycle_of_the_bucket_is_told(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=LIFECYCLE)
    for _ in range(HOT):
        assert 'rule-id="soon"' in client.head_object(Bucket=BUCKET, Key="key")["Expiration"]
    client.delete_bucket_lifecycle(Bucket=BUCKET)
    assert "Expiration" not in client.head_object(Bucket=BUCKET, Key="key")


def test_object_is_gone_the_moment_it_ends(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    assert ask_kv(plane, "/_kv/v1/retain", {"bucket": BUCKET, "keys": ["key"], "ttl_s": 1})["states"] == ["done"]
    ends_at = time.time() + 1
    began = 0.0
    while began < ends_at:
        began = time.time()
        status = send(plane, "GET", f"/{BUCKET}/key")[0]
    assert status == 404


def test_nobody_else_gets_it(plane: RunningGateway, client: Any) -> None:
    make_hot(plane, client)
    other = s3_client(plane, BETA)
    for name, error in ((BUCKET, "NoSuchBucket"), (f"alpha_{BUCKET}", "AccessDenied")):
        assert refused(other.get_object, Bucket=name, Key="key")[0] == error
    other.create_bucket(Bucket=BUCKET)
    assert refused(other.get_object, Bucket=BUCKET, Key="key") == ("NoSuchKey", 404)
    other.delete_bucket(Bucket=BUCKET)
    assert send(plane, "GET", f"/{BUCKET}/key", {"range": "bytes=1-2"})[2] == b"od"


@pytest.mark.parametrize("range_", [None, "bytes=0-0", "bytes=1048570-1048590", "bytes=-5", "bytes=2000000-"])
def test_ranges_are_the_same_hot_or_cold(plane: RunningGateway, client: Any, range_: str | None) -> None:
    body = bytes(range(256)) * 12_000
    client.put_object(Bucket=BUCKET, Key="key", Body=body)
    asked = {"Range": range_} if range_ else {}

    def answer() -> tuple[bytes, dict[str, Any]]:
        got = client.get_object(Bucket=BUCKET, Key="key", ChecksumMode="ENABLED", **asked)
        found = dict(got["ResponseMetadata"]["HTTPHeaders"])
        del found["date"], found["x-amz-request-id"]
        return got["Body"].read(), found

    cold = answer()
    for _ in range(HOT):
        assert answer() == cold


def test_what_was_answered_is_counted_once(plane: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="key", Body=b"body")
    before = plane.answered("GetObject"), plane.answered("HeadObject")
    reads = plane.metrics()['kvgate_reads_total{tier="host"}']
    sent = plane.metrics()["kvgate_sent_bytes_total"]
    for _ in range(10):
        read(client)
    assert (plane.answered("GetObject"), plane.answered("HeadObject")) == (before[0] + 10, before[1] + 10)
    assert plane.metrics()['kvgate_reads_total{tier="host"}'] == reads + 10
    assert plane.metrics()["kvgate_sent_bytes_total"] == sent + 40


def test_a_stop_answers_what_is_under_way_and_gives_all_memory_back(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    client.put_object(Bucket="alpha-bucket", Key="key", Body=bytes(3 << 20))
    for _ in range(HOT):
        client.get_object(Bucket="alpha-bucket", Key="key")["Body"].read()
    assert published(gateway) == 1
    slow = client.get_object(Bucket="alpha-bucket", Key="key")["Body"]
    assert gateway.process is not None
    gateway.process.terminate()
    assert len(slow.read()) == 3 << 20
    assert gateway.process.wait(60) == 0
    assert "never released" not in gateway.log
    assert "Traceback" not in gateway.log
