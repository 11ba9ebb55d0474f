"""Multipart uploads as boto3 sees them, against a running gateway."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError

from kvgate.chunk.key import ChunkKey, ManifestKey
from tests.client.chunks import SPACE, chunks
from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client

BUCKET = "alpha-bucket"
MiB = 1 << 20
PART = 5 * MiB

Start = Callable[..., RunningGateway]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


class Upload:
    """One upload in progress, begun as boto3's transfers begin theirs."""

    def __init__(self, client: Any, key: str, **options: Any) -> None:
        self.client = client
        if client.meta.config.request_checksum_calculation == "when_supported":
            options.setdefault("ChecksumAlgorithm", "CRC32")
        self.created = client.create_multipart_upload(Bucket=BUCKET, Key=key, **options)
        self.target = {"Bucket": BUCKET, "Key": key, "UploadId": self.created["UploadId"]}
        self.parts: list[dict[str, Any]] = []

    def send(self, number: int, body: bytes, **options: Any) -> Any:
        answer = self.client.upload_part(**self.target, PartNumber=number, Body=body, **options)
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        self.parts = [part for part in self.parts if part["PartNumber"] != number]
        self.parts.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})
        self.parts.sort(key=lambda part: part["PartNumber"])
        return answer

    def complete(self, parts: list[dict[str, Any]] | None = None, **options: Any) -> Any:
        listed = {"Parts": self.parts if parts is None else parts}
        return self.client.complete_multipart_upload(**self.target, MultipartUpload=listed, **options)

    def abort(self) -> None:
        self.client.abort_multipart_upload(**self.target)


def read(client: Any, key: str) -> bytes:
    body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def files(gateway: RunningGateway) -> int:
    return sum(1 for path in (gateway.disk / "objects").rglob("*") if path.is_file())


def settled(gateway: RunningGateway, *, used_nbytes: int, objects: int) -> None:
    """Wait until the tiers hold this and no more."""
    deadline = time.monotonic() + 20
    found: tuple[float, ...] = ()
    while time.monotonic() < deadline:
        metrics = gateway.metrics()
        found = (
            metrics['kvgate_tier_used_bytes{tier="host"}'],
            files(gateway),
            metrics['kvgate_demotion_queue_objects{tier="disk"}'],
        )
        if found[0] <= used_nbytes + 4096 * max(objects, 1) and found[1:] == (objects, 0):
            return
        time.sleep(0.05)
    raise AssertionError(f"expected {used_nbytes} bytes in memory and {objects} files, found {found}")


# --- transfers as their users make them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (None, 3),
        (TransferConfig(multipart_threshold=5 * MiB, multipart_chunksize=5 * MiB, max_concurrency=20), 5),
        (TransferConfig(multipart_chunksize=7 * MiB + 13, use_threads=False), 3),
    ],
)
def test_files_go_up_and_come_down(client: Any, tmp_path: Path, config: TransferConfig | None, parts: int) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(20 * MiB + 7))
    extra = {"ContentType": "text/plain", "Metadata": {"a": "1"}}
    client.upload_file(str(source), BUCKET, "mp/file", ExtraArgs=extra, Config=config)
    client.download_file(BUCKET, "mp/file", str(back), Config=config)
    assert back.read_bytes() == source.read_bytes()
    head = client.head_object(Bucket=BUCKET, Key="mp/file", ChecksumMode="ENABLED")
    assert (head["ContentType"], head["Metadata"], head["ContentLength"]) == ("text/plain", {"a": "1"}, 20 * MiB + 7)
    assert head["ChecksumType"] == "COMPOSITE"
    assert head["ChecksumCRC32"].endswith(f"-{parts}")


