"""A gateway whose native plane receives uploads means by them what one without it does."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from kvgate.auth import sigv4
from kvgate.chunk.key import ManifestKey
from kvgate.config import Size
from kvgate.memory.digest import extend_crc64nvme
from kvgate.metrics import Metrics
from kvgate.server.plane_puts import PlanePuts
from kvgate.store.config import StoreConfig
from kvgate.store.store import open_store
from kvgate.tiers.host import HostConfig, HostTier
from tests.chunks import SPACE, chunk
from tests.gateways import ALPHA, BETA, Credential, RunningGateway, default_config
from tests.native.planes import Bench, read_answer
from tests.native.planes import put as planes_put
from tests.s3.clients import refused, s3_client
from tests.server.test_plane_board import TENANTS
from tests.server.test_sessions import token_of
from tests.wire import send, signed_head

MiB = 1 << 20
BODY = random.Random(1).randbytes(4 * MiB)
SMALL = Credential("SMALLKEY0000", "small-secret-0123456789abcdef")
MAX_OBJECT = 3 * MiB
PATIENCE_S = 60.0
StartGateway = Callable[..., RunningGateway]

CHUNK_KEY, CHUNK = chunk(1)
OTHER_KEY, OTHER_CHUNK = chunk(2)
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::policy/no*"}
    ],
}
CORS = {"CORSRules": [{"AllowedMethods": ["PUT"], "AllowedOrigins": ["*"]}]}
LIFECYCLE = {"Rules": [{"ID": "soon", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}}]}


def signing(credential: Credential) -> sigv4.Credential:
    return sigv4.Credential(credential.access_key, credential.secret_key)


def put(
    gateway: RunningGateway, path: str, body: bytes, credential: Credential = ALPHA, **more: str
) -> tuple[int, dict[str, str], bytes]:
    """A plain upload and its answer; `more` are headers, with _ for -."""
    headers = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in more.items()}
    return send(gateway, "PUT", path, headers, body, credential=signing(credential))


def checksum(body: bytes) -> str:
    return base64.b64encode(extend_crc64nvme(body).to_bytes(8, "big")).decode()


def by_plane(gateway: RunningGateway) -> int:
    """How many requests the plane has answered 200 so far."""
    return int(gateway.metrics()["kvgate_plane_requests_total"])


def is_clean(log: str) -> bool:
    """Whether nothing went wrong but what peers did."""
    return not re.search(r"Traceback| ERROR |never released", log)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def set_up(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    for bucket in ("policy", "cors", "lifecycle"):
        client.create_bucket(Bucket=bucket)
    client.put_bucket_policy(Bucket="policy", Policy=json.dumps(POLICY))
    client.put_bucket_cors(Bucket="cors", CORSConfiguration=CORS)
    client.put_bucket_lifecycle_configuration(Bucket="lifecycle", LifecycleConfiguration=LIFECYCLE)
    assert put(gateway, f"/alpha-bucket/{ManifestKey(SPACE.id)}", SPACE.canonical_json())[0] == 200


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """With the plane, and without."""
    started = []
    try:
        for store in ({}, {"published": 0}):
            folder = tmp_path_factory.mktemp("puts")
            config = default_config(folder)
            config["store"] = {"max_object": MAX_OBJECT, **store}
            config["tenants"]["small"] = {
                "access_keys": [SMALL.as_config()],
                "buckets": ["small-bucket"],
                "quota": "100KiB",
            }
            started.append(RunningGateway(folder, config).start())
            set_up(started[-1])
        yield started[0], started[1]
        for gateway in started:
            gateway.stop()
            assert is_clean(gateway.log), gateway.log
    finally:
        for gateway in started:
            gateway.kill()


class Case(NamedTuple):
    """An upload. `plane` says whether the plane answers it, and `status` how it is answered."""

    path: str
    body: bytes
    status: int = 200
    plane: bool = True
    more: dict[str, str] = {}  # noqa: RUF012
    credential: Credential = ALPHA
    first: bytes = b""
    """What was put there before."""


A = "/alpha-bucket"
CASES = {
    "plain": Case(f"{A}/plain", BODY[:100_000]),
    "one byte": Case(f"{A}/one", b"1"),
    "a block": Case(f"{A}/block", BODY[:MiB]),
    "as large as may be": Case(f"{A}/largest", BODY[:MAX_OBJECT]),
    "over another": Case(f"{A}/over", b"new", first=b"old, and longer"),
    "Content-Type": Case(f"{A}/type", b"body", more={"content_type": "text/plain; a=b"}),
    "an empty Content-Type": Case(f"{A}/empty-type", b"body", more={"content_type": ""}),
    "an aws-chunked type": Case(f"{A}/types", b"body", more={"content_type": "a" * 2000}),
    "a Content-Type that is too long": Case(f"{A}/long-type", b"body", 400, False, {"content_type": "a" * 9000}),
    "the right checksum": Case(f"{A}/right", BODY[:70_000], more={"x_amz_checksum_crc64nvme": checksum(BODY[:70_000])}),
    "a wrong checksum": Case(
        f"{A}/wrong", BODY[:70_000], 400, False, {"x_amz_checksum_crc64nvme": checksum(b"x")}, first=b"it stays"
    ),
    "no checksum at all": Case(f"{A}/none", b"body", 400, False, {"x_amz_checksum_crc64nvme": ""}),
    "a checksum that is none": Case(f"{A}/none", b"body", 400, False, {"x_amz_checksum_crc64nvme": "AAAA"}),
    "a checksum with a blank": Case(f"{A}/none", b"body", 400, False, {"x_amz_checksum_crc64nvme": "AAAA AAAAAAA="}),
    "asked for": Case(f"{A}/asked-for", BODY[:70_000], more={"expect": "100-continue"}),
    "named algorithm": Case(
        *(f"{A}/named", BODY[:70_000], 200, True),
        {"x_amz_sdk_checksum_algorithm": "CRC64NVME", "x_amz_checksum_crc64nvme": checksum(BODY[:70_000])},
    ),
    "another algorithm than came": Case(
        *(f"{A}/other-named", BODY[:70_000], 200, True),
        {"x_amz_sdk_checksum_algorithm": "CRC32", "x_amz_checksum_crc64nvme": checksum(BODY[:70_000])},
    ),
    "an algorithm alone": Case(f"{A}/alone", b"body", 200, True, {"x_amz_sdk_checksum_algorithm": "CRC64NVME"}),
    "a chunk": Case(f"{A}/{CHUNK_KEY}", CHUNK),
    "the same chunk again": Case(f"{A}/{CHUNK_KEY}", CHUNK, first=CHUNK),
    "another chunk of the name": Case(f"{A}/{CHUNK_KEY}", CHUNK[:-1] + b"!", 409, False, first=CHUNK),
    "a chunk under another name": Case(
        f"{A}/{CHUNK_KEY[:-1]}{'0' if CHUNK_KEY[-1] != '0' else '1'}", CHUNK, 400, False
    ),
    "a chunk that is too short": Case(f"{A}/{OTHER_KEY}", OTHER_CHUNK[:-1], 400, False),
    "a chunk that is none": Case(f"{A}/{OTHER_KEY}", bytes(len(OTHER_CHUNK)), 400, False),
    "a chunk of no space": Case(f"{A}/{OTHER_KEY.replace(SPACE.id, '0' * len(SPACE.id))}", OTHER_CHUNK, 400, False),
    "a key below kv/ that is none": Case(f"{A}/kv/x", b"body", 400, False),
    "no such bucket": Case("/no-such-bucket/key", b"body", 404, False),
    "another's bucket": Case("/beta-bucket/key", b"body", 404, False),
    "another's bucket by its owner": Case("/beta_beta-bucket/key", b"body", 403, False),
    "a bucket of one's own by its owner": Case("/alpha_alpha-bucket/key", b"body", 200, False),
    "a bucket alone": Case("/alpha-bucket", b"body", 400, False),
    "a bucket with a slash": Case("/alpha-bucket/", b"body", 400, False),
    "no bucket": Case("//key", b"body", 400, False),
    "nothing": Case("/", b"body", 405, False),
    "dots": Case(f"{A}/../beta-bucket/key", b"body", 400, False),
    "slashes": Case(f"{A}//a//", b"body"),
    "the longest key": Case(f"{A}/{'k' * 1024}", b"body"),
    "a key that is too long": Case(f"{A}/{'k' * 1025}", b"body", 400, False),
    "too large": Case(f"{A}/large", BODY[: MAX_OBJECT + 1], 400, False),
    "a bucket with a policy": Case("/policy/yes", b"body", 200, False),
    "a bucket whose policy denies it": Case("/policy/no", b"body", 403, False),
    "a bucket with CORS": Case("/cors/key", b"body", 200, False),
    "a bucket with a lifecycle": Case("/lifecycle/key", b"body", 200, False),
    "within the quota": Case("/small-bucket/key", BODY[:50_000], credential=SMALL),
    "over the quota": Case("/small-bucket/other", BODY[:90_000], 403, False, credential=SMALL),
    "a wrong secret": Case(f"{A}/key", b"body", 403, False, credential=Credential(ALPHA.access_key, "x" * 20)),
}


def comparable(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], bytes]:
    """An answer but for what no two have in common."""
    status, headers, body = answer
    names = headers.keys() - {"date", "x-amz-request-id", "last-modified"}
    kept = {name: re.sub(r"\d\d:\d\d:\d\d", "", headers[name]) for name in names}
    return status, kept, re.sub(rb"<RequestId>\w+</RequestId>", b"", body)


def counted(gateway: RunningGateway) -> dict[str, float]:
    """What uploads are counted by."""
    names = ("kvgate_requests_total", "kvgate_received_bytes_total", "kvgate_request_seconds_count", "kvgate_refusals")
    return {name: value for name, value in gateway.metrics().items() if name.startswith(names)}


def listed(gateway: RunningGateway, bucket: str, credential: Credential) -> list[tuple[str, int, str]]:
    contents = s3_client(gateway, credential).list_objects_v2(Bucket=bucket).get("Contents", [])
    return [(each["Key"], each["Size"], each["ETag"]) for each in contents]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_upload_is_answered_and_means_the_same(pair: tuple[RunningGateway, RunningGateway], case: Case) -> None:
    answers, changes, bodies = [], [], []
    for gateway in pair:
        if case.first:
            assert put(gateway, case.path, case.first, case.credential)[0] == 200
        gateway.answered("PutObject")  # what was asked before is counted
        before, plane_before = counted(gateway), by_plane(gateway)
        answers.append(comparable(put(gateway, case.path, case.body, case.credential, **case.more)))
        gateway.answered("PutObject")
        changes.append({name: value - before.get(name, 0) for name, value in counted(gateway).items()})
        assert by_plane(gateway) - plane_before == (gateway is pair[0] and case.plane)
        if case.path.split("/", 2)[2:] not in ([], [""]):
            bodies.append(comparable(send(gateway, "GET", case.path, credential=signing(case.credential))))
    assert answers[0] == answers[1]
    assert answers[0][0] == case.status
    assert bodies[:1] == bodies[1:]
    moved = [{name: change for name, change in each.items() if change} for each in changes]
    assert moved[0] == moved[1]
    if case.status == 200:
        assert bodies[0][2] == case.body
        assert moved[0]["kvgate_received_bytes_total"] == len(case.body)
    elif case.first:
        assert bodies[0][2] == case.first
    for bucket, credential in (("alpha-bucket", ALPHA), ("beta-bucket", BETA), ("small-bucket", SMALL)):
        assert listed(pair[0], bucket, credential) == listed(pair[1], bucket, credential)


def test_a_session_token_uploads_as_a_signature_does(pair: tuple[RunningGateway, RunningGateway]) -> None:
    answers = []
    for gateway in pair:
        before = by_plane(gateway)
        head = (
            f"PUT /alpha-bucket/by-token HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n"
            f"Authorization: Bearer {token_of(gateway)}\r\nContent-Length: 4\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S) as sock:
            sock.sendall(f"{head}\r\nbody".encode())
            answers.append(read_head(sock))
        until(lambda gateway=gateway, before=before: by_plane(gateway) - before == (gateway is pair[0]))  # type: ignore[misc]
        assert send(gateway, "GET", "/alpha-bucket/by-token")[2] == b"body"
    assert answers[0] == answers[1]


WITHOUT_SHA256 = {"payload_signing_enabled": False}


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"request_checksum_calculation": "when_required"}, {}),
        ({}, {"ChecksumAlgorithm": "CRC64NVME"}),
        ({}, {"ChecksumAlgorithm": "CRC64NVME", "ContentType": "text/plain"}),
    ],
    ids=["no checksum", "crc64nvme", "Content-Type"],
)
def test_boto3_uploads_by_the_plane_what_it_does_not_hash(
    pair: tuple[RunningGateway, RunningGateway], options: dict[str, str], arguments: dict[str, str]
) -> None:
    """It waits to be told that it may send, for a second."""
    client = s3_client(pair[0], s3=WITHOUT_SHA256, **options)
    before = by_plane(pair[0])
    for body in (BODY[:1000], BODY[: 2 * MiB], io.BytesIO(BODY[: 2 * MiB])):
        client.put_object(Bucket="alpha-bucket", Key="boto3", Body=body, **arguments)
    until(lambda: by_plane(pair[0]) - before == 3)
    found = client.get_object(Bucket="alpha-bucket", Key="boto3")
    assert found["Body"].read() == BODY[: 2 * MiB]
    assert found["ContentType"] == arguments.get("ContentType", "binary/octet-stream")
    assert refused(client.put_object, Bucket="no-such-bucket", Key="key", Body=b"body") == ("NoSuchBucket", 404)


def read_head(sock: socket.socket) -> list[str]:
    """The lines of an answer's head, without those that no two have in common."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the connection ended")
        data += more
    lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return [line for line in lines if not line.startswith(("Date:", "x-amz-request-id:", "Content-Length:"))]


