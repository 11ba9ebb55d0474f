"""CopyObject as boto3 sees it, against a running gateway."""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from kvgate.chunk.key import ManifestKey
from tests.chunks import SPACE, chunk
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"
MiB = 1 << 20

Start = Callable[..., RunningGateway]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Any:
    return s3_client(gateway)


def copy(client: Any, source: str, key: str, **options: Any) -> Any:
    return client.copy_object(Bucket=BUCKET, Key=key, CopySource={"Bucket": BUCKET, "Key": source}, **options)


def head(client: Any, key: str) -> Any:
    return client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")


def read(client: Any, key: str, bucket: str = BUCKET) -> bytes:
    return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())


def tags(client: Any, key: str) -> int:
    return int(head(client, key).get("TagCount", 0))


def refused_copy(client: Any, source: str, key: str, **options: Any) -> tuple[str, int]:
    source_of = {"Bucket": BUCKET, "Key": source}
    return refused(client.copy_object, Bucket=BUCKET, Key=key, CopySource=source_of, **options)


# --- what a copy is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, 5 * MiB + 17])
def test_a_copy_has_the_body_and_what_was_said_of_it(client: Any, nbytes: int) -> None:
    body = os.urandom(nbytes)
    said = {"ContentType": "text/plain", "CacheControl": "no-store", "Metadata": {"a": "1"}}
    client.put_object(Bucket=BUCKET, Key="copy/from", Body=body, Tagging="t=1", ACL="public-read", **said)
    answer = copy(client, "copy/from", "copy/to")
    found = head(client, "copy/to")
    assert {name: found[name] for name in said} == said
    assert read(client, "copy/to") == body
    result = answer["CopyObjectResult"]
    assert result["ETag"] == found["ETag"] == head(client, "copy/from")["ETag"]
    assert result["LastModified"].replace(microsecond=0) == found["LastModified"]
    assert result["ChecksumCRC32"] == found["ChecksumCRC32"] == head(client, "copy/from")["ChecksumCRC32"]
    assert (result["ChecksumType"], found["TagCount"]) == ("FULL_OBJECT", 1)
    client.delete_object(Bucket=BUCKET, Key="copy/from")
    assert read(client, "copy/to") == body


@pytest.mark.parametrize("key", ["a b", "a+b", "a%20b", "ü/漢字", "?versionId=3", "/lead//", "x&y=<z>", "tab\tline\n"])
def test_any_key_can_be_a_source(client: Any, key: str) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/" + key, Body=key.encode())
    copy(client, "copy/" + key, "copy/of any key")
    assert read(client, "copy/of any key") == key.encode()


