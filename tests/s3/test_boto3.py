"""The S3 surface as boto3 sees it, with default settings, against a running gateway."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateways import BETA, Credential, RunningGateway
from tests.s3.clients import refused, s3_client

BUCKET = "alpha-bucket"
KEYS = [
    "plain",
    "with space",
    "a+b",
    "a%2Bb",
    "/leading//double/",
    "a@b=c~d&e;f:g,h",
    "ünï/漢字/🙂",
    "(1)*'!$",
    "k" * 1024,
    "tab\tand\rreturn\nline\x01",
    '<xml>&"quotes"',
]


@pytest.fixture(scope="module", params=["own", "aiohttp"])
def client(gateway: RunningGateway, request: pytest.FixtureRequest) -> Any:
    """A client of each of the two fronts."""
    client = s3_client(gateway)
    if request.param == "aiohttp":
        client.meta.events.register("before-send.s3", _send_unusually)
    return client


def _send_unusually(request: Any, **rest: Any) -> None:
    """A connection option that the front of common requests does not know: aiohttp answers."""
    request.headers["Connection"] = "keep-alive, unusual"


@pytest.fixture
def bucket(client: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket of the test's own."""
    name = "b-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    client.create_bucket(Bucket=name)
    yield name
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


# --- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_any_key_is_stored_found_listed_and_deleted(client: Any, bucket: str, key: str) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=b"payload")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"payload"
    assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 7
    for operation in (client.list_objects_v2, client.list_objects):
        assert [item["Key"] for item in operation(Bucket=bucket)["Contents"]] == [key]
        assert [item["Key"] for item in operation(Bucket=bucket, Prefix=key)["Contents"]] == [key]
    client.delete_object(Bucket=bucket, Key=key)
    assert refused(client.get_object, Bucket=bucket, Key=key) == ("NoSuchKey", 404)
    client.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("nbytes", [0, 1, 255, 4096, 1 << 20, (9 << 20) + 17])
def test_any_size_arrives_whole(client: Any, nbytes: int) -> None:
    body = os.urandom(nbytes)
    client.put_object(Bucket=BUCKET, Key=f"sizes/{nbytes}", Body=body)
    assert client.get_object(Bucket=BUCKET, Key=f"sizes/{nbytes}")["Body"].read() == body
    assert client.head_object(Bucket=BUCKET, Key=f"sizes/{nbytes}")["ContentLength"] == nbytes


def test_headers_and_metadata_come_back(client: Any) -> None:
    stored = {
        "ContentType": "text/plain; charset=utf-8",
        "CacheControl": "no-store",
        "ContentDisposition": 'attachment; filename="a.txt"',
        "ContentEncoding": "identity",
        "ContentLanguage": "de",
        "Metadata": {"a": "1", "long-name": "with  spaces"},
    }
    client.put_object(Bucket=BUCKET, Key="described", Body=b"x", Expires="Wed, 21 Oct 2026 07:28:00 GMT", **stored)
    for answer in (
        client.head_object(Bucket=BUCKET, Key="described"),
        client.get_object(Bucket=BUCKET, Key="described"),
    ):
        assert {name: answer[name] for name in stored} == stored
        assert answer["ExpiresString"] == "Wed, 21 Oct 2026 07:28:00 GMT"
        assert answer["AcceptRanges"] == "bytes"
        assert answer["ETag"].startswith('"')
    client.put_object(Bucket=BUCKET, Key="undescribed", Body=b"x")
    assert client.head_object(Bucket=BUCKET, Key="undescribed")["ContentType"] == "binary/octet-stream"


def test_overwriting_replaces_body_and_metadata(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="twice", Body=b"one", Metadata={"a": "1"})
    client.put_object(Bucket=BUCKET, Key="twice", Body=b"other", Metadata={"b": "2"})
    answer = client.get_object(Bucket=BUCKET, Key="twice")
    assert (answer["Body"].read(), answer["Metadata"]) == (b"other", {"b": "2"})


def test_too_much_metadata_is_refused(client: Any) -> None:
    for size, fits in ((2040, True), (2050, False)):
        arguments = {"Bucket": BUCKET, "Key": "meta", "Body": b"x", "Metadata": {"a": "v" * size}}
        if fits:
            client.put_object(**arguments)
        else:
            assert refused(client.put_object, **arguments) == ("MetadataTooLarge", 400)