def begin(gateway: RunningGateway, path: str, nbytes: int, sent: bytes) -> socket.socket:
    """A connection on which an upload has begun."""
    sock = socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S)
    host = f"127.0.0.1:{gateway.port}"
    sock.sendall(signed_head("PUT", path, {"host": host, "content-length": str(nbytes)}) + sent)
    return sock


@pytest.mark.parametrize("came", [0, 10, 20_000, 1_500_000])
def test_a_body_that_is_cut_short_is_refused_the_same(pair: tuple[RunningGateway, RunningGateway], came: int) -> None:
    answers, changes = [], []
    for gateway in pair:
        gateway.answered("PutObject")
        before = counted(gateway)
        with begin(gateway, "/alpha-bucket/short", 2 * MiB, BODY[:came]) as sock:
            sock.shutdown(socket.SHUT_WR)
            data = b""
            while more := sock.recv(65536):
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            lines = [
                line
                for line in head.split(b"\r\n")
                if not line.startswith((b"Date:", b"x-amz-request-id:", b"Connection:"))
            ]
            answers.append((lines, re.sub(rb"<RequestId>\w+</RequestId>", b"", body)))
        gateway.answered("PutObject")
        after = counted(gateway)
        changes.append(
            {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)}
        )
        assert send(gateway, "GET", "/alpha-bucket/short")[0] == 404
    assert answers[0] == answers[1]
    assert answers[0][0][0].startswith(b"HTTP/1.1 400 ")
    assert changes[0] == changes[1]


