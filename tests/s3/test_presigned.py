"""Presigned URLs as clients make them, used by something that has no key."""

from __future__ import annotations

import http.client
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvgate.auth import sigv4
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import CREDENTIAL

BUCKET = "presigned"
KEYS = ["plain", "with space", "a+b@c=d&e?f#g%h", "ünï/漢字", "(1)*'!~", "//x//"]


@pytest.fixture(autouse=True, scope="module")
def _bucket(gateway: RunningGateway) -> None:
    s3_client(gateway).create_bucket(Bucket=BUCKET)


def presigned(gateway: RunningGateway, operation: str, key: str, expires_s: int = 600, **parameters: Any) -> str:
    """By boto3, as it does by default in us-east-1: by Signature Version 2."""
    target = {"Bucket": BUCKET, "Key": key} | parameters
    url: str = s3_client(gateway).generate_presigned_url(operation, Params=target, ExpiresIn=expires_s)
    assert "AWSAccessKeyId=" in url
    return url


def fetch(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def code(content: bytes) -> str:
    return ET.fromstring(content).findtext("Code") or ""


@pytest.mark.parametrize("key", KEYS)
def test_version_2_puts_gets_heads_and_deletes(gateway: RunningGateway, key: str) -> None:
    key = f"presigned-v2/{key}"
    assert fetch("PUT", presigned(gateway, "put_object", key), b"content")[0] == 200
    status, headers, content = fetch("GET", presigned(gateway, "get_object", key))
    assert (status, content) == (200, b"content")
    assert s3_client(gateway).head_object(Bucket=BUCKET, Key=key)["ETag"] == headers["etag"]
    status, headers, content = fetch("HEAD", presigned(gateway, "head_object", key))
    assert (status, headers["content-length"], content) == (200, "7", b"")
    assert fetch("DELETE", presigned(gateway, "delete_object", key))[0] == 204
    status, _, content = fetch("GET", presigned(gateway, "get_object", key))
    assert (status, code(content)) == (404, "NoSuchKey")


def test_version_2_overrides_headers(gateway: RunningGateway) -> None:
    s3_client(gateway).put_object(Bucket=BUCKET, Key="overridden", Body=b"x")
    overrides = {
        "ResponseContentDisposition": 'attachment; filename="a b+c&d.txt"',
        "ResponseContentType": "text/plain; charset=utf-8",
        "ResponseCacheControl": "no-cache",
        "ResponseContentLanguage": "de",
        "ResponseContentEncoding": "identity",
        "ResponseExpires": "Thu, 01 Dec 1994 16:00:00 GMT",
    }
    status, headers, content = fetch("GET", presigned(gateway, "get_object", "overridden", **overrides))
    assert (status, content) == (200, b"x")
    assert headers["content-disposition"] == 'attachment; filename="a b+c&d.txt"'
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["content-language"] == "de"
    assert headers["expires"] == "Thu, 01 Dec 1994 16:00:00 GMT"
    url = presigned(gateway, "get_object", "overridden", ResponseContentType="text/plain")
    status, _, content = fetch("GET", url.replace("text%2Fplain", "text%2Fhtml"))
    assert (status, code(content)) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("sent", [{}, {"Content-Type": "text/plain", "x-amz-meta-a": "x y", "x-amz-meta-b": "2"}])
def test_version_2_carries_headers_in_the_query(gateway: RunningGateway, sent: dict[str, str]) -> None:
    url = presigned(gateway, "put_object", "carried", ContentType="text/plain", Metadata={"a": "x y", "b": "2"})
    assert "x-amz-meta-a=x%20y" in url
    assert fetch("PUT", url, b"x", sent)[0] == 200
    head = s3_client(gateway).head_object(Bucket=BUCKET, Key="carried")
    assert (head["ContentType"], head["Metadata"]) == ("text/plain", {"a": "x y", "b": "2"})
    for name in ("Content-Type", "x-amz-meta-a"):
        status, _, content = fetch("PUT", url, b"y", {name: "other"})
        assert (status, code(content)) == (400, "InvalidArgument")
    assert s3_client(gateway).get_object(Bucket=BUCKET, Key="carried")["Body"].read() == b"x"


def test_version_2_uploads_parts(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
    url = presigned(gateway, "upload_part", "parts", UploadId=upload, PartNumber=1)
    status, headers, _ = fetch("PUT", url, b"part")
    assert status == 200
    client.complete_multipart_upload(
        Bucket=BUCKET,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": headers["etag"]}]},
    )
    assert client.get_object(Bucket=BUCKET, Key="parts")["Body"].read() == b"part"
    assert code(fetch("PUT", url.replace("partNumber=1", "partNumber=2"), b"other")[2]) == "SignatureDoesNotMatch"


def test_version_2_covers_the_request(gateway: RunningGateway) -> None:
    s3_client(gateway).put_object(Bucket=BUCKET, Key="covered", Body=b"x")
    url = presigned(gateway, "get_object", "covered")
    assert fetch("GET", url)[0] == 200
    for method, changed, headers in (
        ("PUT", url, {}),
        ("DELETE", url, {}),
        ("HEAD", url, {}),
        ("GET", url.replace("covered", "other"), {}),
        ("GET", url.replace("covered", "../presigned/covered"), {}),
        ("GET", url + "&response-content-type=text/html", {}),
        ("GET", url + "&partNumber=1", {}),
        ("GET", url + "&x-amz-meta-a=1", {}),
        ("GET", url + "&x-id=GetObject", {}),
        ("GET", url.replace("Expires=1", "Expires=2"), {}),
        ("GET", url, {"x-amz-expected-bucket-owner": "alpha"}),
        ("GET", url, {"Content-Type": "text/html"}),
        ("GET", url.replace(ALPHA.access_key, BETA.access_key), {}),
    ):
        status, _, content = fetch(method, changed, headers=headers)
        assert status == 403, (method, changed)
        assert method == "HEAD" or code(content) in ("SignatureDoesNotMatch", "AccessDenied")
    status, _, content = fetch("GET", url + "&prefix=a")
    assert (status, b"s3v4" in content) == (501, False)  # no parameter of this operation at all
    assert s3_client(gateway).get_object(Bucket=BUCKET, Key="covered")["Body"].read() == b"x"


def test_version_2_expires(gateway: RunningGateway) -> None:
    s3_client(gateway).put_object(Bucket=BUCKET, Key="expiring", Body=b"x")
    status, _, content = fetch("GET", presigned(gateway, "get_object", "expiring", -5))
    assert (status, code(content)) == (403, "AccessDenied")
    status, _, content = fetch("GET", presigned(gateway, "get_object", "expiring", 8 * 24 * 3600))
    assert (status, code(content)) == (403, "AccessDenied")
    assert b"604800" in content
    assert fetch("GET", presigned(gateway, "get_object", "expiring", 7 * 24 * 3600))[0] == 200


def test_version_2_does_not_cover_listings(gateway: RunningGateway) -> None:
    for operation in ("list_objects", "list_objects_v2"):
        url = s3_client(gateway).generate_presigned_url(operation, Params={"Bucket": BUCKET, "Prefix": "a/"})
        status, _, content = fetch("GET", url)
        assert (status, code(content)) == (403, "AccessDenied")
        assert b"signature_version='s3v4'" in content


def test_version_2_is_for_its_own_tenant(gateway: RunningGateway) -> None:
    target = {"Bucket": f"alpha_{BUCKET}", "Key": "k"}
    for operation, method in (("get_object", "GET"), ("put_object", "PUT"), ("delete_object", "DELETE")):
        url = s3_client(gateway, BETA).generate_presigned_url(operation, Params=target)
        status, _, content = fetch(method, url)
        assert (status, code(content)) == (403, "AccessDenied")


def test_version_2_can_be_switched_off(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(listen={"sigv2": False})
    s3_client(gateway).create_bucket(Bucket=BUCKET)
    for operation, method in (("get_object", "GET"), ("put_object", "PUT")):
        status, _, content = fetch(method, presigned(gateway, operation, "k"), b"x" if method == "PUT" else None)
        assert (status, code(content)) == (400, "AuthorizationHeaderMalformed")
        assert b"signature_version='s3v4'" in content
    assert refused(s3_client(gateway).head_object, Bucket=BUCKET, Key="k")[1] == 404


def test_version_2_does_not_sign_headers(gateway: RunningGateway) -> None:
    client = s3_client(gateway, signature_version="s3")
    code_, status = refused(client.list_objects, Bucket=BUCKET)
    assert (code_, status) == ("AuthorizationHeaderMalformed", 400)


def test_version_4_carries_headers_in_the_query(gateway: RunningGateway) -> None:
    # as the presigner of the JavaScript SDK does with every x-amz-* header
    path, headers = f"/{BUCKET}/carried-v4", {"host": f"127.0.0.1:{gateway.port}"}
    carried = "x-amz-acl=private&x-amz-meta-a=x%20y&x-amz-tagging=t%3Dv&x-id=PutObject"
    query = sigv4.presign(CREDENTIAL, "PUT", path, carried, headers, region="us-east-1", now=time.time(), expires_s=60)
    assert fetch("PUT", f"{gateway.url}{path}?{query}", b"x")[0] == 200
    head = s3_client(gateway).head_object(Bucket=BUCKET, Key="carried-v4")
    assert head["Metadata"] == {"a": "x y"}
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-amz-tagging-count"] == "1"
    for changed in (query.replace("x%20y", "z"), query.replace("x-amz-acl=private&", ""), query + "&x-amz-meta-b=1"):
        status, _, content = fetch("PUT", f"{gateway.url}{path}?{changed}", b"y")
        assert (status, code(content)) == (403, "SignatureDoesNotMatch")
    unoffered = sigv4.presign(
        CREDENTIAL,
        "PUT",
        path,
        "x-amz-server-side-encryption=AES256",
        headers,
        region="us-east-1",
        now=time.time(),
        expires_s=60,
    )
    status, _, content = fetch("PUT", f"{gateway.url}{path}?{unoffered}", b"y")
    assert (status, code(content)) == (501, "NotImplemented")