def test_ranges(client: Any) -> None:
    body = bytes(range(256)) * 8192
    client.put_object(Bucket=BUCKET, Key="ranged", Body=body)

    def get(byte_range: str) -> tuple[int, bytes, str | None]:
        answer = client.get_object(Bucket=BUCKET, Key="ranged", Range=byte_range)
        return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read(), answer.get("ContentRange")

    nbytes = len(body)
    assert get("bytes=5-9") == (206, body[5:10], f"bytes 5-9/{nbytes}")
    assert get(f"bytes={nbytes - 3}-") == (206, body[-3:], f"bytes {nbytes - 3}-{nbytes - 1}/{nbytes}")
    assert get("bytes=-70000") == (206, body[-70000:], f"bytes {nbytes - 70000}-{nbytes - 1}/{nbytes}")
    assert get("bytes=1000000-1100000")[1] == body[1000000:1100001]
    assert get("bytes=0-") == (206, body, f"bytes 0-{nbytes - 1}/{nbytes}")
    for ignored in ("bytes=9-5", "bytes=0-1,4-5", "lines=1-2"):
        assert get(ignored) == (200, body, None)
    assert refused(client.get_object, Bucket=BUCKET, Key="ranged", Range=f"bytes={nbytes}-") == ("InvalidRange", 416)
    head = client.head_object(Bucket=BUCKET, Key="ranged", Range="bytes=5-9")
    assert (head["ContentLength"], head["ContentRange"]) == (5, f"bytes 5-9/{nbytes}")
    part = client.get_object(Bucket=BUCKET, Key="ranged", PartNumber=1)
    assert part["Body"].read() == body
    assert refused(client.get_object, Bucket=BUCKET, Key="ranged", PartNumber=2) == ("InvalidPartNumber", 416)


def test_overridden_response_headers(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="overridden", Body=b"x", ContentType="a/b")
    answer = client.get_object(
        Bucket=BUCKET, Key="overridden", ResponseContentType="c/d", ResponseContentDisposition="inline"
    )
    assert (answer["ContentType"], answer["ContentDisposition"]) == ("c/d", "inline")


# --- integrity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("nbytes", [100, 3 << 20])
def test_checksums_are_verified_stored_and_returned(client: Any, algorithm: str, nbytes: int) -> None:
    body, key = os.urandom(nbytes), f"checksums/{algorithm}/{nbytes}"
    field = f"Checksum{algorithm}"
    put = client.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm=algorithm)
    got = client.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    head = client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    assert put[field] == got[field] == head[field]
    assert got["ChecksumType"] == "FULL_OBJECT"
    assert got["Body"].read() == body  # botocore verifies the checksum while it reads
    wrong = {"Bucket": BUCKET, "Key": key + "/bad", "Body": body[1:], field: put[field]}
    assert refused(client.put_object, **wrong) == ("BadDigest", 400)
    assert refused(client.head_object, Bucket=BUCKET, Key=key + "/bad") == ("404", 404)


def test_an_object_sent_without_a_checksum_has_the_stores(gateway: RunningGateway, client: Any) -> None:
    plain = s3_client(gateway, request_checksum_calculation="when_required")
    plain.put_object(Bucket=BUCKET, Key="unchecked", Body=b"123456789")
    answer = client.get_object(Bucket=BUCKET, Key="unchecked")
    assert answer["ChecksumCRC64NVME"] == "rosUhgp5mIg="
    assert answer["Body"].read() == b"123456789"


def test_content_md5_is_verified(client: Any) -> None:
    good = client.put_object(Bucket=BUCKET, Key="md5", Body=b"hello", ContentMD5="XUFAKrxLKna5cZ2REBfFkg==")
    assert good["ETag"]
    wrong = {"Bucket": BUCKET, "Key": "md5-bad", "Body": b"Hello", "ContentMD5": "XUFAKrxLKna5cZ2REBfFkg=="}
    assert refused(client.put_object, **wrong) == ("BadDigest", 400)
    assert refused(client.head_object, Bucket=BUCKET, Key="md5-bad") == ("404", 404)


