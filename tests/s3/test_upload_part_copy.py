"""UploadPartCopy as boto3 sees it, against a running gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.gateways import RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"
MiB = 1 << 20
PART = 5 * MiB


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


class Upload:
    """One upload in progress, of copied parts."""

    def __init__(self, client: Any, key: str, source: str, **options: Any) -> None:
        self.client = client
        self.source = {"Bucket": BUCKET, "Key": source}
        created = client.create_multipart_upload(Bucket=BUCKET, Key=key, **options)
        self.target = {"Bucket": BUCKET, "Key": key, "UploadId": created["UploadId"]}
        self.parts: list[dict[str, Any]] = []

    def copy(self, number: int, span: str | None = None, **options: Any) -> Any:
        wanted = {"CopySourceRange": span} if span else {}
        arguments = {**self.target, "PartNumber": number, "CopySource": self.source, **wanted, **options}
        result = self.client.upload_part_copy(**arguments)["CopyPartResult"]
        checksums = {name: value for name, value in result.items() if name.startswith("Checksum")}
        self.parts.append({"PartNumber": number, "ETag": result["ETag"], **checksums})
        return result

    def refused(self, number: int = 1, **options: Any) -> tuple[str, int]:
        arguments = {**self.target, "PartNumber": number, "CopySource": self.source, **options}
        return refused(self.client.upload_part_copy, **arguments)

    def complete(self) -> Any:
        return self.client.complete_multipart_upload(**self.target, MultipartUpload={"Parts": self.parts})


def read(client: Any, key: str) -> bytes:
    return bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def test_parts_are_copied_whole_and_in_ranges(client: Any) -> None:
    body = os.urandom(2 * PART + 5)
    client.put_object(Bucket=BUCKET, Key="partcopy/from", Body=body)
    upload = Upload(client, "partcopy/to", "partcopy/from")
    first = upload.copy(1)
    assert first["ETag"] == client.head_object(Bucket=BUCKET, Key="partcopy/from")["ETag"]
    assert first["LastModified"]
    upload.copy(2, f"bytes=0-{PART - 1}")
    upload.copy(3, f"bytes={PART}-{2 * PART + 4}")
    upload.copy(4, "bytes=7-7")
    assert [part["Size"] for part in client.list_parts(**upload.target)["Parts"]] == [len(body), PART, PART + 5, 1]
    upload.complete()
    assert read(client, "partcopy/to") == body + body + body[7:8]


def test_copied_and_sent_parts_make_one_object(client: Any) -> None:
    body = os.urandom(PART)
    client.put_object(Bucket=BUCKET, Key="partcopy/from", Body=body)
    upload = Upload(client, "partcopy/mixed", "partcopy/from")
    upload.copy(1)
    sent = client.upload_part(**upload.target, PartNumber=2, Body=b"end")
    upload.parts.append({"PartNumber": 2, "ETag": sent["ETag"]})
    upload.complete()
    assert read(client, "partcopy/mixed") == body + b"end"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.parametrize("sent_with", ["CRC32", "SHA256"])
def test_copied_parts_have_the_checksum_of_their_upload(client: Any, algorithm: str, sent_with: str) -> None:
    body = os.urandom(PART + 9)
    client.put_object(Bucket=BUCKET, Key="partcopy/sums", Body=body, ChecksumAlgorithm=sent_with)
    field = f"Checksum{algorithm}"
    whole = client.put_object(Bucket=BUCKET, Key="partcopy/same", Body=body, ChecksumAlgorithm=algorithm)[field]
    part = client.put_object(Bucket=BUCKET, Key="partcopy/same", Body=body[:PART], ChecksumAlgorithm=algorithm)[field]
    upload = Upload(client, "partcopy/summed", "partcopy/sums", ChecksumAlgorithm=algorithm)
    assert upload.copy(1)[field] == whole
    assert upload.copy(2, f"bytes=0-{PART - 1}")[field] == part
    upload.complete()
    got = client.get_object(Bucket=BUCKET, Key="partcopy/summed", ChecksumMode="ENABLED")
    assert got["ChecksumType"] == ("FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE")
    assert got["Body"].read() == body + body[:PART]


def test_wrong_ranges_are_refused(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="partcopy/from", Body=b"0123456789")
    upload = Upload(client, "partcopy/wrong", "partcopy/from")
    for span in ("bytes=0-10", "bytes=10-10", "bytes=5-4", "bytes=5-", "bytes=-5", "0-4", "bytes=0-1,3-4", "lines=0-1"):
        assert upload.refused(CopySourceRange=span) == ("InvalidArgument", 400), span
    path, query = f"/{BUCKET}/partcopy/wrong", f"partNumber=1&uploadId={upload.target['UploadId']}"
    headers = {"x-amz-copy-source": f"{BUCKET}/partcopy/from", "x-amz-copy-source-range": ""}
    assert send(gateway, "PUT", path, headers, query=query)[0] == 400
    assert "Parts" not in client.list_parts(**upload.target)
    upload.copy(1, "bytes=0-9")
    client.abort_multipart_upload(**upload.target)


def test_wrong_sources_and_conditions_are_refused(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="partcopy/from", Body=b"0123456789")["ETag"]
    upload = Upload(client, "partcopy/wrong", "partcopy/from")
    assert upload.refused(number=10_001) == ("InvalidArgument", 400)
    assert upload.refused(CopySourceIfMatch='"other"') == ("PreconditionFailed", 412)
    assert upload.refused(CopySourceIfNoneMatch=etag) == ("PreconditionFailed", 412)
    assert upload.refused(CopySource=f"{BUCKET}/partcopy/never") == ("NoSuchKey", 404)
    assert upload.refused(CopySource=f"{BUCKET}/partcopy/from?versionId=3") == ("NoSuchVersion", 404)
    assert upload.refused(CopySource="beta_beta-bucket/k") == ("AccessDenied", 403)
    assert upload.refused(UploadId="0" * 52) == ("NoSuchUpload", 404)
    part = f"_uploads/{upload.target['UploadId']}/00001"
    upload.copy(1)
    assert upload.refused(number=2, CopySource=part) == ("InvalidBucketName", 400)
    assert len(client.list_parts(**upload.target)["Parts"]) == 1
    client.abort_multipart_upload(**upload.target)


def test_an_empty_object_is_a_part(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="partcopy/empty", Body=b"")
    upload = Upload(client, "partcopy/of-empty", "partcopy/empty")
    upload.copy(1)
    upload.complete()
    assert read(client, "partcopy/of-empty") == b""


def test_boto3_copies_large_objects_in_parts(client: Any) -> None:
    body = os.urandom(20 * MiB + 3)
    client.put_object(Bucket=BUCKET, Key="partcopy/large", Body=body, ContentType="a/b")
    config = TransferConfig(multipart_threshold=8 * MiB, multipart_chunksize=8 * MiB)
    source = {"Bucket": BUCKET, "Key": "partcopy/large"}
    client.copy(source, BUCKET, "partcopy/large2", Config=config)
    assert read(client, "partcopy/large2") == body
    assert client.head_object(Bucket=BUCKET, Key="partcopy/large2", PartNumber=1)["PartsCount"] == 3


def test_parts_of_what_is_larger_than_memory(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "24MiB"}}, store={"window": "4MiB"})
    client = s3_client(gateway)
    body = os.urandom(40 * MiB)
    client.put_object(Bucket=BUCKET, Key="large", Body=body)
    gateway.restart()
    upload = Upload(s3_client(gateway), "large2", "large", ChecksumAlgorithm="SHA256")
    upload.copy(1, f"bytes=0-{30 * MiB - 1}")
    upload.copy(2, f"bytes={30 * MiB}-{40 * MiB - 1}")
    upload.complete()
    assert read(upload.client, "large2") == body


def test_copied_parts_are_counted(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="partcopy/from", Body=b"x")
    name = 'kvgate_requests_total{operation="UploadPartCopy",status="200"}'
    before = gateway.metrics().get(name, 0.0)
    upload = Upload(client, "partcopy/counted", "partcopy/from")
    upload.copy(1)
    client.abort_multipart_upload(**upload.target)
    assert gateway.metrics()[name] == before + 1
