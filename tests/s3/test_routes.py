from __future__ import annotations

import pytest

from kvgate.auth.actions import ACTIONS
from kvgate.auth.identity import UnsignedPayload
from kvgate.errors import InvalidArgument, MethodNotAllowed, UnsupportedOperation
from kvgate.messages import Headers, Request
from kvgate.s3.call import Call
from kvgate.s3.routes import COPY_ROUTES, ROUTES, route
from kvgate.s3.target import parse_target

UNSIGNED = UnsignedPayload()


def call(method: str, target: str, **headers: str) -> Call:
    path, _, query = target.partition("?")
    named = Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
    return Call(Request(method, path, query, named), parse_target(path, query), UNSIGNED)


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("GET", "/", "ListBuckets"),
        ("GET", "/?max-buckets=5&x-id=ListBuckets", "ListBuckets"),
        ("PUT", "/b", "CreateBucket"),
        ("PUT", "/b/", "CreateBucket"),
        ("HEAD", "/b", "HeadBucket"),
        ("DELETE", "/b", "DeleteBucket"),
        ("GET", "/b?location", "GetBucketLocation"),
        ("GET", "/b?versioning", "GetBucketVersioning"),
        ("GET", "/b", "ListObjects"),
        ("GET", "/b?prefix=a&delimiter=/&marker=x&max-keys=1&encoding-type=url", "ListObjects"),
        ("GET", "/b?list-type=2&start-after=x&fetch-owner=true&continuation-token=t", "ListObjectsV2"),
        ("POST", "/b?delete", "DeleteObjects"),
        ("POST", "/b", "PostObject"),
        ("GET", "/b?cors", "GetBucketCors"),
        ("PUT", "/b?cors", "PutBucketCors"),
        ("DELETE", "/b?cors", "DeleteBucketCors"),
        ("GET", "/b?lifecycle", "GetBucketLifecycleConfiguration"),
        ("PUT", "/b?lifecycle", "PutBucketLifecycleConfiguration"),
        ("DELETE", "/b?lifecycle", "DeleteBucketLifecycle"),
        ("GET", "/b?policy", "GetBucketPolicy"),
        ("PUT", "/b?policy", "PutBucketPolicy"),
        ("DELETE", "/b?policy", "DeleteBucketPolicy"),
        ("GET", "/b?policyStatus", "GetBucketPolicyStatus"),
        ("GET", "/b?acl", "GetBucketAcl"),
        ("PUT", "/b?acl", "PutBucketAcl"),
        ("GET", "/b?tagging", "GetBucketTagging"),
        ("PUT", "/b?tagging", "PutBucketTagging"),
        ("DELETE", "/b?tagging", "DeleteBucketTagging"),
        ("GET", "/b?versions", "ListObjectVersions"),
        (
            "GET",
            "/b?versions&prefix=a&delimiter=/&key-marker=k&version-id-marker=null&max-keys=3&encoding-type=url",
            "ListObjectVersions",
        ),
        ("POST", "/b?delete=&x-id=DeleteObjects", "DeleteObjects"),
        ("PUT", "/b/k", "PutObject"),
        ("PUT", "/b//", "PutObject"),
        ("GET", "/b/k?x-id=GetObject&response-content-type=text%2Fplain&partNumber=1", "GetObject"),
        ("GET", "/b/k?X-Amz-Algorithm=a&X-Amz-Signature=b&X-Amz-Expires=1&x-amz-checksum-mode=ENABLED", "GetObject"),
        ("HEAD", "/b/k", "HeadObject"),
        ("DELETE", "/b/k", "DeleteObject"),
        ("GET", "/b/k?versionId=3", "GetObject"),
        ("HEAD", "/b/k?versionId=null&partNumber=2", "HeadObject"),
        ("DELETE", "/b/k?versionId=null", "DeleteObject"),
        ("GET", "/b/k?attributes&versionId=null", "GetObjectAttributes"),
        ("GET", "/b/k?acl&versionId=null", "GetObjectAcl"),
        ("PUT", "/b/k?acl", "PutObjectAcl"),
        ("GET", "/b/k?tagging", "GetObjectTagging"),
        ("PUT", "/b/k?tagging&versionId=null", "PutObjectTagging"),
        ("DELETE", "/b/k?tagging", "DeleteObjectTagging"),
        ("POST", "/b/k?uploads", "CreateMultipartUpload"),
        ("PUT", "/b/k?partNumber=1&uploadId=x", "UploadPart"),
        ("GET", "/b/k?uploadId=x&max-parts=5&part-number-marker=3&x-id=ListParts", "ListParts"),
        ("POST", "/b/k?uploadId=x", "CompleteMultipartUpload"),
        ("DELETE", "/b/k?uploadId=x", "AbortMultipartUpload"),
        (
            "GET",
            "/b?uploads&prefix=a&delimiter=/&key-marker=k&upload-id-marker=x&max-uploads=3",
            "ListMultipartUploads",
        ),
    ],
)
def test_requests_find_their_operation(method: str, target: str, name: str) -> None:
    assert route(call(method, target)).name == name