def test_an_unsigned_payload_is_accepted(gateway: RunningGateway) -> None:
    unsigned = s3_client(gateway, s3={"payload_signing_enabled": False})
    unsigned.put_object(Bucket=BUCKET, Key="unsigned", Body=b"x" * 100_000)
    assert unsigned.get_object(Bucket=BUCKET, Key="unsigned")["Body"].read() == b"x" * 100_000


# --- conditions -------------------------------------------------------------------------------------------------------


def test_conditional_reads(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="cond", Body=b"x")["ETag"]
    modified = client.head_object(Bucket=BUCKET, Key="cond")["LastModified"]
    for call in (client.get_object, client.head_object):
        target = {"Bucket": BUCKET, "Key": "cond"}
        assert call(**target, IfMatch=etag)
        assert call(**target, IfNoneMatch='"other"')
        assert refused(call, **target, IfNoneMatch=etag)[1] == 304
        assert refused(call, **target, IfMatch='"other"')[1] == 412
        assert refused(call, **target, IfModifiedSince=modified)[1] == 304
        assert call(**target, IfUnmodifiedSince=modified)


def test_conditional_writes(client: Any) -> None:
    target = {"Bucket": BUCKET, "Key": "cond-write"}
    client.delete_object(**target)
    assert refused(client.put_object, **target, Body=b"0", IfMatch='"x"') == ("NoSuchKey", 404)
    etag = client.put_object(**target, Body=b"1", IfNoneMatch="*")["ETag"]
    assert refused(client.put_object, **target, Body=b"2", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused(client.put_object, **target, Body=b"2", IfMatch='"other"') == ("PreconditionFailed", 412)
    assert client.get_object(**target)["Body"].read() == b"1"
    client.put_object(**target, Body=b"3", IfMatch=etag)
    assert client.get_object(**target)["Body"].read() == b"3"
    assert refused(client.delete_object, **target, IfMatch=etag) == ("PreconditionFailed", 412)
    assert client.head_object(**target)


def test_a_refused_condition_does_not_ask_for_the_body(client: Any) -> None:
    """boto3 sends Expect: 100-continue; a large body of a refused PUT never leaves the client."""
    client.put_object(Bucket=BUCKET, Key="large-cond", Body=b"x")
    body = b"y" * (32 << 20)
    arguments = {"Bucket": BUCKET, "Key": "large-cond", "Body": body, "IfNoneMatch": "*"}
    assert refused(client.put_object, **arguments) == ("PreconditionFailed", 412)
    assert client.get_object(Bucket=BUCKET, Key="large-cond")["Body"].read() == b"x"


# --- listings ---------------------------------------------------------------------------------------------------------


def test_listings_page_in_byte_order(client: Any, bucket: str) -> None:
    keys = sorted([f"d{number}/{name}" for number in range(4) for name in "abc"] + ["top", "z/1", "Ä", "日本"])
    for key in reversed(keys):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    in_order = sorted(keys, key=str.encode)
    for operation in ("list_objects_v2", "list_objects"):
        for page_size in (1, 3, 1000):
            pages = list(
                client.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": page_size})
            )
            assert [item["Key"] for page in pages for item in page.get("Contents", [])] == in_order
            rolled = list(
                client.get_paginator(operation).paginate(
                    Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": page_size}
                )
            )
            prefixes = [item["Prefix"] for page in rolled for item in page.get("CommonPrefixes", [])]
            assert prefixes == ["d0/", "d1/", "d2/", "d3/", "z/"]
            assert [item["Key"] for page in rolled for item in page.get("Contents", [])] == ["top", "Ä", "日本"]
            assert all(
                len(page.get("Contents", [])) + len(page.get("CommonPrefixes", [])) <= page_size for page in rolled
            )


def test_listing_details(client: Any, bucket: str) -> None:
    for key in ("a b", "a/1", "a/2", "b"):
        client.put_object(Bucket=bucket, Key=key, Body=b"12345")
    page = client.list_objects_v2(Bucket=bucket, Prefix="a", Delimiter="/", StartAfter="a", FetchOwner=True)
    assert (page["KeyCount"], page["MaxKeys"], page["IsTruncated"]) == (2, 1000, False)
    assert (page["Prefix"], page["Delimiter"], page["StartAfter"], page["Name"]) == ("a", "/", "a", bucket)
    (item,) = page["Contents"]
    assert (item["Key"], item["Size"], item["StorageClass"], item["Owner"]["ID"]) == ("a b", 5, "STANDARD", "alpha")
    assert page["CommonPrefixes"] == [{"Prefix": "a/"}]
    assert "Owner" not in client.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert client.list_objects(Bucket=bucket)["Contents"][0]["Owner"]["ID"] == "alpha"
    empty = client.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (empty["KeyCount"], empty["IsTruncated"], empty["MaxKeys"]) == (0, False, 0)
    assert [i["Key"] for i in client.list_objects_v2(Bucket=bucket, StartAfter="a/1")["Contents"]] == ["a/2", "b"]
    marked = client.list_objects(Bucket=bucket, Delimiter="/", MaxKeys=2)
    assert (marked["IsTruncated"], marked["NextMarker"]) == (True, "a/")
    assert [i["Key"] for i in client.list_objects(Bucket=bucket, Delimiter="/", Marker="a/")["Contents"]] == ["b"]
    head = client.head_object(Bucket=bucket, Key="b")
    listed = client.list_objects_v2(Bucket=bucket, Prefix="b")["Contents"][0]
    assert listed["ETag"] == head["ETag"]
    assert listed["LastModified"].replace(microsecond=0) == head["LastModified"]


def test_a_foreign_continuation_token_is_refused(client: Any) -> None:
    code = refused(client.list_objects_v2, Bucket=BUCKET, ContinuationToken="somewhere")
    assert code == ("InvalidArgument", 400)
    assert refused(client.list_objects_v2, Bucket=BUCKET, MaxKeys=-1) == ("InvalidArgument", 400)


# --- deleting many ----------------------------------------------------------------------------------------------------


def test_many_keys_are_deleted_in_one_request(client: Any, bucket: str) -> None:
    for key in ("a", "b&c", "d"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    objects = [{"Key": "a"}, {"Key": "b&c"}, {"Key": "never"}, {"Key": "d", "VersionId": "3"}]
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": objects})
    assert [item["Key"] for item in answer["Deleted"]] == ["a", "b&c", "never"]
    assert [(item["Key"], item["Code"]) for item in answer["Errors"]] == [("d", "NoSuchVersion")]
    assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["d"]
    quiet = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "d"}], "Quiet": True})
    assert "Deleted" not in quiet
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)


