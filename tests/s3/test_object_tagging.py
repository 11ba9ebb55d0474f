"""The tags of an object as boto3 sees them, against a running gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvgate.chunk.key import ManifestKey
from tests.chunks import SPACE, chunk
from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"
MiB = 1 << 20

Start = Callable[..., RunningGateway]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


def tagging(**tags: str) -> Any:
    return {"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}


def put_tags(client: Any, key: str, **tags: str) -> Any:
    return client.put_object_tagging(Bucket=BUCKET, Key=key, Tagging=tagging(**tags))


def tags(client: Any, key: str) -> dict[str, str]:
    found = client.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def head(client: Any, key: str) -> Any:
    answer = client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    del answer["ResponseMetadata"]
    answer.pop("TagCount", None)
    return answer


def test_tags_are_set_replaced_and_deleted_and_nothing_else_changes(client: Any) -> None:
    sent = {"Metadata": {"a": "1"}, "ContentType": "a/b", "ACL": "public-read", "ChecksumAlgorithm": "SHA256"}
    client.put_object(Bucket=BUCKET, Key="tags/one", Body=b"body", Tagging="first=1", **sent)
    before, acl = head(client, "tags/one"), client.get_object_acl(Bucket=BUCKET, Key="tags/one")["Grants"]
    assert tags(client, "tags/one") == {"first": "1"}
    time.sleep(1.1)  # Last-Modified has seconds
    put_tags(client, "tags/one", k1="v 1", k2="", **{"ü:/=+-@": "漢字"})
    assert tags(client, "tags/one") == {"k1": "v 1", "k2": "", "ü:/=+-@": "漢字"}
    assert client.get_object(Bucket=BUCKET, Key="tags/one")["TagCount"] == 3
    assert client.delete_object_tagging(Bucket=BUCKET, Key="tags/one")["ResponseMetadata"]["HTTPStatusCode"] == 204
    client.delete_object_tagging(Bucket=BUCKET, Key="tags/one")
    assert tags(client, "tags/one") == {}
    assert "TagCount" not in client.get_object(Bucket=BUCKET, Key="tags/one")
    put_tags(client, "tags/one")
    assert head(client, "tags/one") == before
    assert client.get_object_acl(Bucket=BUCKET, Key="tags/one")["Grants"] == acl
    assert client.get_object(Bucket=BUCKET, Key="tags/one")["Body"].read() == b"body"


def test_wrong_tags_are_refused(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="tags/wrong", Body=b"body", Tagging="first=1")
    target = {"Bucket": BUCKET, "Key": "tags/wrong"}
    for wrong in (
        {f"k{number}": "v" for number in range(11)},
        {"k" * 129: "v"},
        {"k": "v" * 257},
        {"aws:k": "v"},
        {"k": "<"},
    ):
        assert refused(client.put_object_tagging, **target, Tagging=tagging(**wrong)) == ("InvalidTag", 400), wrong
    twice = {"TagSet": [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]}
    assert refused(client.put_object_tagging, **target, Tagging=twice) == ("InvalidTag", 400)
    for body in (b"", b"<Tagging/>", b"<Tagging><TagSet><Tag><Key>k</Key></Tag></TagSet></Tagging>", b"{}"):
        status, _, answer = send(gateway, "PUT", f"/{BUCKET}/tags/wrong", body=body, query="tagging",
                                 headers={"content-length": str(len(body))})  # fmt: skip
        assert (status, b"<Code>MalformedXML</Code>" in answer) == (400, True), body
    assert tags(client, "tags/wrong") == {"first": "1"}
    put_tags(client, "tags/wrong", **{f"k{number}": "v" * 256 for number in range(10)})


def test_there_must_be_an_object(gateway: RunningGateway, client: Any) -> None:
    calls = (client.get_object_tagging, client.delete_object_tagging)
    for target, answer in (
        ({"Bucket": BUCKET, "Key": "tags/never"}, ("NoSuchKey", 404)),
        ({"Bucket": "never-made", "Key": "k"}, ("NoSuchBucket", 404)),
    ):
        for call in calls:
            assert refused(call, **target) == answer
        assert refused(client.put_object_tagging, **target, Tagging=tagging(a="1")) == answer
    client.put_object(Bucket=BUCKET, Key="tags/versions", Body=b"x")
    target = {"Bucket": BUCKET, "Key": "tags/versions"}
    for call in calls:
        assert refused(call, **target, VersionId="3") == ("NoSuchVersion", 404)
    client.put_object_tagging(**target, VersionId="null", Tagging=tagging(a="1"))
    assert client.get_object_tagging(**target, VersionId="null")["TagSet"] == tagging(a="1")["TagSet"]
    beta = s3_client(gateway, BETA)
    assert refused(beta.get_object_tagging, Bucket=f"alpha_{BUCKET}", Key="tags/versions") == ("AccessDenied", 403)


def test_tags_of_a_chunk(start_gateway: Start) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    key, body = chunk(1)
    manifest = str(ManifestKey(SPACE.id))
    client.put_object(Bucket=BUCKET, Key=manifest, Body=SPACE.canonical_json())
    client.put_object(Bucket=BUCKET, Key=key, Body=body)
    put_tags(client, key, team="a")
    put_tags(client, manifest, team="b")
    client.put_object(Bucket=BUCKET, Key=key, Body=body)  # the equal body is success, and changes nothing
    gateway.restart()
    client = s3_client(gateway)
    assert (tags(client, key), tags(client, manifest)) == ({"team": "a"}, {"team": "b"})
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
    other, other_body = chunk(2)
    client.put_object(Bucket=BUCKET, Key=other, Body=other_body)


@pytest.mark.parametrize("ack", ["memory", "disk"])
@pytest.mark.parametrize("nbytes", [0, 20 * MiB, 40 * MiB])
def test_tags_of_what_is_on_disk_only_or_larger_than_memory(start_gateway: Start, ack: str, nbytes: int) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "24MiB"}}, store={"window": "4MiB", "ack": ack})
    body = os.urandom(nbytes)
    s3_client(gateway).put_object(Bucket=BUCKET, Key="k", Body=body)
    gateway.restart()
    client = s3_client(gateway)
    before = head(client, "k")
    put_tags(client, "k", a="1")
    if ack == "disk":
        gateway.kill()
        gateway.start()
    else:
        gateway.restart()
    client = s3_client(gateway)
    assert tags(client, "k") == {"a": "1"}
    assert head(client, "k") == before
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == body


def test_tags_of_parts_stay_with_the_object(client: Any) -> None:
    target = {"Bucket": BUCKET, "Key": "tags/parts"}
    target["UploadId"] = client.create_multipart_upload(**target)["UploadId"]
    sizes = (5 * MiB, 7)
    parts = [
        {"PartNumber": n, "ETag": client.upload_part(**target, PartNumber=n, Body=bytes(size))["ETag"]}
        for n, size in enumerate(sizes, 1)
    ]
    client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
    put_tags(client, "tags/parts", a="1")
    second = client.head_object(Bucket=BUCKET, Key="tags/parts", PartNumber=2)
    assert (second["PartsCount"], second["ContentLength"]) == (2, 7)


def test_tagging_and_overwriting_at_once_leaves_one_of_the_versions(gateway: RunningGateway) -> None:
    """No tag of an old version comes to lie on a new body, and no new body is lost."""
    client = s3_client(gateway, max_pool_connections=8)
    bodies = {f"{number}": os.urandom(64 << 10) for number in range(40)}
    client.put_object(Bucket=BUCKET, Key="tags/race", Body=b"", Metadata={"n": "none"}, Tagging="n=none")
    codes: set[str] = set()

    def write(number: str) -> None:
        client.put_object(Bucket=BUCKET, Key="tags/race", Body=bodies[number], Metadata={"n": number})

    def tag(number: int) -> None:
        try:
            put_tags(client, "tags/race", turn=str(number))
        except client.exceptions.ClientError as error:
            codes.add(error.response["Error"]["Code"])

    with ThreadPoolExecutor(8) as threads:
        tagging_ones = [threads.submit(tag, number) for number in range(80)]
        list(threads.map(write, bodies))
        for one in tagging_ones:
            one.result()
    assert codes <= {"OperationAborted"}
    got = client.get_object(Bucket=BUCKET, Key="tags/race")
    assert got["Body"].read() == bodies[got["Metadata"]["n"]]
    assert "n" not in tags(client, "tags/race")
    put_tags(client, "tags/race", last="1")
    assert tags(client, "tags/race") == {"last": "1"}


def test_tagging_and_deleting_at_once_brings_nothing_back(gateway: RunningGateway) -> None:
    client = s3_client(gateway, max_pool_connections=8)
    for turn in range(10):
        key = f"tags/gone/{turn}"
        client.put_object(Bucket=BUCKET, Key=key, Body=bytes(MiB))

        def tag(number: int, key: str = key) -> str:
            try:
                put_tags(client, key, turn=str(number))
            except client.exceptions.ClientError as error:
                return str(error.response["Error"]["Code"])
            return "done"

        with ThreadPoolExecutor(8) as threads:
            running = [threads.submit(tag, number) for number in range(4)]
            client.delete_object(Bucket=BUCKET, Key=key)
            assert {one.result() for one in running} <= {"done", "NoSuchKey", "OperationAborted"}
        assert refused(client.head_object, Bucket=BUCKET, Key=key) == ("404", 404)