def test_a_stream_of_unknown_length_goes_up(client: Any) -> None:
    body = os.urandom(20 * MiB)
    client.upload_fileobj(io.BytesIO(body), BUCKET, "mp/stream")
    assert read(client, "mp/stream") == body


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_of_every_algorithm(client: Any, tmp_path: Path, algorithm: str) -> None:
    source, key = tmp_path / "source", f"mp/{algorithm}"
    source.write_bytes(os.urandom(18 * MiB))
    client.upload_file(str(source), BUCKET, key, ExtraArgs={"ChecksumAlgorithm": algorithm})
    got = client.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    head = client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
    field = f"Checksum{algorithm}"
    assert got[field] == head[field]
    assert got["ChecksumType"] == head["ChecksumType"]
    assert got["ChecksumType"] == ("FULL_OBJECT" if algorithm == "CRC64NVME" else "COMPOSITE")
    assert got[field].endswith("-3") is (algorithm != "CRC64NVME")
    assert got["Body"].read() == source.read_bytes()


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C"])
def test_a_full_object_checksum_is_verified_and_returned(client: Any, algorithm: str) -> None:
    body = os.urandom(PART + 1000)
    whole = client.put_object(Bucket=BUCKET, Key="mp/at-once", Body=body, ChecksumAlgorithm=algorithm)
    value, field = whole[f"Checksum{algorithm}"], f"Checksum{algorithm}"
    options = {"ChecksumAlgorithm": algorithm, "ChecksumType": "FULL_OBJECT"}
    upload = Upload(client, f"mp/full-{algorithm}", **options)
    assert (upload.created["ChecksumAlgorithm"], upload.created["ChecksumType"]) == (algorithm, "FULL_OBJECT")
    upload.send(1, body[:PART], ChecksumAlgorithm=algorithm)
    upload.send(2, body[PART:], ChecksumAlgorithm=algorithm)
    wrong = base64.b64encode(zlib.crc32(b"else").to_bytes(4, "big")).decode()
    assert refused(upload.complete, **{field: wrong, "ChecksumType": "FULL_OBJECT"}) == ("BadDigest", 400)
    assert refused(upload.complete, ChecksumType="COMPOSITE") == ("InvalidRequest", 400)
    answer = upload.complete(**{field: value, "ChecksumType": "FULL_OBJECT"})
    assert (answer[field], answer["ChecksumType"], answer["ETag"]) == (value, "FULL_OBJECT", whole["ETag"])
    got = client.get_object(Bucket=BUCKET, Key=f"mp/full-{algorithm}", ChecksumMode="ENABLED")
    assert got[field] == value
    assert got["Body"].read() == body  # botocore verifies the checksum while it reads


@pytest.mark.parametrize("calculation", ["when_required", "when_supported"])
def test_uploads_that_ask_for_no_checksum_have_the_stores(gateway: RunningGateway, calculation: str) -> None:
    """boto3's plain calls name no algorithm and may still send checksums with the parts."""
    client = s3_client(gateway, request_checksum_calculation=calculation)
    target = {"Bucket": BUCKET, "Key": "mp/plain"}
    target["UploadId"] = client.create_multipart_upload(**target)["UploadId"]
    part = client.upload_part(**target, PartNumber=1, Body=b"123456789")
    assert ("ChecksumCRC32" in part) is (calculation == "when_supported")
    listed = {"PartNumber": 1, **{name: part[name] for name in ("ETag", "ChecksumCRC32") if name in part}}
    answer = client.complete_multipart_upload(**target, MultipartUpload={"Parts": [listed]})
    assert (answer["ChecksumCRC64NVME"], answer["ChecksumType"]) == ("rosUhgp5mIg=", "FULL_OBJECT")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_completions_are_refused_and_lose_nothing(client: Any) -> None:
    upload = Upload(client, "mp/wrong")
    bodies = [os.urandom(PART), os.urandom(PART), b"end"]
    for number, body in enumerate(bodies, 1):
        upload.send(number, body)
    one, two, three = upload.parts
    complete = upload.complete
    assert refused(complete, parts=[two, one]) == ("InvalidPartOrder", 400)
    assert refused(complete, parts=[one, {**two, "ETag": one["ETag"]}]) == ("InvalidPart", 400)
    assert refused(complete, parts=[one, {**two, "PartNumber": 7}]) == ("InvalidPart", 400)
    assert refused(complete, parts=[one, {**two, "ChecksumCRC32": one["ChecksumCRC32"]}]) == ("InvalidPart", 400)
    assert refused(complete, parts=[one, {**two, "PartNumber": 10_001}]) == ("InvalidArgument", 400)
    assert refused(complete, parts=[]) == ("MalformedXML", 400)
    assert refused(complete, MpuObjectSize=2 * PART) == ("InvalidRequest", 400)
    upload.send(4, b"more")
    assert refused(complete) == ("EntityTooSmall", 400)
    unknown = {**upload.target, "UploadId": "0" * 52}
    assert refused(client.complete_multipart_upload, **unknown, MultipartUpload={"Parts": [one]}) == (
        "NoSuchUpload",
        404,
    )
    assert refused(client.head_object, Bucket=BUCKET, Key="mp/wrong") == ("404", 404)
    unquoted = [{**part, "ETag": part["ETag"].strip('"')} for part in (one, two, three)]
    assert upload.complete(parts=unquoted, MpuObjectSize=2 * PART + 3)["Key"] == "mp/wrong"
    assert read(client, "mp/wrong") == b"".join(bodies)