def test_a_thousand_keys_and_not_one_more(client: Any, bucket: str) -> None:
    keys = [{"Key": f"{number:04}" + "&" * 1020} for number in range(1000)]
    assert len(client.delete_objects(Bucket=bucket, Delete={"Objects": keys})["Deleted"]) == 1000
    more = {"Objects": [*keys, {"Key": "one more"}]}
    assert refused(client.delete_objects, Bucket=bucket, Delete=more) == ("MalformedXML", 400)


def test_a_conditional_delete_among_many(client: Any, bucket: str) -> None:
    etag = client.put_object(Bucket=bucket, Key="a", Body=b"x")["ETag"]
    stale = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a", "ETag": '"other"'}]})
    assert stale["Errors"][0]["Code"] == "PreconditionFailed"
    fresh = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a", "ETag": etag}]})
    assert [item["Key"] for item in fresh["Deleted"]] == ["a"]


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_buckets_live_and_die(client: Any) -> None:
    name = "short-lived"
    created = client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert created["Location"] == f"/{name}"
    assert client.create_bucket(Bucket=name)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert client.head_bucket(Bucket=name)["BucketRegion"] == "us-east-1"
    assert client.get_bucket_location(Bucket=name)["LocationConstraint"] is None
    assert "Status" not in client.get_bucket_versioning(Bucket=name)
    assert name in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    client.put_object(Bucket=name, Key="k", Body=b"x")
    assert refused(client.delete_bucket, Bucket=name) == ("BucketNotEmpty", 409)
    client.delete_object(Bucket=name, Key="k")
    client.delete_bucket(Bucket=name)
    assert refused(client.head_bucket, Bucket=name) == ("404", 404)
    assert refused(client.delete_bucket, Bucket=name) == ("NoSuchBucket", 404)
    for call in (client.list_objects_v2, client.list_objects, client.get_bucket_location, client.get_bucket_versioning):
        assert refused(call, Bucket=name) == ("NoSuchBucket", 404)
    assert refused(client.put_object, Bucket=name, Key="k", Body=b"x") == ("NoSuchBucket", 404)
    objects = {"Objects": [{"Key": "k"}]}
    assert refused(client.delete_objects, Bucket=name, Delete=objects) == ("NoSuchBucket", 404)