def test_requests_on_one_connection_are_answered_in_order_whoever_answers(
    pair: tuple[RunningGateway, RunningGateway],
) -> None:
    """Uploads that the plane answers, refuses and declines, one behind the other without waiting."""
    wrong = {"x-amz-checksum-crc64nvme": checksum(b"x")}
    answers = []
    for gateway in pair:
        host = {"host": f"127.0.0.1:{gateway.port}"}
        requests = b""
        for key, body, more in (
            ("1", BODY[:5000], {}),
            ("2", BODY[:300_000], wrong),
            ("3", b"3", {}),
            ("4", b"4", {"x-amz-meta-a": "b"}),
            ("5", BODY[:9000], {}),
        ):
            headers = {**host, "content-length": str(len(body)), **more}
            requests += signed_head("PUT", f"/alpha-bucket/order/{key}", headers) + body
        requests += signed_head("GET", "/alpha-bucket/order/5", host)
        with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S) as sock:
            sock.settimeout(PATIENCE_S)
            sender = threading.Thread(target=sock.sendall, args=(requests,))
            sender.start()
            data = b""
            while not data.endswith(BODY[8900:9000]):
                data += sock.recv(1 << 20)
            sender.join()
        answers.append(re.findall(rb"HTTP/1.1 (\d+) ", data))
    assert answers[0] == answers[1] == [b"200", b"400", b"200", b"200", b"200", b"200"]