def test_wrong_parts_are_refused(client: Any) -> None:
    upload = Upload(client, "mp/wrong-part")
    for number in (0, 10_001):
        assert refused(client.upload_part, **upload.target, PartNumber=number, Body=b"x") == ("InvalidArgument", 400)
    unknown = {**upload.target, "UploadId": "never"}
    assert refused(client.upload_part, **unknown, PartNumber=1, Body=b"x") == ("NoSuchUpload", 404)
    other = {**upload.target, "Key": "mp/other"}
    assert refused(client.upload_part, **other, PartNumber=1, Body=b"x") == ("NoSuchUpload", 404)
    bad = {"PartNumber": 1, "Body": b"x", "ChecksumCRC32": "AAAAAA=="}
    assert refused(client.upload_part, **upload.target, **bad) == ("BadDigest", 400)
    assert refused(client.upload_part, **upload.target, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA1") == (
        "InvalidRequest",
        400,
    )
    assert "Parts" not in client.list_parts(**upload.target)
    upload.abort()


def test_wrong_beginnings_are_refused(client: Any) -> None:
    begin = client.create_multipart_upload
    assert refused(begin, Bucket="never-made", Key="k") == ("NoSuchBucket", 404)
    assert refused(begin, Bucket=BUCKET, Key="kv/other") == ("InvalidArgument", 400)
    assert refused(begin, Bucket=BUCKET, Key=f"kv/{'ab' * 32}/{'cd' * 32}") == ("UnknownSpace", 400)
    wrong = {"ChecksumAlgorithm": "SHA256", "ChecksumType": "FULL_OBJECT"}
    assert refused(begin, Bucket=BUCKET, Key="k", **wrong) == ("InvalidRequest", 400)
    assert refused(begin, Bucket=BUCKET, Key="k", Metadata={"a": "v" * 3000}) == ("MetadataTooLarge", 400)


def test_another_tenant_sees_and_changes_nothing(gateway: RunningGateway, client: Any) -> None:
    upload = Upload(client, "mp/mine")
    upload.send(1, b"part")
    other = s3_client(gateway, BETA)
    target = {**upload.target, "Bucket": "shared-name"}
    listed = {"MultipartUpload": {"Parts": upload.parts}}
    for bucket, code in [("shared-name", "NoSuchUpload"), (BUCKET, "NoSuchBucket")]:
        target["Bucket"] = bucket
        assert refused(other.upload_part, **target, PartNumber=1, Body=b"x") == (code, 404)
        assert refused(other.complete_multipart_upload, **target, **listed) == (code, 404)
        assert refused(other.abort_multipart_upload, **target) == (code, 404)
        assert refused(other.list_parts, **target) == (code, 404)
    assert "Uploads" not in other.list_multipart_uploads(Bucket="shared-name")
    upload.complete()
    assert read(client, "mp/mine") == b"part"