def test_buckets_are_listed_in_pages(client: Any, bucket: str) -> None:
    everything = [item["Name"] for item in client.list_buckets()["Buckets"]]
    pages = list(client.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": 1}))
    assert [item["Name"] for page in pages for item in page["Buckets"]] == everything == sorted(everything)
    assert [item["Name"] for item in client.list_buckets(Prefix=bucket[:6])["Buckets"]] == [bucket]
    assert client.list_buckets()["Owner"]["ID"] == "alpha"


def test_bad_bucket_names_are_refused(client: Any) -> None:
    assert refused(client.create_bucket, Bucket="UPPER") == ("InvalidBucketName", 400)


# --- who may what -----------------------------------------------------------------------------------------------------


def test_tenants_see_their_own_buckets_only(gateway: RunningGateway, client: Any) -> None:
    beta = s3_client(gateway, BETA)
    client.put_object(Bucket="shared-name", Key="mine", Body=b"alpha")
    assert refused(beta.get_object, Bucket="shared-name", Key="mine") == ("NoSuchKey", 404)
    assert refused(beta.get_object, Bucket=BUCKET, Key="mine") == ("NoSuchBucket", 404)
    beta.put_object(Bucket="shared-name", Key="mine", Body=b"beta")
    assert client.get_object(Bucket="shared-name", Key="mine")["Body"].read() == b"alpha"
    assert BUCKET not in [item["Name"] for item in beta.list_buckets()["Buckets"]]
    assert refused(beta.get_object, Bucket="shared-name", Key="mine", ExpectedBucketOwner="alpha")[0] == "AccessDenied"
    beta.delete_object(Bucket="shared-name", Key="mine")  # for the other client


def test_wrong_credentials_are_refused(gateway: RunningGateway) -> None:
    unknown = s3_client(gateway, Credential("NOSUCHKEY000", "a-secret-that-nobody-has"))
    assert refused(unknown.list_buckets) == ("InvalidAccessKeyId", 403)
    wrong = s3_client(gateway, Credential(BETA.access_key, "a-secret-that-nobody-has"))
    assert refused(wrong.list_buckets) == ("SignatureDoesNotMatch", 403)
    assert refused(wrong.put_object, Bucket=BUCKET, Key="k", Body=b"x" * 100_000) == ("SignatureDoesNotMatch", 403)


@pytest.mark.parametrize("key", ["plain", "a b+c%2B", "ü//x"])
def test_presigned_urls(gateway: RunningGateway, key: str) -> None:
    signer = s3_client(gateway, signature_version="s3v4")
    target = {"Bucket": BUCKET, "Key": "presigned/" + key}
    upload = signer.generate_presigned_url("put_object", Params={**target, "ContentType": "text/plain"})
    request = urllib.request.Request(upload, b"payload", {"Content-Type": "text/plain"}, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    download = signer.generate_presigned_url("get_object", Params={**target, "ResponseContentType": "a/b"})
    with urllib.request.urlopen(download, timeout=10) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"payload", "a/b")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(download.replace("presigned", "other"), timeout=10)
    with caught.value as error:
        assert (error.code, b"SignatureDoesNotMatch" in error.read()) == (403, True)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create_multipart_upload", {"Key": "k", "ServerSideEncryption": "AES256"}),
        ("put_object", {"Key": "k", "Body": b"x", "ServerSideEncryption": "AES256"}),
        ("put_bucket_versioning", {"VersioningConfiguration": {"Status": "Enabled"}}),
    ],
)
def test_what_is_not_offered_says_so(client: Any, name: str, arguments: dict[str, Any]) -> None:
    assert refused(getattr(client, name), Bucket=BUCKET, **arguments) == ("NotImplemented", 501)
