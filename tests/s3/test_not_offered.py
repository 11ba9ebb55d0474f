"""What S3 has and this gateway has not, asked for by name: refused cleanly, and nothing changes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.gateways import RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"

OF_BUCKETS = """
    object-lock website logging replication encryption notification accelerate requestPayment
    ownershipControls publicAccessBlock inventory analytics metrics intelligent-tiering metadataConfiguration session
""".split()  # noqa: SIM905
OF_OBJECTS = ["retention", "legal-hold", "torrent", "restore", "select&select-type=2", "renameObject", "annotation"]
HEADERS = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-object-lock-mode": "GOVERNANCE",
    "x-amz-object-lock-legal-hold": "ON",
    "x-amz-website-redirect-location": "/other",
    "x-amz-storage-class": "GLACIER",
    "x-amz-grant-read": 'id="beta"',
    "x-amz-acl": "public-read-write",
    "x-amz-mfa": "serial 123456",
    "x-amz-write-offset-bytes": "0",
}


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    found = s3_client(gateway)
    found.put_object(Bucket=BUCKET, Key="not-offered", Body=b"x")
    return found


def answer(gateway: RunningGateway, method: str, path: str, query: str = "", **headers: str) -> tuple[int, str, str]:
    """Status, code and message."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, body = send(gateway, method, path, {"content-length": "0", **named}, query=query)
    fields = {child.tag: child.text or "" for child in ET.fromstring(body)}
    return status, fields["Code"], fields["Message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize("subresource", OF_BUCKETS)
def test_subresources_of_buckets(gateway: RunningGateway, client: Any, method: str, subresource: str) -> None:
    status, code, message = answer(gateway, method, f"/{BUCKET}", subresource)
    assert (status, code, repr(subresource) in message) == (501, "NotImplemented", True)
    assert client.head_object(Bucket=BUCKET, Key="not-offered")["ContentLength"] == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize("subresource", OF_OBJECTS)
def test_subresources_of_objects(gateway: RunningGateway, client: Any, method: str, subresource: str) -> None:
    status, code, message = answer(gateway, method, f"/{BUCKET}/not-offered", subresource)
    assert (status, code, repr(subresource.partition("&")[0]) in message) == (501, "NotImplemented", True)
    assert client.get_object(Bucket=BUCKET, Key="not-offered")["Body"].read() == b"x"


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_ask_for_more(gateway: RunningGateway, client: Any, header: str) -> None:
    status, code, message = answer(gateway, "PUT", f"/{BUCKET}/not-offered", **{header: HEADERS[header]})
    assert (status, code) == (501, "NotImplemented")
    assert header in message or HEADERS[header] in message
    assert client.get_object(Bucket=BUCKET, Key="not-offered")["Body"].read() == b"x"


def test_headers_that_change_nothing_are_accepted(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="harmless", Body=b"x", StorageClass="STANDARD", RequestPayer="requester")
    client.delete_object(Bucket=BUCKET, Key="harmless", BypassGovernanceRetention=True, RequestPayer="requester")
    client.create_bucket(Bucket="harmless", ObjectLockEnabledForBucket=False, ObjectOwnership="BucketOwnerEnforced")
    assert refused(client.create_bucket, Bucket="locked", ObjectLockEnabledForBucket=True) == ("NotImplemented", 501)
    client.delete_bucket(Bucket="harmless")


def test_calls_of_boto3(client: Any) -> None:
    target = {"Bucket": BUCKET, "Key": "not-offered"}
    enabled = {"VersioningConfiguration": {"Status": "Enabled"}}
    for call, arguments in (
        (client.put_bucket_versioning, {"Bucket": BUCKET, **enabled}),
        (client.get_object_lock_configuration, {"Bucket": BUCKET}),
        (client.get_bucket_website, {"Bucket": BUCKET}),
        (client.get_bucket_logging, {"Bucket": BUCKET}),
        (client.get_bucket_replication, {"Bucket": BUCKET}),
        (client.get_bucket_encryption, {"Bucket": BUCKET}),
        (client.get_object_retention, target),
        (client.restore_object, {**target, "RestoreRequest": {"Days": 1}}),
    ):
        assert refused(call, **arguments) == ("NotImplemented", 501)