# --- gateways of their own --------------------------------------------------------------------------------------------


def test_a_policy_counts_from_the_next_upload_on(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    client = s3_client(gateway)
    assert put(gateway, "/alpha-bucket/no", b"1")[0] == 200
    assert by_plane(gateway) == 1
    statement = POLICY["Statement"][0] | {"Resource": "arn:aws:s3:::alpha-bucket/no*"}  # type: ignore[operator, index]
    client.put_bucket_policy(Bucket="alpha-bucket", Policy=json.dumps(POLICY | {"Statement": [statement]}))
    assert put(gateway, "/alpha-bucket/no", b"2")[0] == 403
    client.delete_bucket_policy(Bucket="alpha-bucket")
    assert put(gateway, "/alpha-bucket/no", b"3")[0] == 200
    assert by_plane(gateway) == 2
    client.delete_object(Bucket="alpha-bucket", Key="no")
    client.delete_bucket(Bucket="alpha-bucket")
    assert put(gateway, "/alpha-bucket/no", b"4")[0] == 404


def test_a_bucket_that_goes_while_an_upload_comes_keeps_nothing(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    s3_client(gateway).create_bucket(Bucket="going")
    with begin(gateway, "/going/key", 100_000, BODY[:50_000]) as sock:
        until(lambda: gateway.metrics()["kvgate_connections"] >= 1)
        time.sleep(0.2)
        s3_client(gateway).delete_bucket(Bucket="going")
        sock.sendall(BODY[50_000:100_000])
        assert read_head(sock)[0].startswith("HTTP/1.1 404 ")
    assert put(gateway, "/alpha-bucket/key", b"body")[0] == 200
    gateway.stop()
    assert is_clean(gateway.log)


def test_an_acknowledged_object_survives_a_kill(start_gateway: StartGateway) -> None:
    gateway = start_gateway(store={"ack": "disk"})
    sizes = [1, 5000, MiB, 2_500_000]
    for number in range(12):
        assert put(gateway, f"/alpha-bucket/{number}", BODY[number : number + sizes[number % 4]])[0] == 200
    assert by_plane(gateway) == 12
    gateway.kill()
    gateway.start()
    for number in range(12):
        assert send(gateway, "GET", f"/alpha-bucket/{number}")[2] == BODY[number : number + sizes[number % 4]]


def test_a_rate_is_kept_to(start_gateway: StartGateway) -> None:
    alpha = {
        "access_keys": [ALPHA.as_config()],
        "buckets": ["alpha-bucket"],
        "rate": {"requests": 0.05, "burst": "60s"},
    }
    beta = {"access_keys": [BETA.as_config()], "buckets": ["beta-bucket"], "rate": {"write_bytes": "1KiB"}}
    gateway = start_gateway(tenants={"alpha": alpha, "beta": beta})
    assert [put(gateway, "/alpha-bucket/key", b"body")[0] for _ in range(4)] == [200, 200, 200, 503]
    assert [put(gateway, "/beta-bucket/key", bytes(100_000), BETA)[0] for _ in range(2)] == [200, 503]
    assert by_plane(gateway) == 0


def test_what_memory_has_no_room_for_streams_to_disk(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "16MiB", "prefault": 0}})
    body = BODY * 6
    assert put(gateway, "/alpha-bucket/large", body)[0] == 200
    assert by_plane(gateway) == 0
    assert send(gateway, "GET", "/alpha-bucket/large")[2] == body
    for number in range(8):  # and what fits once other things have gone is received in memory
        assert put(gateway, f"/alpha-bucket/{number}", BODY[number:])[0] == 200
    assert by_plane(gateway) > 0
    for number in range(8):
        assert send(gateway, "GET", f"/alpha-bucket/{number}")[2] == BODY[number:]
    gateway.stop()
    assert is_clean(gateway.log)


