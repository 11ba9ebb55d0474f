"""Uploads by form, as browsers make them from what boto3 signs."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.gateways import ALPHA, BETA, Credential, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.s3.forms import BOUNDARY, end, form, part, post
from tests.wire import raw_exchange, signed_head

BUCKET = "forms"
VERSIONS = pytest.mark.parametrize("version", [None, "s3v4"])


@pytest.fixture(autouse=True, scope="module")
def _bucket(gateway: RunningGateway) -> None:
    s3_client(gateway).create_bucket(Bucket=BUCKET)


def signed(
    gateway: RunningGateway,
    key: str,
    fields: Mapping[str, str] | None = None,
    conditions: list[Any] | None = None,
    *,
    bucket: str = BUCKET,
    credential: Credential = ALPHA,
    version: str | None = None,
    expires_s: int = 600,
) -> tuple[str, dict[str, str]]:
    """The address and the fields of a form by boto3, with a condition for each; signed as it does by default."""
    options = {"signature_version": version} if version else {}
    given = dict(fields or {})
    made = s3_client(gateway, credential, **options).generate_presigned_post(
        bucket,
        key,
        Fields=given,
        Conditions=[*({name: value} for name, value in given.items()), *(conditions or [])],
        ExpiresIn=expires_s,
    )
    return made["url"], made["fields"]


def code(content: bytes) -> str:
    return ET.fromstring(content).findtext("Code") or ""


def stored(gateway: RunningGateway, key: str) -> bytes | None:
    client = s3_client(gateway)
    try:
        content: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
    return content


# --- what is stored ---------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("key", ["plain", "a b+c@d=e&f?g#h%i", "ünï/漢字", "(1)*'!", "//x"])
def test_a_form_of_boto3_is_stored(gateway: RunningGateway, version: str | None, key: str) -> None:
    key = f"post/{version}/{key}"
    url, fields = signed(gateway, key, version=version)
    assert ("x-amz-signature" in fields) is (version == "s3v4")
    status, headers, content = post(url, form(fields, b"\x00\r\ncontent"))
    assert (status, content) == (204, b"")
    head = s3_client(gateway).head_object(Bucket=BUCKET, Key=key)
    assert headers["etag"] == head["ETag"]
    assert headers["location"] == f"/{BUCKET}/{quote(key)}"
    assert (head["ContentLength"], head["ContentType"]) == (10, "binary/octet-stream")
    assert stored(gateway, key) == b"\x00\r\ncontent"


def test_a_form_by_curl_is_stored(gateway: RunningGateway, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "ü photo.png").write_bytes(content)
    url, fields = signed(gateway, "curl/${filename}", {"Content-Type": "image/png"})
    for framing in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
        command = ["curl", "-sS", "-w", "%{http_code}", *framing]
        for name, value in fields.items():
            command += ["--form-string", f"{name}={value}"]
        command += ["-F", f"file=@{tmp_path}/ü photo.png;type=text/html", "--form-string", "submit=Upload", url]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        assert done.stdout == b"204", done.stdout
        assert stored(gateway, "curl/ü photo.png") == content
        s3_client(gateway).delete_object(Bucket=BUCKET, Key="curl/ü photo.png")


def test_fields_are_stored_as_headers(gateway: RunningGateway) -> None:
    given = {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "max-age=60",
        "Content-Disposition": 'attachment; filename="a.txt"',
        "Content-Encoding": "gzip",
        "Expires": "Thu, 01 Dec 1994 16:00:00 GMT",
        "x-amz-meta-Title": "a title",
        "x-amz-storage-class": "STANDARD",
        "x-ignore-this": "whatever",
        "tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>b c</Value></Tag></TagSet></Tagging>",
    }
    url, fields = signed(gateway, "headers", given)
    assert post(url, form(fields | {"X-Ignore-That": "no condition"}, b"x"))[0] == 204
    head = s3_client(gateway).head_object(Bucket=BUCKET, Key="headers")
    assert head["ContentType"] == "text/plain; charset=utf-8"
    assert head["CacheControl"] == "max-age=60"
    assert head["ContentDisposition"] == 'attachment; filename="a.txt"'
    assert head["ContentEncoding"] == "gzip"
    assert head["Metadata"] == {"title": "a title"}
    assert head["ResponseMetadata"]["HTTPHeaders"]["expires"] == "Thu, 01 Dec 1994 16:00:00 GMT"
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-amz-tagging-count"] == "1"


def test_an_acl_is_kept(gateway: RunningGateway) -> None:
    for acl, status in (("public-read", 200), ("private", 403)):
        url, fields = signed(gateway, f"acl/{acl}", {"acl": acl})
        assert post(url, form(fields, b"shared"))[0] == 204
        head = f"GET /alpha_{BUCKET}/acl/{acl} HTTP/1.0\r\nHost: {urlsplit(url).netloc}\r\n\r\n"
        answer = raw_exchange(gateway, head.encode())
        assert answer.startswith(f"HTTP/1.0 {status} ".encode())
        assert answer.endswith(b"shared") is (status == 200)


def test_names_of_fields_are_not_case_sensitive(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "case", {"acl": "private"}, [["StArTs-WiTh", "$CoNtEnT-TyPe", "text/"]])
    swapped = {name.swapcase(): value for name, value in fields.items()} | {"cONTENT-tYPE": "text/plain"}
    body = form(swapped, b"x").replace(b'name="file"', b'name="FILE"')
    assert post(url, body)[0] == 204
    assert s3_client(gateway).head_object(Bucket=BUCKET, Key="case")["ContentType"] == "text/plain"


def test_a_large_file_arrives_exactly(gateway: RunningGateway) -> None:
    near = f"\r\n--{BOUNDARY[:-1]}".encode()
    content = (near + bytes(range(256)) * 300) * 500
    url, fields = signed(gateway, "large")
    assert post(url, form(fields, content))[0] == 204
    assert hashlib.sha256(stored(gateway, "large") or b"").digest() == hashlib.sha256(content).digest()


def test_an_empty_file_is_an_empty_object(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "empty")
    assert post(url, form(fields, b"", ""))[0] == 204
    assert stored(gateway, "empty") == b""


def test_the_location_is_the_way_that_the_bucket_was_addressed(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "qualified", bucket=f"alpha_{BUCKET}")
    status, headers, _ = post(url, form(fields, b"x"))
    assert (status, headers["location"]) == (204, f"/alpha_{BUCKET}/qualified")
    assert stored(gateway, "qualified") == b"x"


def test_a_bucket_in_the_host_name(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(listen={"domains": ["gateway.example"]})
    s3_client(gateway).create_bucket(Bucket=BUCKET)
    _, fields = signed(gateway, "a b")
    status, headers, _ = post(f"{gateway.url}/", form(fields, b"x"), {"Host": f"{BUCKET}.gateway.example"})
    assert (status, headers["location"]) == (204, "/a%20b")
    assert stored(gateway, "a b") == b"x"


# --- how it is answered -----------------------------------------------------------------------------------------------


def test_the_status_that_the_form_asks_for(gateway: RunningGateway) -> None:
    for asked, status in (("200", 200), ("201", 201), ("204", 204), ("404", 204), ("", 204)):
        url, fields = signed(gateway, "status/ü", {"success_action_status": asked})
        answer, headers, content = post(url, form(fields, b"x"))
        assert answer == status
        assert headers["etag"]
        if status != 201:
            assert content == b""
            continue
        document = ET.fromstring(content)
        assert document.tag == "PostResponse"
        assert {element.tag: element.text for element in document} == {
            "Location": f"/{BUCKET}/status/%C3%BC",
            "Bucket": BUCKET,
            "Key": "status/ü",
            "ETag": headers["etag"],
        }


@pytest.mark.parametrize("name", ["success_action_redirect", "redirect"])
@pytest.mark.parametrize("url", ["https://app.example.com/done", "http://127.0.0.1:80/a?b=c&d#e"])
def test_the_browser_is_sent_on(gateway: RunningGateway, name: str, url: str) -> None:
    target, fields = signed(gateway, "redirect/a b&ü", {name: url, "success_action_status": "201"})
    status, headers, content = post(target, form(fields, b"x"))
    assert (status, content) == (303, b"")
    sent, asked = urlsplit(headers["location"]), urlsplit(url)
    assert sent[:3] == asked[:3]
    assert sent.fragment == asked.fragment
    assert parse_qs(sent.query) == parse_qs(asked.query) | {
        "bucket": [BUCKET],
        "key": ["redirect/a b&ü"],
        "etag": [headers["etag"]],
    }


@pytest.mark.parametrize(
    "url",
    [
        *(
            "javascript:alert(1)",
            "//app.example.com/",
            "/done",
            "ftp://example.com/",
            "http://",
            "http://[",
            "https:///x",
        ),
        *("https://a b", "https://é.example", "https://a\r\nSet-Cookie: x", "data:text/html,x", ""),
    ],
)
def test_what_is_no_web_address_is_ignored(gateway: RunningGateway, url: str) -> None:
    target, fields = signed(gateway, "redirect/ignored", {"success_action_redirect": url})
    status, headers, _ = post(target, form(fields, b"x"))
    if "\n" in url:  # it cannot be kept as a header, either
        assert status in (204, 400)
    else:
        assert (status, headers["location"]) == (204, f"/{BUCKET}/redirect/ignored")
    assert "set-cookie" not in headers


def test_a_page_of_another_origin_sees_the_answer(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    rule = {"AllowedOrigins": ["https://app.example.com"], "AllowedMethods": ["POST"], "ExposeHeaders": ["ETag"]}
    client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [rule]})
    try:
        url, fields = signed(gateway, "cors")
        status, headers, _ = post(url, form(fields, b"x"), {"Origin": "https://app.example.com"})
        assert status == 204
        assert headers["access-control-allow-origin"] == "https://app.example.com"
    finally:
        client.delete_bucket_cors(Bucket=BUCKET)


# --- checks of the content --------------------------------------------------------------------------------------------


def test_checksums_are_verified(gateway: RunningGateway) -> None:
    right, wrong = b"content", b"Content"
    digests = {
        "Content-MD5": hashlib.md5(right).digest(),
        "x-amz-checksum-crc32": zlib.crc32(right).to_bytes(4, "big"),
        "x-amz-checksum-sha256": hashlib.sha256(right).digest(),
    }
    for name, digest in digests.items():
        value = base64.b64encode(digest).decode()
        url, fields = signed(gateway, f"checksum/{name}", {name: value})
        status, headers, content = post(url, form(fields, wrong))
        assert (status, code(content)) == (400, "BadDigest")
        assert stored(gateway, f"checksum/{name}") is None
        status, headers, _ = post(url, form(fields, right))
        assert status == 204
        assert stored(gateway, f"checksum/{name}") == right
        if name.startswith("x-amz"):
            assert headers[name] == value
    url, fields = signed(gateway, "checksum/malformed", {"x-amz-checksum-crc32": "x"})
    assert code(post(url, form(fields, right))[2]) == "InvalidArgument"


@pytest.mark.parametrize(
    ("nbytes", "status", "expected"),
    [(9, 400, "EntityTooSmall"), (10, 204, ""), (100_000, 204, ""), (100_001, 400, "EntityTooLarge")],
)
def test_the_length_of_the_file_is_bounded_by_the_policy(
    gateway: RunningGateway, nbytes: int, status: int, expected: str
) -> None:
    key = f"range/{nbytes}"
    url, fields = signed(gateway, key, conditions=[["content-length-range", 10, 100_000]])
    answer, _, content = post(url, form(fields, bytes(nbytes)))
    assert answer == status
    assert stored(gateway, key) == (bytes(nbytes) if status == 204 else None)
    if expected:
        assert code(content) == expected


def test_keys_of_chunks_are_verified(gateway: RunningGateway) -> None:
    for key, expected in (("kv/nonsense", "InvalidArgument"), (f"kv/{'0' * 64}/{'1' * 64}", "UnknownSpace")):
        url, fields = signed(gateway, key)
        assert code(post(url, form(fields, b"x"))[2]) == expected


def test_what_put_object_refuses_a_form_is_refused(gateway: RunningGateway) -> None:
    for key, given, expected in (
        ("a/../b", {}, "InvalidArgument"),
        ("k" * 1025, {}, "KeyTooLongError"),
        ("f", {"x-amz-server-side-encryption": "AES256"}, "NotImplemented"),
        ("f", {"x-amz-storage-class": "GLACIER"}, "NotImplemented"),
        ("f", {"x-amz-website-redirect-location": "/"}, "NotImplemented"),
        ("f", {"acl": "nonsense"}, "InvalidArgument"),
        ("f", {"tagging": "nonsense"}, "MalformedXML"),
        ("f", {"x-amz-meta-a": "x" * 3000}, "MetadataTooLarge"),
        ("f", {"x-amz-meta-a": "a\nb"}, "InvalidArgument"),
        ("f", {"x-amz-meta-ü": "a"}, "InvalidArgument"),
        ("f", {"x-amz-meta-a:b": "a"}, "InvalidArgument"),
        ("f", {"Content-Encoding": "aws-chunked"}, "InvalidArgument"),
    ):
        url, fields = signed(gateway, key, given)
        assert code(post(url, form(fields, b"x"))[2]) == expected, given
    assert stored(gateway, "f") is None


# --- who may ----------------------------------------------------------------------------------------------------------


@VERSIONS
def test_the_policy_decides_what_the_form_may_say(gateway: RunningGateway, version: str | None) -> None:
    url, fields = signed(gateway, f"policy/{version}", {"x-amz-meta-a": "1"}, version=version)
    for change in (
        {"key": "policy/other"},
        {"x-amz-meta-a": "2"},
        {"acl": "public-read"},
        {"x-amz-meta-b": "1"},
        {"success_action_redirect": "https://example.com"},
        {"submit": "Upload"},
        {"bucket": "shared-name", "acl": "private"},
    ):
        status, _, content = post(url, form(fields | change, b"x"))
        assert (status, code(content)) == (403, "AccessDenied"), change
        assert b"Invalid according to Policy: " in content
    for left_out in ("x-amz-meta-a", "key"):
        kept = {name: value for name, value in fields.items() if name != left_out}
        assert post(url, form(kept, b"x"))[0] == 403
    assert stored(gateway, f"policy/{version}") is None
    assert post(url, form(fields, b"x"))[0] == 204


def test_a_form_is_for_the_bucket_of_its_policy(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "elsewhere")
    for bucket in ("shared-name", "no-such-bucket", "beta_shared-name", f"alpha_{BUCKET}"):
        status, _, content = post(url.replace(BUCKET, bucket), form(fields, b"x"))
        assert (status, code(content)) == (403, "AccessDenied")
        status, _, content = post(url.replace(BUCKET, bucket), form(fields | {"bucket": BUCKET}, b"x"))
        assert (status, code(content)) == (403, "AccessDenied")
    url, fields = signed(gateway, "elsewhere", bucket="no-such-bucket")
    assert code(post(url, form(fields, b"x"))[2]) == "NoSuchBucket"


def test_nobody_writes_into_the_bucket_of_another(gateway: RunningGateway) -> None:
    for bucket in (f"alpha_{BUCKET}", "alpha_no-such-bucket", "nobody_bucket"):
        url, fields = signed(gateway, "theirs", bucket=bucket, credential=BETA)
        status, _, content = post(url, form(fields, b"x"))
        assert (status, code(content)) == (403, "AccessDenied")
    assert stored(gateway, "theirs") is None
    url, fields = signed(gateway, "theirs", bucket="shared-name", credential=BETA)
    assert post(url, form(fields, b"beta's"))[0] == 204
    assert refused(s3_client(gateway).head_object, Bucket="shared-name", Key="theirs")[1] == 404


def test_a_form_without_a_signature_is_refused(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "unsigned")
    status, _, content = post(url, form({"key": "unsigned"}, b"x"))
    assert (status, code(content)) == (403, "AccessDenied")
    for left_out in ("signature", "AWSAccessKeyId", "policy"):
        kept = {name: value for name, value in fields.items() if name != left_out}
        assert post(url, form(kept, b"x"))[0] in (400, 403)
    assert stored(gateway, "unsigned") is None


def test_a_forged_form_is_refused(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "forged")
    document = json.loads(base64.b64decode(fields["policy"]))
    document["conditions"] = [["starts-with", "$key", ""], ["starts-with", "$bucket", ""]]
    forged = base64.b64encode(json.dumps(document).encode()).decode()
    assert code(post(url, form(fields | {"policy": forged}, b"x"))[2]) == "SignatureDoesNotMatch"
    assert code(post(url, form(fields | {"AWSAccessKeyId": BETA.access_key}, b"x"))[2]) == "SignatureDoesNotMatch"
    assert code(post(url, form(fields | {"AWSAccessKeyId": "nobody"}, b"x"))[2]) == "InvalidAccessKeyId"
    assert stored(gateway, "forged") is None


@VERSIONS
def test_an_expired_form_is_refused(gateway: RunningGateway, version: str | None) -> None:
    url, fields = signed(gateway, "expired", version=version, expires_s=-1)
    status, _, content = post(url, form(fields, b"x"))
    assert (status, code(content)) == (403, "AccessDenied")
    assert b"Policy expired" in content


def test_version_2_can_be_switched_off(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(listen={"sigv2": False})
    s3_client(gateway).create_bucket(Bucket=BUCKET)
    url, fields = signed(gateway, "k")
    status, _, content = post(url, form(fields, b"x"))
    assert (status, code(content)) == (400, "AuthorizationHeaderMalformed")
    assert b"signature_version='s3v4'" in content
    url, fields = signed(gateway, "k", version="s3v4")
    assert post(url, form(fields, b"x"))[0] == 204


def test_what_a_bucket_policy_denies_is_denied_to_forms(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/denied/*",
    }
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    try:
        url, fields = signed(gateway, "denied/${filename}")
        assert code(post(url, form(fields, b"x", "a"))[2]) == "AccessDenied"
        url, fields = signed(gateway, "${filename}")
        assert post(url, form(fields, b"x", "allowed"))[0] == 204
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)
    assert stored(gateway, "denied/a") is None


def test_a_form_is_not_signed_twice(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "twice")
    status, _, content = post(url, form(fields, b"x"), {"Authorization": "AWS4-HMAC-SHA256 Credential=a"})
    assert (status, code(content)) == (400, "InvalidRequest")
    body = form(fields, b"x")
    headers = {
        "host": f"127.0.0.1:{gateway.port}",
        "content-type": f"multipart/form-data; boundary={BOUNDARY}",
        "content-length": str(len(body)),
    }
    answer = raw_exchange(gateway, signed_head("POST", f"/{BUCKET}", headers) + body)
    assert b"<Code>InvalidRequest</Code>" in answer
    assert stored(gateway, "twice") is None


# --- hostile forms ----------------------------------------------------------------------------------------------------


def test_malformed_forms_are_refused(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "hostile")
    good = form(fields, b"x")
    parts = [part(name, value) for name, value in fields.items()]
    for body, headers, expected in (
        (good, {"Content-Type": "multipart/form-data"}, "MalformedPOSTRequest"),
        (good, {"Content-Type": "application/octet-stream"}, "MalformedPOSTRequest"),
        (good, {"Content-Type": "multipart/form-data; boundary=other"}, "MalformedPOSTRequest"),
        (b"", {}, "MalformedPOSTRequest"),
        (good.removesuffix(end()), {}, "MalformedPOSTRequest"),
        (good.removesuffix(b"--\r\n"), {}, "MalformedPOSTRequest"),
        (b"".join(parts) + end(), {}, "InvalidArgument"),
        (part("file", "x", "f") + b"".join(parts) + end(), {}, "AccessDenied"),
        (b"".join(parts) + good, {}, "InvalidArgument"),
        (form(fields | {"key": "k" * 30_000}, b"x"), {}, "MaxPostPreDataLengthExceeded"),
        (form({f"x-ignore-{number}": "" for number in range(1000)} | fields, b"x"), {}, "MaxPostPreDataLengthExceeded"),
    ):
        status, _, content = post(url, body, headers)
        assert (status in (400, 403), code(content)) == (True, expected)
    assert stored(gateway, "hostile") is None


def test_a_boundary_in_the_file_ends_it(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "cut")
    content = f"before\r\n--{BOUNDARY}\r\nafter".encode()
    assert post(url, form(fields, content))[0] == 204
    assert stored(gateway, "cut") == b"before"


def test_an_upload_that_breaks_off_leaves_nothing(gateway: RunningGateway) -> None:
    url, fields = signed(gateway, "broken")
    body = form(fields, bytes(1 << 20))
    head = (
        f"POST {urlsplit(url).path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    assert b"204" not in raw_exchange(gateway, head.encode() + body[: len(body) // 2])[:20]
    assert stored(gateway, "broken") is None
    assert post(url, form(fields, b"whole"))[0] == 204
    assert stored(gateway, "broken") == b"whole"