def test_the_bucket_of_uploads_cannot_be_named(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    upload = Upload(client, "mp/hidden")
    upload.send(1, b"part")
    part = f"/_uploads/{upload.target['UploadId']}/00001"
    assert "_uploads" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    assert refused_by_name(client, "GET", "/_uploads?list-type=2")
    assert refused_by_name(client, "GET", part)
    assert refused_by_name(client, "DELETE", part)
    assert refused_by_name(client, "PUT", "/_uploads")
    assert refused_by_name(client, "POST", "/_uploads/k?uploads")
    upload.abort()


def refused_by_name(client: Any, method: str, target: str) -> bool:
    """Whether a signed request for a bucket that boto3 itself would not let pass is an InvalidBucketName."""
    request = AWSRequest(method, client.meta.endpoint_url + target)
    S3SigV4Auth(client._request_signer._credentials, "s3", "us-east-1").add_auth(request)
    try:
        urllib.request.urlopen(urllib.request.Request(request.url, None, dict(request.headers), method=method))
    except urllib.error.HTTPError as error:
        return error.code == 400 and b"<Code>InvalidBucketName</Code>" in error.read()
    return False


# --- listing ----------------------------------------------------------------------------------------------------------


def test_uploads_are_listed_by_key_in_pages(client: Any) -> None:
    client.create_bucket(Bucket="mp-listing")
    keys = ["a b", "d/1", "d/1", "d/2", "z"]
    begin = client.create_multipart_upload
    created = [begin(Bucket="mp-listing", Key=key, ChecksumAlgorithm="CRC32")["UploadId"] for key in keys]
    for page_size in (1, 2, 1000):
        pages = client.get_paginator("list_multipart_uploads").paginate(
            Bucket="mp-listing", PaginationConfig={"PageSize": page_size}
        )
        found = [item for page in pages for item in page.get("Uploads", [])]
        assert [(item["Key"], item["UploadId"]) for item in found] == list(zip(keys, created, strict=True))
        pages = client.get_paginator("list_multipart_uploads").paginate(
            Bucket="mp-listing", Delimiter="/", PaginationConfig={"PageSize": page_size}
        )
        rolled = list(pages)
        assert [item["Key"] for page in rolled for item in page.get("Uploads", [])] == ["a b", "z"]
        assert [item["Prefix"] for page in rolled for item in page.get("CommonPrefixes", [])] == ["d/"]
    (item,) = client.list_multipart_uploads(Bucket="mp-listing", Prefix="a")["Uploads"]
    assert (item["Owner"]["ID"], item["StorageClass"], item["ChecksumAlgorithm"]) == ("alpha", "STANDARD", "CRC32")
    encoded = client.list_multipart_uploads(Bucket="mp-listing", Prefix="a", EncodingType="url")
    assert encoded["Uploads"][0]["Key"] in ("a b", "a%20b")
    for key, upload_id in zip(keys, created, strict=True):
        client.abort_multipart_upload(Bucket="mp-listing", Key=key, UploadId=upload_id)
    client.delete_bucket(Bucket="mp-listing")


def test_parts_are_listed_in_pages(client: Any) -> None:
    upload = Upload(client, "mp/parts")
    for number in (2, 1, 10_000, 30):
        upload.send(number, b"x" * number)
    upload.send(30, b"again")
    for page_size in (1, 3, 1000):
        pages = client.get_paginator("list_parts").paginate(**upload.target, PaginationConfig={"PageSize": page_size})
        found = [part for page in pages for part in page["Parts"]]
        assert [(part["PartNumber"], part["Size"]) for part in found] == [(1, 1), (2, 2), (30, 5), (10_000, 10_000)]
        assert [(part["ETag"], part["ChecksumCRC32"]) for part in found] == [
            (part["ETag"], part["ChecksumCRC32"]) for part in upload.parts
        ]
    page = client.list_parts(**upload.target)
    assert (page["ChecksumAlgorithm"], page["ChecksumType"], page["Initiator"]["ID"]) == ("CRC32", "COMPOSITE", "alpha")
    upload.abort()
    assert refused(client.list_parts, **upload.target) == ("NoSuchUpload", 404)
    assert refused(upload.abort) == ("NoSuchUpload", 404)


# --- completing -------------------------------------------------------------------------------------------------------


def test_completing_again_gives_the_same_answer(client: Any) -> None:
    upload = Upload(client, "mp/twice")
    upload.send(1, b"part")
    first, second = upload.complete(IfNoneMatch="*"), upload.complete(IfNoneMatch="*")
    del first["ResponseMetadata"], second["ResponseMetadata"]
    assert first == second
    client.put_object(Bucket=BUCKET, Key="mp/twice", Body=b"other")
    assert refused(upload.complete) == ("NoSuchUpload", 404)


def test_conditions_of_a_completion(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="mp/cond", Body=b"one")["ETag"]
    upload = Upload(client, "mp/cond")
    upload.send(1, b"two")
    assert refused(upload.complete, IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused(upload.complete, IfMatch='"other"') == ("PreconditionFailed", 412)
    upload.complete(IfMatch=etag)
    assert read(client, "mp/cond") == b"two"


def test_one_of_many_completions_wins(client: Any) -> None:
    bodies = [os.urandom(PART) + bytes([number]) for number in range(16)]

    def prepare(number: int) -> Upload:
        upload = Upload(client, "mp/race")
        upload.send(1, bodies[number][:PART])
        upload.send(2, bodies[number][PART:])
        return upload

    def finish(upload: Upload) -> str:
        try:
            upload.complete(IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ThreadPoolExecutor(16) as threads:
        uploads = list(threads.map(prepare, range(16)))
        results = list(threads.map(finish, uploads))
    assert sorted(results) == ["PreconditionFailed"] * 15 + ["won"]
    assert read(client, "mp/race") == bodies[results.index("won")]
    for upload, result in zip(uploads, results, strict=True):
        if result != "won":
            upload.abort()


def test_a_chunk_goes_up_in_parts_if_it_is_what_its_key_says(start_gateway: Start) -> None:
    gateway = start_gateway(store={"min_part": 1024})
    client = s3_client(gateway)
    (own, body), (_, wrong) = chunks(b"alpha", 2)
    manifest, key = str(ManifestKey(SPACE.id)), str(ChunkKey(SPACE.id, own.hex()))
    client.put_object(Bucket=BUCKET, Key=manifest, Body=SPACE.canonical_json())
    bad = Upload(client, key)
    bad.send(1, wrong[:5000])
    bad.send(2, wrong[5000:])
    assert refused(bad.complete) == ("InvalidChunk", 400)
    assert [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == [manifest]
    bad.abort()
    settled(gateway, used_nbytes=4096, objects=1)
    good = Upload(client, key)
    good.send(1, body[:5000])
    good.send(2, body[5000:])
    good.complete()
    assert read(client, key) == body


# --- room, restarts and deaths ----------------------------------------------------------------------------------------


def test_quota_holds_for_parts(start_gateway: Start) -> None:
    gateway = start_gateway()
    gateway.stop()
    gateway.config["tenants"]["alpha"]["quota"] = "11MiB"
    gateway.start()
    client = s3_client(gateway)
    upload = Upload(client, "k")
    upload.send(1, bytes(PART))
    upload.send(2, bytes(PART))
    assert refused(upload.send, number=3, body=bytes(2 * MiB)) == ("QuotaExceeded", 403)
    upload.complete()
    assert refused(client.put_object, Bucket=BUCKET, Key="l", Body=bytes(2 * MiB)) == ("QuotaExceeded", 403)
    client.delete_object(Bucket=BUCKET, Key="k")
    client.put_object(Bucket=BUCKET, Key="l", Body=bytes(10 * MiB))


def test_nothing_is_left_of_uploads_that_ended(start_gateway: Start) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    client.list_buckets()
    body = os.urandom(2 * PART + 5)
    descriptors: list[int] = []
    for _ in range(4):
        for number in range(3):
            aborted = Upload(client, f"aborted-{number}")
            aborted.send(1, body[:PART])
            aborted.abort()
        done = Upload(client, "done")
        done.send(1, body[:PART])
        done.send(2, body[PART : 2 * PART])
        done.send(2, body[PART : 2 * PART])
        done.send(3, body[2 * PART :])
        assert refused(done.complete, MpuObjectSize=1) == ("InvalidRequest", 400)
        done.complete()
        settled(gateway, used_nbytes=len(body), objects=1)
        descriptors.append(gateway.descriptors())
    assert descriptors[-1] - descriptors[0] <= 3, f"{descriptors}: connections and segments come and go, no more"
    client.delete_object(Bucket=BUCKET, Key="done")
    settled(gateway, used_nbytes=0, objects=0)


@pytest.mark.parametrize("death", ["stop", "kill"])
def test_an_upload_survives_a_restart(start_gateway: Start, death: str) -> None:
    gateway = start_gateway(store={"ack": "disk"} if death == "kill" else {})
    bodies = [os.urandom(PART), os.urandom(PART), b"end"]
    upload = Upload(s3_client(gateway), "k", ContentType="a/b")
    for number in (1, 2):
        upload.send(number, bodies[number - 1])
    getattr(gateway, death)()
    gateway.start()
    upload.client = s3_client(gateway)
    assert [part["Size"] for part in upload.client.list_parts(**upload.target)["Parts"]] == [PART, PART]
    upload.send(3, bodies[2])
    upload.complete()
    got = upload.client.get_object(Bucket=BUCKET, Key="k", ChecksumMode="ENABLED")
    assert (got["Body"].read(), got["ContentType"], got["ChecksumType"]) == (b"".join(bodies), "a/b", "COMPOSITE")
    gateway.restart()
    assert read(s3_client(gateway), "k") == b"".join(bodies)
    settled(gateway, used_nbytes=sum(map(len, bodies)), objects=1)


def test_a_kill_during_a_completion_leaves_the_object_or_the_upload(start_gateway: Start) -> None:
    gateway = start_gateway(store={"ack": "disk"})
    choose = random.Random(20261122)
    outcomes = []
    for turn in range(12):
        client, key = s3_client(gateway), f"k{turn}"
        bodies = [os.urandom(PART) for _ in range(4)]
        upload = Upload(client, key)
        for number, body in enumerate(bodies, 1):
            upload.send(number, body)

        def finish(upload: Upload = upload) -> None:
            with contextlib.suppress(ClientError, BotoCoreError):
                upload.complete()

        running = threading.Thread(target=finish)
        running.start()
        time.sleep(choose.uniform(0.0, 0.1))
        gateway.kill()
        running.join()
        gateway.start()
        client = upload.client = s3_client(gateway)
        present = "Contents" in client.list_objects_v2(Bucket=BUCKET, Prefix=key)
        outcomes.append(present)
        if not present:
            upload.complete()
        assert read(client, key) == b"".join(bodies)
        for item in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=item["Key"], UploadId=item["UploadId"])
        client.delete_object(Bucket=BUCKET, Key=key)
    assert set(outcomes) == {False, True}, "the kills came all too early, or all too late"
    settled(gateway, used_nbytes=0, objects=0)


def test_stale_uploads_are_given_up(start_gateway: Start) -> None:
    gateway = start_gateway(store={"upload_ttl": "1s"})
    upload = Upload(s3_client(gateway), "k")
    upload.send(1, b"part")
    time.sleep(2.5)
    assert refused(upload.complete) == ("NoSuchUpload", 404)
    settled(gateway, used_nbytes=0, objects=0)