def test_slow_uploads_stop_nobody(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    slow = [begin(gateway, f"/alpha-bucket/slow-{number}", 100_000, BODY[number:99_999]) for number in range(50)]
    for number in range(20):
        assert put(gateway, f"/alpha-bucket/{number}", BODY[: 200_000 * number + 1])[0] == 200
        assert len(send(gateway, "GET", f"/alpha-bucket/{number}")[2]) == 200_000 * number + 1
    assert by_plane(gateway) >= 20
    for number, sock in enumerate(slow):
        sock.sendall(BODY[99_999 : 100_000 + number])
        assert read_head(sock)[0] == "HTTP/1.1 200 OK"
        sock.close()
        assert send(gateway, "GET", f"/alpha-bucket/slow-{number}")[2] == BODY[number : 100_000 + number]
    until(lambda: gateway.metrics()["kvgate_connections"] == 0)
    gateway.stop()
    assert is_clean(gateway.log)


def test_peers_that_go_away_leave_no_memory_taken(start_gateway: StartGateway) -> None:
    gateway = start_gateway(listen={"body_timeout": 1})
    before = gateway.metrics()['kvgate_tier_used_bytes{tier="host"}']
    for number in range(30):
        begin(gateway, "/alpha-bucket/gone", MiB, BODY[: 20_000 * number]).close()
    stuck = begin(gateway, "/alpha-bucket/stuck", MiB, BODY[:1000])
    assert read_head(stuck)[0].startswith("HTTP/1.1 400 ")
    stuck.close()
    until(lambda: gateway.metrics()["kvgate_connections"] == 0)
    until(lambda: gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] == before)
    assert gateway.metrics()['kvgate_late_connections_total{what="body"}'] >= 1
    assert send(gateway, "GET", "/alpha-bucket/gone")[0] == 404
    gateway.stop()
    assert is_clean(gateway.log)


