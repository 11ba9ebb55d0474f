"""Versions of objects in buckets that keep one, as boto3 sees them, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateways import RunningGateway
from tests.s3.clients import refused, s3_client

BUCKET = "version-list"
KEYS = sorted(["a b", "d/1", "d/2", "e+f", "x\x01y", "z/1", "ü/ö"], key=str.encode)


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[Any]:
    found = s3_client(gateway)
    found.create_bucket(Bucket=BUCKET)
    for key in KEYS:
        found.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    yield found
    for key in KEYS:
        found.delete_object(Bucket=BUCKET, Key=key)
    found.delete_bucket(Bucket=BUCKET)


def pages(client: Any, size: int, **options: Any) -> list[Any]:
    paginator = client.get_paginator("list_object_versions")
    return list(paginator.paginate(Bucket=BUCKET, PaginationConfig={"PageSize": size}, **options))


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_every_object_has_one_version_in_byte_order(client: Any, page_size: int) -> None:
    versions = [version for page in pages(client, page_size) for version in page["Versions"]]
    assert [version["Key"] for version in versions] == KEYS
    for version in versions:
        described = client.head_object(Bucket=BUCKET, Key=version["Key"])
        assert (version["VersionId"], version["IsLatest"], version["StorageClass"]) == ("null", True, "STANDARD")
        assert (version["ETag"], version["Size"]) == (described["ETag"], described["ContentLength"])
        assert version["LastModified"].replace(microsecond=0) == described["LastModified"]
        assert version["Owner"]["ID"] == "alpha"
    rolled = pages(client, page_size, Delimiter="/")
    assert [item["Key"] for page in rolled for item in page.get("Versions", [])] == ["a b", "e+f", "x\x01y"]
    assert [item["Prefix"] for page in rolled for item in page.get("CommonPrefixes", [])] == ["d/", "z/", "ü/"]
    assert [item["Key"] for page in pages(client, page_size, Prefix="d/") for item in page["Versions"]] == KEYS[1:3]


def test_markers(client: Any) -> None:
    first = client.list_object_versions(Bucket=BUCKET, MaxKeys=2)
    assert (first["IsTruncated"], first["NextKeyMarker"], first["NextVersionIdMarker"]) == (True, "d/1", "null")
    assert (first["KeyMarker"], first["VersionIdMarker"], first["MaxKeys"]) == ("", "", 2)
    for marker in ({"KeyMarker": "d/1"}, {"KeyMarker": "d/1", "VersionIdMarker": "null"}):
        following = client.list_object_versions(Bucket=BUCKET, **marker)
        assert [version["Key"] for version in following["Versions"]] == KEYS[2:]
        assert following["KeyMarker"] == "d/1"
        assert "NextKeyMarker" not in following
    prefix = client.list_object_versions(Bucket=BUCKET, MaxKeys=2, Delimiter="/")
    assert prefix["NextKeyMarker"] == "d/"
    assert "NextVersionIdMarker" not in prefix
    empty = client.list_object_versions(Bucket=BUCKET, MaxKeys=0)
    assert (empty["IsTruncated"], "Versions" in empty) == (False, False)
    call = client.list_object_versions
    assert refused(call, Bucket=BUCKET, VersionIdMarker="null") == ("InvalidArgument", 400)
    assert refused(call, Bucket=BUCKET, KeyMarker="d/1", VersionIdMarker="3") == ("InvalidArgument", 400)
    assert refused(call, Bucket="never-made") == ("NoSuchBucket", 404)


def test_the_null_version_is_the_object(client: Any) -> None:
    target = {"Bucket": BUCKET, "Key": "a b"}
    assert client.get_object(**target, VersionId="null")["Body"].read() == b"a b"
    assert client.head_object(**target, VersionId="null")["ContentLength"] == 3
    for call in (client.get_object, client.delete_object, client.get_object_tagging, client.get_object_acl):
        assert refused(call, **target, VersionId="3HL4kqtJvjVBH40Nrjfkd") == ("NoSuchVersion", 404)
    assert refused(client.head_object, **target, VersionId="3") == ("404", 404)
    assert client.head_object(**target)
    client.put_object(Bucket=BUCKET, Key="to delete", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="to delete", VersionId="null", BypassGovernanceRetention=True)
    assert refused(client.head_object, Bucket=BUCKET, Key="to delete") == ("404", 404)


def test_a_bucket_is_emptied_as_scripts_do(client: Any) -> None:
    """List the versions, then delete each by its id."""
    bucket = "version-empty"
    client.create_bucket(Bucket=bucket)
    for number in range(5):
        client.put_object(Bucket=bucket, Key=f"k{number}", Body=b"x")
    versions = client.list_object_versions(Bucket=bucket)["Versions"]
    objects = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions]
    wrong = {"Key": "k0", "VersionId": "3"}
    answer = client.delete_objects(
        Bucket=bucket, Delete={"Objects": [*objects[1:], wrong]}, BypassGovernanceRetention=True
    )
    assert answer["Deleted"] == objects[1:]
    assert [(error["Key"], error["VersionId"], error["Code"]) for error in answer["Errors"]] == [
        ("k0", "3", "NoSuchVersion")
    ]
    assert [version["Key"] for version in client.list_object_versions(Bucket=bucket)["Versions"]] == ["k0"]
    client.delete_objects(Bucket=bucket, Delete={"Objects": objects[:1]})
    client.delete_bucket(Bucket=bucket)