def test_the_metadata_directive(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/md", Body=b"x", ContentType="a/b", Metadata={"a": "1"}, Tagging="t=1")
    copy(client, "copy/md", "copy/md2", MetadataDirective="COPY", ContentType="ignored/as-s3-does", Metadata={"b": "2"})
    found = head(client, "copy/md2")
    assert (found["ContentType"], found["Metadata"]) == ("a/b", {"a": "1"})
    copy(client, "copy/md", "copy/md2", MetadataDirective="REPLACE", Metadata={"b": "2"})
    found = head(client, "copy/md2")
    assert (found["ContentType"], found["Metadata"], found["TagCount"]) == ("binary/octet-stream", {"b": "2"}, 1)
    assert refused_copy(client, "copy/md", "copy/md2", MetadataDirective="MERGE") == ("InvalidArgument", 400)


def test_the_tagging_directive(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/tags", Body=b"x", Tagging="a=1&b=2")
    copy(client, "copy/tags", "copy/tags2")
    assert tags(client, "copy/tags2") == 2
    copy(client, "copy/tags", "copy/tags2", TaggingDirective="REPLACE", Tagging="c=3")
    assert tags(client, "copy/tags2") == 1
    copy(client, "copy/tags", "copy/tags2", TaggingDirective="REPLACE")
    assert tags(client, "copy/tags2") == 0
    assert refused_copy(client, "copy/tags", "copy/tags2", Tagging="c=3") == ("InvalidArgument", 400)
    wrong = {"TaggingDirective": "REPLACE", "Tagging": "aws:x=1"}
    assert refused_copy(client, "copy/tags", "copy/tags2", **wrong) == ("InvalidTag", 400)


def test_the_acl_of_the_source_is_not_copied(gateway: RunningGateway, client: Any) -> None:
    beta = s3_client(gateway, BETA)
    client.put_object(Bucket=BUCKET, Key="copy/acl", Body=b"x", ACL="authenticated-read")
    copy(client, "copy/acl", "copy/acl-private")
    copy(client, "copy/acl", "copy/acl-open", ACL="authenticated-read")
    assert read(beta, "copy/acl-open", f"alpha_{BUCKET}") == b"x"
    assert refused(beta.get_object, Bucket=f"alpha_{BUCKET}", Key="copy/acl-private") == ("AccessDenied", 403)


def test_a_copy_onto_itself_needs_a_change(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/self", Body=b"x", ContentType="a/b", Metadata={"a": "1"})
    assert refused_copy(client, "copy/self", "copy/self") == ("InvalidRequest", 400)
    assert refused_copy(client, "copy/self", "copy/self", ACL="public-read") == ("InvalidRequest", 400)
    with pytest.raises(client.exceptions.ClientError, match="illegal because it is trying to copy an object to itself"):
        copy(client, "copy/self", "copy/self")
    time.sleep(1.1)
    before = head(client, "copy/self")["LastModified"]
    copy(client, "copy/self", "copy/self", MetadataDirective="REPLACE", Metadata={"b": "2"})
    after = head(client, "copy/self")
    assert (after["Metadata"], after["ContentType"]) == ({"b": "2"}, "binary/octet-stream")
    assert after["LastModified"] > before
    assert read(client, "copy/self") == b"x"
    copy(client, "copy/self", "copy/self", StorageClass="STANDARD")
    copy(client, "copy/self", "copy/self", ChecksumAlgorithm="SHA256")
    assert head(client, "copy/self")["ChecksumSHA256"] == b64encode(hashlib.sha256(b"x").digest()).decode()


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256", "SHA512"])
def test_another_checksum_is_computed_on_the_way(client: Any, algorithm: str) -> None:
    body = os.urandom(3 * MiB + 5)
    client.put_object(Bucket=BUCKET, Key="copy/sum", Body=body, ChecksumAlgorithm="SHA1")
    expected = client.put_object(Bucket=BUCKET, Key="copy/as-sent", Body=body, ChecksumAlgorithm=algorithm)
    field = f"Checksum{algorithm}"
    result = copy(client, "copy/sum", "copy/sum2", ChecksumAlgorithm=algorithm)["CopyObjectResult"]
    assert result[field] == head(client, "copy/sum2")[field] == expected[field]
    assert ("ChecksumSHA1" in head(client, "copy/sum2")) is (algorithm == "SHA1")
    assert head(client, "copy/sum2")["ChecksumType"] == "FULL_OBJECT"


def test_a_composite_checksum_becomes_one_of_the_whole(client: Any) -> None:
    bodies = [os.urandom(5 * MiB), b"end"]
    target = {"Bucket": BUCKET, "Key": "copy/composite"}
    target["UploadId"] = client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        sent = client.upload_part(**target, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256")
        parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]})
    client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
    assert head(client, "copy/composite")["ChecksumType"] == "COMPOSITE"
    copy(client, "copy/composite", "copy/whole")
    found = head(client, "copy/whole")
    expected = b64encode(hashlib.sha256(b"".join(bodies)).digest()).decode()
    assert (found["ChecksumSHA256"], found["ChecksumType"]) == (expected, "FULL_OBJECT")
    one = client.head_object(Bucket=BUCKET, Key="copy/whole", PartNumber=1)
    assert "PartsCount" not in one, "a copy has no parts"
    assert one["ContentLength"] == 5 * MiB + 3


def test_an_unknown_checksum_algorithm_is_refused(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/from", Body=b"x")
    headers = {"x-amz-copy-source": f"{BUCKET}/copy/from", "x-amz-checksum-algorithm": "CRC7"}
    status, _, body = send(gateway, "PUT", f"/{BUCKET}/copy/to", headers)
    assert (status, b"<Code>InvalidArgument</Code>" in body) == (400, True)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_conditions_on_the_source(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="copy/cond", Body=b"x")["ETag"]
    modified = head(client, "copy/cond")["LastModified"]
    earlier, later = modified - timedelta(seconds=60), modified + timedelta(seconds=60)
    for holds in (
        {"CopySourceIfMatch": etag},
        {"CopySourceIfNoneMatch": '"other"'},
        {"CopySourceIfModifiedSince": earlier},
        {"CopySourceIfUnmodifiedSince": later},
        {"CopySourceIfMatch": etag, "CopySourceIfUnmodifiedSince": earlier},
    ):
        copy(client, "copy/cond", "copy/cond2", **holds)
    client.delete_object(Bucket=BUCKET, Key="copy/cond2")
    for fails in (
        {"CopySourceIfMatch": '"other"'},
        {"CopySourceIfNoneMatch": etag},
        {"CopySourceIfModifiedSince": later},
        {"CopySourceIfUnmodifiedSince": earlier},
        {"CopySourceIfNoneMatch": etag, "CopySourceIfModifiedSince": earlier},
    ):
        assert refused_copy(client, "copy/cond", "copy/cond2", **fails) == ("PreconditionFailed", 412)
    assert refused(client.head_object, Bucket=BUCKET, Key="copy/cond2") == ("404", 404)


def test_conditions_on_the_destination(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="copy/there", Body=b"old")["ETag"]
    client.put_object(Bucket=BUCKET, Key="copy/from", Body=b"new")
    assert refused_copy(client, "copy/from", "copy/there", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused_copy(client, "copy/from", "copy/there", IfMatch='"other"') == ("PreconditionFailed", 412)
    assert refused_copy(client, "copy/from", "copy/not-there", IfMatch=etag) == ("NoSuchKey", 404)
    assert read(client, "copy/there") == b"old"
    copy(client, "copy/from", "copy/there", IfMatch=etag)
    assert read(client, "copy/there") == b"new"
    client.delete_object(Bucket=BUCKET, Key="copy/new")
    copy(client, "copy/from", "copy/new", IfNoneMatch="*")


def test_one_of_many_copies_to_a_new_key_wins(gateway: RunningGateway) -> None:
    client = s3_client(gateway, max_pool_connections=16)
    client.delete_object(Bucket=BUCKET, Key="copy/race")
    for number in range(16):
        client.put_object(Bucket=BUCKET, Key=f"copy/race/{number}", Body=bytes([number]) * MiB)

    def attempt(number: int) -> str:
        try:
            copy(client, f"copy/race/{number}", "copy/race", IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(attempt, range(16)))
    assert sorted(results) == ["PreconditionFailed"] * 15 + ["won"]
    assert read(client, "copy/race") == bytes([results.index("won")]) * MiB


# --- sources ----------------------------------------------------------------------------------------------------------


def test_wrong_sources_are_refused(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/from", Body=b"x")
    for source, answer in (
        (f"{BUCKET}/copy/never", ("NoSuchKey", 404)),
        ("never-made/k", ("NoSuchBucket", 404)),
        (f"{BUCKET}/copy/from?versionId=3", ("NoSuchVersion", 404)),
        (BUCKET, ("InvalidArgument", 400)),
        (f"{BUCKET}/", ("InvalidArgument", 400)),
        ("_uploads/x/00001", ("InvalidBucketName", 400)),
        ("beta_beta-bucket/k", ("AccessDenied", 403)),
        ("nobody_bucket/k", ("AccessDenied", 403)),
    ):
        status, _, body = send(gateway, "PUT", f"/{BUCKET}/copy/wrong", {"x-amz-copy-source": source})
        assert (status, f"<Code>{answer[0]}</Code>".encode() in body) == (answer[1], True), source
    target = {"Bucket": "never-made", "Key": "k", "CopySource": f"{BUCKET}/copy/from"}
    assert refused(client.copy_object, **target) == ("NoSuchBucket", 404)
    assert refused(client.head_object, Bucket=BUCKET, Key="copy/wrong") == ("404", 404)
    named = {"Bucket": BUCKET, "Key": "copy/from", "VersionId": "null"}
    client.copy_object(Bucket=BUCKET, Key="copy/of-null", CopySource=named)
    owner = {"ExpectedSourceBucketOwner": "beta"}
    assert refused_copy(client, "copy/from", "copy/wrong", **owner) == ("AccessDenied", 403)
    copy(client, "copy/from", "copy/right", ExpectedSourceBucketOwner="alpha")


def test_what_is_shared_is_copied_into_ones_own_bucket(start_gateway: Start) -> None:
    gateway = start_gateway()
    alpha, beta = s3_client(gateway, ALPHA), s3_client(gateway, BETA)
    body = os.urandom(2 * MiB)
    alpha.put_object(Bucket=BUCKET, Key="shared/1", Body=body, Metadata={"a": "1"})
    alpha.put_object(Bucket=BUCKET, Key="shared/tagged", Body=body, Tagging="secret=project")
    alpha.put_object(Bucket=BUCKET, Key="private", Body=body)
    share = {"Effect": "Allow", "Principal": {"AWS": "beta"}, "Resource": f"arn:aws:s3:::{BUCKET}/shared/*"}
    policy = {"Version": "2012-10-17", "Statement": [{**share, "Action": "s3:GetObject"}]}
    alpha.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))

    def take(key: str, **options: Any) -> Any:
        source = {"Bucket": f"alpha_{BUCKET}", "Key": key}
        return {"Bucket": "beta-bucket", "Key": "taken", "CopySource": source, **options}

    beta.copy_object(**take("shared/1"))
    assert beta.head_object(Bucket="beta-bucket", Key="taken")["Metadata"] == {"a": "1"}
    assert read(beta, "taken", "beta-bucket") == body
    alpha.delete_object(Bucket=BUCKET, Key="shared/1")
    assert read(beta, "taken", "beta-bucket") == body
    for key in ("private", "never", "shared/1"):
        assert refused(beta.copy_object, **take(key)) == ("AccessDenied", 403)
    assert refused(beta.copy_object, **take("shared/tagged")) == ("AccessDenied", 403), "tags need a grant of their own"
    beta.copy_object(**take("shared/tagged", TaggingDirective="REPLACE"))
    policy["Statement"] = [{**share, "Action": ["s3:GetObject", "s3:GetObjectTagging"]}]
    alpha.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    beta.copy_object(**take("shared/tagged"))
    assert beta.head_object(Bucket="beta-bucket", Key="taken")["TagCount"] == 1
    into_alphas = {"Bucket": f"alpha_{BUCKET}", "Key": "shared/2", "CopySource": "beta-bucket/taken"}
    assert refused(beta.copy_object, **into_alphas) == ("AccessDenied", 403)


def test_a_source_that_is_denied_to_its_owner_is_not_copied(start_gateway: Start) -> None:
    client = s3_client(start_gateway())
    client.put_object(Bucket=BUCKET, Key="denied/1", Body=b"x")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/denied/*"}
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    assert refused_copy(client, "denied/1", "k") == ("AccessDenied", 403)


# --- keys under kv/ ---------------------------------------------------------------------------------------------------


def test_chunks_are_copied_under_the_rules_of_their_keys(start_gateway: Start) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    key, body = chunk(1)
    other_key, other_body = chunk(2)
    client.put_object(Bucket=BUCKET, Key="plain/1", Body=body, Metadata={"a": "1"})
    client.put_object(Bucket=BUCKET, Key="plain/2", Body=other_body)
    assert refused_copy(client, "plain/1", key) == ("UnknownSpace", 400)
    client.put_object(Bucket=BUCKET, Key=str(ManifestKey(SPACE.id)), Body=SPACE.canonical_json())
    assert refused_copy(client, "plain/2", key) == ("InvalidChunk", 400)
    copy(client, "plain/1", key)
    copy(client, "plain/1", key)  # the same body again
    assert head(client, key)["Metadata"] == {"a": "1"}
    changed = bytearray(body)
    changed[-1] ^= 1
    client.put_object(Bucket=BUCKET, Key="plain/1", Body=bytes(changed))
    assert refused_copy(client, "plain/1", key) == ("ImmutableConflict", 409)
    assert read(client, key) == body
    assert refused(client.head_object, Bucket=BUCKET, Key=other_key) == ("404", 404)


def test_a_chunk_copied_onto_itself_changes_what_is_said_of_it(start_gateway: Start) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    key, body = chunk(1)
    client.put_object(Bucket=BUCKET, Key=str(ManifestKey(SPACE.id)), Body=SPACE.canonical_json())
    client.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata={"a": "1"}, Tagging="t=1", ChecksumAlgorithm="SHA1")
    before = head(client, key)
    assert refused_copy(client, key, key) == ("InvalidRequest", 400)
    copy(client, key, key, MetadataDirective="REPLACE", Metadata={"b": "2"})
    after = head(client, key)
    assert (after["Metadata"], after["TagCount"], after["ChecksumSHA1"]) == ({"b": "2"}, 1, before["ChecksumSHA1"])
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
    copy(client, key, key, TaggingDirective="REPLACE", ChecksumAlgorithm="SHA256")
    gateway.restart()
    client = s3_client(gateway)
    after = head(client, key)
    assert (after["Metadata"], "TagCount" in after, "ChecksumSHA1" in after) == ({"b": "2"}, False, False)
    assert after["ChecksumSHA256"] == b64encode(hashlib.sha256(body).digest()).decode()
    assert read(client, key) == body


# --- room and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ack", ["memory", "disk"])
def test_copies_of_what_is_on_disk_or_larger_than_memory(start_gateway: Start, ack: str) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "24MiB"}}, store={"window": "4MiB", "ack": ack})
    client = s3_client(gateway)
    large, middle = os.urandom(40 * MiB), os.urandom(20 * MiB)
    client.put_object(Bucket=BUCKET, Key="large", Body=large, ChecksumAlgorithm="SHA256")
    client.put_object(Bucket=BUCKET, Key="middle", Body=middle)
    gateway.restart()
    client = s3_client(gateway)
    copy(client, "large", "large2")
    copy(client, "large", "large3", ChecksumAlgorithm="SHA1")
    copy(client, "middle", "middle2")
    copy(client, "middle", "middle", MetadataDirective="REPLACE", Metadata={"b": "2"})
    gateway.restart()
    client = s3_client(gateway)
    assert read(client, "large2") == read(client, "large3") == large
    assert read(client, "middle2") == read(client, "middle") == middle
    assert head(client, "large2")["ChecksumSHA256"] == b64encode(hashlib.sha256(large).digest()).decode()
    assert head(client, "large3")["ChecksumSHA1"] == b64encode(hashlib.sha1(large).digest()).decode()


def test_a_copy_counts_against_the_quota(start_gateway: Start) -> None:
    gateway = start_gateway()
    gateway.stop()
    gateway.config["tenants"]["alpha"]["quota"] = "5MiB"
    gateway.start()
    client = s3_client(gateway)
    client.put_object(Bucket=BUCKET, Key="a", Body=bytes(2 * MiB))
    copy(client, "a", "b")
    assert refused_copy(client, "a", "c") == ("QuotaExceeded", 403)
    client.delete_object(Bucket=BUCKET, Key="a")
    copy(client, "b", "c")


def test_others_are_answered_while_a_large_object_is_copied(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    client.put_object(Bucket=BUCKET, Key="copy/large", Body=os.urandom(100 * MiB), ChecksumAlgorithm="CRC64NVME")
    client.put_object(Bucket=BUCKET, Key="copy/small", Body=b"x")
    waits = []
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        copying = threads.submit(copy, client, "copy/large", "copy/large2", ChecksumAlgorithm="SHA1")
        while not copying.done():
            asked = time.monotonic()
            read(client, "copy/small")
            waits.append(time.monotonic() - asked)
        took = time.monotonic() - began
    assert copying.result()["CopyObjectResult"]["ChecksumSHA1"]
    assert len(waits) > 3
    assert max(waits) < max(took / 2, 0.3)
    for key in ("copy/large", "copy/large2"):
        client.delete_object(Bucket=BUCKET, Key=key)


def test_copies_are_counted(gateway: RunningGateway, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="copy/from", Body=b"x")
    name = 'kvgate_requests_total{operation="CopyObject",status="200"}'
    before = gateway.metrics().get(name, 0.0)
    copy(client, "copy/from", "copy/counted")
    assert gateway.metrics()[name] == before + 1