@pytest.mark.parametrize("stuck", [False, True])
def test_a_stop_keeps_what_was_answered(start_gateway: StartGateway, stuck: bool) -> None:
    """And with uploads that do not end it cuts them after a while."""
    gateway = start_gateway(store={"ack": "disk"}, listen={"drain_timeout": 1 if stuck else 30})
    assert gateway.process is not None
    begun = threading.Barrier(5)
    ends = [begin(gateway, f"/alpha-bucket/stuck-{number}", MiB, BODY[:500]) for number in range(4 * stuck)]

    def upload(writer: int) -> list[str]:
        stored = []
        for number in range(100_000):
            if number == 3:
                begun.wait(PATIENCE_S)
            key = f"{writer}-{number}"
            try:
                status, _, _ = put(gateway, f"/alpha-bucket/{key}", body_of(key))
            except OSError:
                break
            except Exception:  # the connection ended without an answer
                break
            assert status in (200, 503)
            stored += [key] * (status == 200)
        return stored

    with ThreadPoolExecutor(4) as threads:
        uploads = [threads.submit(upload, writer) for writer in range(4)]
        begun.wait(PATIENCE_S)
        time.sleep(0.1)
        gateway.process.terminate()
        assert gateway.process.wait(PATIENCE_S) == 0
        stored = [key for each in uploads for key in each.result(PATIENCE_S)]
    for sock in ends:
        with sock, pytest.raises(OSError):
            read_head(sock)
    assert is_clean(gateway.log), gateway.log
    gateway.start()
    for key in stored:
        assert send(gateway, "GET", f"/alpha-bucket/{key}")[2] == body_of(key), key


def body_of(key: str) -> bytes:
    return random.Random(key).randbytes(random.Random(key).choice([1, 30_000, 1_100_000]))


# --- without a gateway ------------------------------------------------------------------------------------------------


async def test_an_error_that_nobody_foresaw_leaves_uploads_to_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of them waits for ever."""
    memory, metrics = HostTier(HostConfig(capacity=Size(64 * MiB))), Metrics()
    bench = Bench()
    served: list[tuple[int, int, bytes]] = []
    try:
        async with open_store(
            memory, [], TENANTS, config=StoreConfig(), metrics=metrics, catalog=tmp_path / "buckets"
        ) as store:
            puts = PlanePuts(bench.plane, store, TENANTS, metrics, pause_s=PATIENCE_S)
            puts.begin(asyncio.get_running_loop().create_task, lambda *row: served.append(row), lambda: "0" * 16)

            async def fails(*_: object, **__: object) -> None:
                raise OSError("the disk is on fire")

            sound = store.open_write
            monkeypatch.setattr(store, "open_write", fails)
            broken = [bench.connect() for _ in range(3)]
            for sock in broken:
                sock.sendall(planes_put("/bucket/key", b"body"))
            async with asyncio.timeout(PATIENCE_S):
                while len(served) < len(broken):
                    puts.take()
                    await asyncio.sleep(0.01)
            assert [received.startswith(b"PUT /bucket/key ") for _, _, received in served] == [True] * 3
            monkeypatch.setattr(store, "open_write", sound)
            sock = bench.connect()
            sock.sendall(planes_put("/bucket/key", b"body"))
            async with asyncio.timeout(PATIENCE_S):
                while not select.select([sock], [], [], 0)[0]:
                    puts.take()
                    await asyncio.sleep(0.01)
            assert read_answer(sock)[0] == 200
            assert store.stat("acme", "bucket", "key").nbytes == 4
    finally:
        for fd, _, _ in served:
            os.close(fd)
        bench.close()