@pytest.mark.parametrize(
    ("target", "name"), [("/b/k", "CopyObject"), ("/b/k?partNumber=1&uploadId=x", "UploadPartCopy")]
)
def test_a_copy_source_makes_another_operation(target: str, name: str) -> None:
    headers = {"x_amz_copy_source": "b/k", "x_amz_copy_source_if_match": "e"}
    assert route(call("PUT", target, **headers)).name == name
    with pytest.raises(UnsupportedOperation, match="x-amz-copy-source"):
        route(call("DELETE", "/b/k", **headers))
    with pytest.raises(UnsupportedOperation, match="customer-algorithm"):
        route(call("PUT", target, **headers, x_amz_copy_source_server_side_encryption_customer_algorithm="AES256"))


def test_every_operation_has_one_route() -> None:
    operations = [*ROUTES.values(), *COPY_ROUTES.values()]
    names = [operation.name for operation in operations]
    assert len(names) == len(set(names))
    for operation in operations:
        assert f"s3:{operation.action or operation.name}" in ACTIONS | {"s3:ListBuckets"}


@pytest.mark.parametrize(
    ("method", "target", "named"),
    [
        *[
            ("GET", f"/b?{name}", name)
            for name in (
                *("object-lock", "encryption", "website", "logging", "replication", "notification"),
                *("accelerate", "requestPayment", "publicAccessBlock", "ownershipControls", "inventory", "analytics"),
                *("metrics", "intelligent-tiering", "session", "metadataConfiguration"),
            )
        ],
        *[
            (method, f"/b/k?{name}", name)
            for method in ("GET", "PUT", "DELETE", "POST")
            for name in ("retention", "legal-hold", "torrent", "restore", "renameObject")
        ],
        *[
            (method, f"/b?{name}", name)
            for method in ("PUT", "DELETE")
            for name in ("object-lock", "encryption", "website", "logging", "replication", "notification")
        ],
        ("PUT", "/b?versioning", "versioning"),
        ("PUT", "/b/k?versionId=null", "versionId"),
        ("PUT", "/b/k?partNumber=1", "partNumber"),
        ("DELETE", "/b/k?uploadId=x&versionId=3", "versionId"),
        ("POST", "/b/k?select&select-type=2", "select"),
        ("GET", "/b/k?prefix=a", "prefix"),
        ("GET", "/b?location&prefix=a", "prefix"),
        ("GET", "/b?list-type=2&location", "location"),
        ("GET", "/b?marker=a&list-type=2", "marker"),
        ("PUT", "/b/k?X-Amz-Server-Side-Encryption=AES256", "X-Amz-Server-Side-Encryption"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(method: str, target: str, named: str) -> None:
    with pytest.raises(UnsupportedOperation, match=named):
        route(call(method, target))


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", "/"), ("POST", "/b/k"), ("PATCH", "/b/k"), ("GET", "/b?delete"), ("OPTIONS", "/b/k"),
     ("PUT", "/b/k?uploads"), ("DELETE", "/b?versioning"), ("BREW", "/")],
)  # fmt: skip
def test_wrong_methods_are_refused(method: str, target: str) -> None:
    with pytest.raises(MethodNotAllowed):
        route(call(method, target))


@pytest.mark.parametrize(
    "header",
    [
        "x_amz_copy_source_range",
        "x_amz_server_side_encryption",
        "x_amz_server_side_encryption_customer_key",
        "x_amz_grant_read",
        "x_amz_object_lock_mode",
        "x_amz_website_redirect_location",
        "x_amz_write_offset_bytes",
    ],
)
def test_headers_that_ask_for_more_are_refused_by_name(header: str) -> None:
    with pytest.raises(UnsupportedOperation, match=header.replace("_", "-")):
        route(call("PUT", "/b/k", **{header: "x"}))


def test_headers_that_ask_for_what_is_so_anyway_are_accepted() -> None:
    assert route(call("PUT", "/b/k", x_amz_storage_class="STANDARD")).name == "PutObject"
    with pytest.raises(UnsupportedOperation, match="x-amz-storage-class"):
        route(call("PUT", "/b/k", x_amz_storage_class="GLACIER"))


def test_headers_that_an_operation_reads_are_refused_elsewhere() -> None:
    assert route(call("PUT", "/b/k", x_amz_tagging="a=b", x_amz_acl="public-read")).name == "PutObject"
    with pytest.raises(UnsupportedOperation, match="x-amz-tagging"):
        route(call("GET", "/b/k", x_amz_tagging="a=b"))


def test_list_type_is_checked() -> None:
    operation = route(call("GET", "/b?list-type=3"))
    with pytest.raises(InvalidArgument):
        operation.parse(call("GET", "/b?list-type=3"))
