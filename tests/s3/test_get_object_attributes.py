"""GetObjectAttributes, and parts of objects, as boto3 sees them, against a running gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateways import RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"
MiB = 1 << 20
PART = 5 * MiB
EVERYTHING = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


def upload(client: Any, key: str, bodies: list[bytes], **options: Any) -> None:
    """An object of these parts, whose numbers are not consecutive."""
    target = {"Bucket": BUCKET, "Key": key}
    target["UploadId"] = client.create_multipart_upload(**target, **options)["UploadId"]
    sent = [
        {"PartNumber": 3 * number, "ETag": client.upload_part(**target, PartNumber=3 * number, Body=body)["ETag"]}
        for number, body in enumerate(bodies, 1)
    ]
    client.complete_multipart_upload(**target, MultipartUpload={"Parts": sent})


def attributes(client: Any, key: str, asked: list[str] = EVERYTHING, **options: Any) -> Any:
    answer = client.get_object_attributes(Bucket=BUCKET, Key=key, ObjectAttributes=asked, **options)
    del answer["ResponseMetadata"]
    return answer


def test_an_object_sent_at_once(client: Any) -> None:
    put = client.put_object(Bucket=BUCKET, Key="attributes/one", Body=b"12345", ChecksumAlgorithm="SHA256")
    found = attributes(client, "attributes/one")
    assert found.pop("LastModified") == client.head_object(Bucket=BUCKET, Key="attributes/one")["LastModified"]
    assert found == {
        "ETag": put["ETag"].strip('"'),
        "Checksum": {"ChecksumSHA256": put["ChecksumSHA256"], "ChecksumType": "FULL_OBJECT"},
        "StorageClass": "STANDARD",
        "ObjectSize": 5,
    }


def test_only_what_is_asked_for_is_told(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="attributes/one", Body=b"12345")
    for name in ("ETag", "Checksum", "StorageClass", "ObjectSize"):
        assert attributes(client, "attributes/one", [name]).keys() == {name, "LastModified"}
    assert attributes(client, "attributes/one", ["ObjectParts"]).keys() == {"LastModified"}
    assert attributes(client, "attributes/one", ["ETag", "ObjectSize"]).keys() == {"ETag", "ObjectSize", "LastModified"}


def test_parts_are_listed_in_pages(client: Any) -> None:
    bodies = [os.urandom(PART), os.urandom(PART), os.urandom(PART + 1), b"end"]
    upload(client, "attributes/parts", bodies)
    sizes = [(1, PART), (2, PART), (3, PART + 1), (4, 3)]
    everything = attributes(client, "attributes/parts")
    assert everything["ObjectSize"] == 3 * PART + 4
    parts = everything["ObjectParts"]
    assert [(part["PartNumber"], part["Size"]) for part in parts["Parts"]] == sizes
    assert (parts["TotalPartsCount"], parts["IsTruncated"], parts["NextPartNumberMarker"]) == (4, False, 4)
    for page_size in (1, 3):
        found, after, truncated = [], 0, True
        while truncated:
            page = attributes(client, "attributes/parts", ["ObjectParts"], MaxParts=page_size, PartNumberMarker=after)[
                "ObjectParts"
            ]
            assert (page["PartNumberMarker"], page["MaxParts"], page["TotalPartsCount"]) == (after, page_size, 4)
            found += [(part["PartNumber"], part["Size"]) for part in page["Parts"]]
            after, truncated = page["NextPartNumberMarker"], page["IsTruncated"]
        assert found == sizes
    nothing = attributes(client, "attributes/parts", ["ObjectParts"], MaxParts=0)["ObjectParts"]
    assert ("Parts" in nothing, nothing["IsTruncated"]) == (False, False)


def test_parts_are_read_one_by_one_also_after_a_restart(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    bodies = [os.urandom(PART), os.urandom(PART + 7), b"end"]
    upload(s3_client(gateway), "k", bodies, ContentType="a/b")
    gateway.restart()
    client = s3_client(gateway)
    target = {"Bucket": BUCKET, "Key": "k"}
    start, total = 0, sum(map(len, bodies))
    for number, body in enumerate(bodies, 1):
        got = client.get_object(**target, PartNumber=number)
        described = client.head_object(**target, PartNumber=number)
        assert got["Body"].read() == body
        for answer in (got, described):
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
            assert (answer["PartsCount"], answer["ContentLength"], answer["ContentType"]) == (3, len(body), "a/b")
            assert answer["ContentRange"] == f"bytes {start}-{start + len(body) - 1}/{total}"
        start += len(body)
    assert refused(client.get_object, **target, PartNumber=4) == ("InvalidPartNumber", 416)
    assert refused(client.head_object, **target, PartNumber=4) == ("416", 416)
    whole = client.get_object(**target)
    assert "PartsCount" not in whole
    assert whole["Body"].read() == b"".join(bodies)
    client.put_object(**target, Body=b"other")
    assert "PartsCount" not in client.head_object(**target, PartNumber=1)


def test_wrong_requests_are_refused(gateway: RunningGateway, client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="attributes/one", Body=b"12345")["ETag"]
    call, target = client.get_object_attributes, {"Bucket": BUCKET, "Key": "attributes/one"}
    asked = {"ObjectAttributes": ["ETag"]}
    assert refused(call, **target, ObjectAttributes=["ETag", "Colour"]) == ("InvalidArgument", 400)
    assert refused(call, **target, ObjectAttributes=[]) == ("InvalidArgument", 400)
    assert refused(call, **{**target, "Key": "attributes/never"}, **asked) == ("NoSuchKey", 404)
    assert refused(call, **target, **asked, VersionId="3") == ("NoSuchVersion", 404)
    assert refused(call, **target, **asked, PartNumberMarker=10_001) == ("InvalidArgument", 400)
    call(**target, **asked, VersionId="null")
    path = f"/{BUCKET}/attributes/one"
    for headers, status in (
        ({"x-amz-object-attributes": "ETag,  ObjectSize"}, 200),
        ({"x-amz-object-attributes": "ETag", "if-match": '"other"'}, 412),
        ({"x-amz-object-attributes": "ETag", "if-none-match": etag}, 304),
        ({"x-amz-object-attributes": "ETag", "x-amz-max-parts": "many"}, 400),
        ({}, 400),
    ):
        assert send(gateway, "GET", path, headers, query="attributes")[0] == status, headers
