"""Many conditional requests for one key at once: exactly one has its way, and what it did is there whole."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.gateways import RunningGateway, default_config
from tests.s3.clients import s3_client

BUCKET = "alpha-bucket"
MiB = 1 << 20
WIDTH = 64


@pytest.fixture(scope="module", params=["memory", "disk"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a gateway that acknowledges what is in memory, or only what is on disk."""
    folder = tmp_path_factory.mktemp("races")
    config = default_config(folder)
    config["store"] = {"ack": request.param, "min_part": MiB}
    gateway = RunningGateway(folder, config).start()
    yield s3_client(gateway, max_pool_connections=WIDTH)
    gateway.kill()


def at_once(client: Any, calls: list[Callable[[], Any]]) -> list[str]:
    """What becomes of calls that are made at the same time: "won", or the code and status of the refusal."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> str:
        ready.wait(30)
        try:
            call()
        except client.exceptions.ClientError as error:
            answer = error.response
            return f"{answer['Error']['Code']} {answer['ResponseMetadata']['HTTPStatusCode']}"
        return "won"

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def read(client: Any, key: str) -> bytes:
    return bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def puts(client: Any, key: str, bodies: list[bytes], **conditions: str) -> list[Callable[[], Any]]:
    return [
        lambda body=body: client.put_object(Bucket=BUCKET, Key=key, Body=body, **conditions)  # type: ignore[misc]
        for body in bodies
    ]


@pytest.mark.parametrize("nbytes", [1, 300_000, MiB + 1])
def test_one_of_many_puts_of_a_new_key_wins(client: Any, nbytes: int) -> None:
    key = f"new/{nbytes}"
    bodies = [bytes([number]) + os.urandom(nbytes - 1) for number in range(WIDTH)]
    results = at_once(client, puts(client, key, bodies, IfNoneMatch="*"))
    assert Counter(results) == {"won": 1, "PreconditionFailed 412": WIDTH - 1}
    assert read(client, key) == bodies[results.index("won")]
    again = at_once(client, puts(client, key, bodies, IfNoneMatch="*"))
    assert Counter(again) == {"PreconditionFailed 412": WIDTH}
    assert read(client, key) == bodies[results.index("won")]


@pytest.mark.parametrize("nbytes", [1, 300_000])
def test_one_of_many_puts_over_one_version_wins(client: Any, nbytes: int) -> None:
    key = f"over/{nbytes}"
    etag = client.put_object(Bucket=BUCKET, Key=key, Body=b"the version that all have seen")["ETag"]
    bodies = [bytes([number]) + os.urandom(nbytes - 1) for number in range(WIDTH)]
    results = at_once(client, puts(client, key, bodies, IfMatch=etag))
    assert Counter(results) == {"won": 1, "PreconditionFailed 412": WIDTH - 1}
    assert read(client, key) == bodies[results.index("won")]


def test_a_counter_loses_no_step(client: Any) -> None:
    """Each of many reads a number and writes the next one, if nobody else has meanwhile."""
    key, steps = "counter", 4
    client.put_object(Bucket=BUCKET, Key=key, Body=b"0")

    def count() -> None:
        done = 0
        while done < steps:
            found = client.get_object(Bucket=BUCKET, Key=key)
            following = str(int(found["Body"].read()) + 1).encode()
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=following, IfMatch=found["ETag"])
                done += 1
            except client.exceptions.ClientError as error:
                if error.response["Error"]["Code"] != "PreconditionFailed":
                    raise

    assert at_once(client, [count] * 8) == ["won"] * 8
    assert read(client, key) == str(8 * steps).encode()


def test_one_of_many_deletions_of_one_version_wins(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="delete", Body=b"x")["ETag"]
    call = lambda: client.delete_object(Bucket=BUCKET, Key="delete", IfMatch=etag)  # noqa: E731
    results = at_once(client, [call] * WIDTH)
    assert Counter(results) == {"won": 1, "NoSuchKey 404": WIDTH - 1}
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="delete")
    assert listed["KeyCount"] == 0


def test_a_deletion_or_a_put_over_one_version_wins(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="either", Body=b"x")["ETag"]
    bodies = [os.urandom(1000) for _ in range(WIDTH // 2)]
    deletion = lambda: client.delete_object(Bucket=BUCKET, Key="either", IfMatch=etag)  # noqa: E731
    results = at_once(client, puts(client, "either", bodies, IfMatch=etag) + [deletion] * (WIDTH // 2))
    assert results.count("won") == 1
    assert set(results) <= {"won", "PreconditionFailed 412", "NoSuchKey 404"}
    winner = results.index("won")
    if winner < len(bodies):
        assert read(client, "either") == bodies[winner]
    else:
        assert client.list_objects_v2(Bucket=BUCKET, Prefix="either")["KeyCount"] == 0


@pytest.mark.parametrize("condition", ["IfNoneMatch", "IfMatch"])
def test_one_of_many_completions_wins(client: Any, condition: str) -> None:
    key = f"parts/{condition}"
    bodies = [bytes([number]) * MiB + os.urandom(1000) for number in range(WIDTH)]
    value = "*"
    if condition == "IfMatch":
        value = client.put_object(Bucket=BUCKET, Key=key, Body=b"the version that all have seen")["ETag"]

    def begin(body: bytes) -> dict[str, Any]:
        target = {"Bucket": BUCKET, "Key": key}
        target["UploadId"] = client.create_multipart_upload(**target)["UploadId"]
        parts = []
        for number, part in enumerate((body[:MiB], body[MiB:]), 1):
            etag = client.upload_part(**target, PartNumber=number, Body=part)["ETag"]
            parts.append({"PartNumber": number, "ETag": etag})
        return {**target, "MultipartUpload": {"Parts": parts}, condition: value}

    with ThreadPoolExecutor(8) as threads:
        uploads = list(threads.map(begin, bodies))
    completions = [
        lambda upload=upload: client.complete_multipart_upload(**upload)  # type: ignore[misc]
        for upload in uploads
    ]
    results = at_once(client, completions)
    assert Counter(results) == {"won": 1, "PreconditionFailed 412": WIDTH - 1}
    winner = results.index("won")
    assert hashlib.sha256(read(client, key)).digest() == hashlib.sha256(bodies[winner]).digest()
    assert client.complete_multipart_upload(**uploads[winner])["Key"] == key, "asked again, the answer is the same"
    left = client.list_multipart_uploads(Bucket=BUCKET, Prefix=key)["Uploads"]
    assert len(left) == WIDTH - 1, "who lost still has its parts"
    for upload in left:
        client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload["UploadId"])


def test_one_upload_completed_many_times_at_once_is_one_object(client: Any) -> None:
    target = {"Bucket": BUCKET, "Key": "parts/one"}
    target["UploadId"] = client.create_multipart_upload(**target)["UploadId"]
    body = os.urandom(2 * MiB)
    parts = [{"PartNumber": 1, "ETag": client.upload_part(**target, PartNumber=1, Body=body)["ETag"]}]
    call = lambda: client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})  # noqa: E731
    assert at_once(client, [call] * WIDTH) == ["won"] * WIDTH
    assert read(client, "parts/one") == body


def test_unconditional_puts_all_succeed_and_one_is_there(client: Any) -> None:
    bodies = [bytes([number]) * 200_000 for number in range(WIDTH)]
    assert at_once(client, puts(client, "plain", bodies)) == ["won"] * WIDTH
    assert read(client, "plain") in bodies
