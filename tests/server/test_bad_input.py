"""Bad input: each a clear S3 error, nothing half-stored, nothing leaked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvgate.auth import sigv4
from kvgate.chunk.key import ManifestKey
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable
from tests.chunks import SPACE, chunk
from tests.gateways import ALPHA, BETA, RunningGateway, default_config
from tests.wire import raw_exchange, send, send_and_hang_up, signed_head

MiB = 1 << 20
BUCKET = "alpha-bucket"
OTHER = "ab" * 32


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("bad-input")
    config = default_config(folder)
    config["tenants"]["alpha"]["quota"] = "64MiB"
    running = RunningGateway(folder, config).start()
    with Client(running.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    yield running
    running.kill()


@pytest.fixture
def intact(module_gateway: RunningGateway) -> Iterator[RunningGateway]:
    """A gateway that must have after the test exactly what it had before: objects, bytes, descriptors, leases."""
    before = snapshot(module_gateway)
    while before["queue"] or before != snapshot(module_gateway):  # something of the test before still goes on
        before = snapshot(module_gateway)
    yield module_gateway
    deadline = time.monotonic() + 10
    while (after := snapshot(module_gateway)) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert after == before


def snapshot(gateway: RunningGateway) -> dict[str, Any]:
    metrics = gateway.metrics()
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        stats = client.stats()
        keys = sorted(entry.key for entry in client.list(BUCKET))
    return {
        "keys": keys,
        "quota": stats.nbytes,
        "used": {name: value for name, value in metrics.items() if name.startswith("kvgate_tier_used_bytes")},
        "queue": metrics['kvgate_demotion_queue_objects{tier="disk"}'],
        "leases": metrics["kvgate_leases"],
        "descriptors": gateway.descriptors(),
        "temporary": os.listdir(gateway.disk / "tmp"),
    }


def refused(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> None:
    assert answer[0] == status, answer[2]
    assert f"<Code>{code}</Code>".encode() in answer[2]
    assert answer[1]["content-type"] == "application/xml"


@pytest.mark.parametrize("sent", [0, 1000, 3 * MiB])
@pytest.mark.parametrize("promised", [5 * MiB, 50 * MiB])
def test_truncated_body(intact: RunningGateway, sent: int, promised: int) -> None:
    send_and_hang_up(intact, f"/{BUCKET}/truncated", promised, bytes(sent))


def test_body_longer_than_its_content_length(intact: RunningGateway) -> None:
    """What follows the promised bytes is no part of the object, and no request either."""
    headers = {"content-length": "10"}
    status, _, _ = send(intact, "PUT", f"/{BUCKET}/lying", headers, b"x" * 10)
    assert status == 200
    wanted = {"host": f"127.0.0.1:{intact.port}", "content-length": "10"}
    head = signed_head("PUT", f"/{BUCKET}/lying", wanted)
    answer = raw_exchange(intact, head + b"y" * 30)
    assert b" 400 Bad Request" in answer
    assert send(intact, "GET", f"/{BUCKET}/lying")[2] in (b"x" * 10, b"y" * 10)
    assert send(intact, "DELETE", f"/{BUCKET}/lying")[0] == 204


def test_wrong_checksums(intact: RunningGateway) -> None:
    path, body = f"/{BUCKET}/k", b"body" * 1000
    put = {"content-length": str(len(body))}
    wrong = {
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
        "content-md5": "A" * 22 + "==",
    }
    for name, value in wrong.items():
        refused(send(intact, "PUT", path, {**put, name: value}, body), 400, "BadDigest")
    refused(send(intact, "PUT", path, put, body, "0" * 64), 400, "XAmzContentSHA256Mismatch")


def test_wrong_credentials(intact: RunningGateway) -> None:
    body = b"body"
    put = {"content-length": "4"}
    for secret, key, code in [
        ("wrong-secret-0123456789", ALPHA.access_key, "SignatureDoesNotMatch"),
        (ALPHA.secret_key, "NOBODYSKEY", "InvalidAccessKeyId"),
    ]:
        credential = sigv4.Credential(key, secret)
        refused(send(intact, "PUT", f"/{BUCKET}/k", put, body, credential=credential), 403, code)
    for hours in (-1, 1):
        answer = send(intact, "PUT", f"/{BUCKET}/k", put, body, now=time.time() + 3600 * hours)
        refused(answer, 403, "RequestTimeTooSkewed")


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("a/../b", "InvalidArgument"),
        ("..", "InvalidArgument"),
        ("%2e%2e/b", "InvalidArgument"),
        ("a%00b", "InvalidArgument"),
        ("k" * 1025, "KeyTooLongError"),
        ("kv//x", "InvalidArgument"),
        ("kv/x/../y", "InvalidArgument"),
        (f"kv/{OTHER}/{OTHER.upper()}", "InvalidArgument"),
        ("%ff%fe", "InvalidArgument"),
    ],
)
def test_bad_keys(intact: RunningGateway, key: str, code: str) -> None:
    refused(send(intact, "PUT", f"/{BUCKET}/{key}", {"content-length": "4"}, b"body"), 400, code)


def test_empty_segments_are_ordinary_outside_of_kv(intact: RunningGateway) -> None:
    path = f"/{BUCKET}/a//b///"
    assert send(intact, "PUT", path, {"content-length": "4"}, b"body")[0] == 200
    assert send(intact, "GET", path)[2] == b"body"
    assert send(intact, "GET", f"/{BUCKET}/a/b/")[0] == 404
    assert send(intact, "DELETE", path)[0] == 204


def test_oversized_headers(intact: RunningGateway) -> None:
    answer = raw_exchange(intact, b"GET / HTTP/1.1\r\nHost: x\r\nx-long: " + b"a" * 40_000 + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"400"
    assert b"<Error>" in answer
    many = b"".join(b"x-%d: a\r\n" % number for number in range(2000))
    answer = raw_exchange(intact, b"GET / HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
    assert answer.split(b" ", 2)[1] == b"400"
    metadata = {"content-length": "4", "x-amz-meta-long": "a" * 3000}
    refused(send(intact, "PUT", f"/{BUCKET}/k", metadata, b"body"), 400, "MetadataTooLarge")


@pytest.mark.parametrize("line", [b"GET", b"\x00" * 500, b"PUT / HTTP/9", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_no_http_at_all(intact: RunningGateway, line: bytes) -> None:
    answer = raw_exchange(intact, line + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"400"
    assert b"<Error>" in answer


def test_chunk_of_an_unknown_space(intact: RunningGateway) -> None:
    answer = send(intact, "PUT", f"/{BUCKET}/kv/{OTHER}/{OTHER}", {"content-length": "4"}, b"body")
    refused(answer, 400, "UnknownSpace")


def test_manifest_that_is_not_the_one_of_its_key(intact: RunningGateway) -> None:
    good = SPACE.canonical_json()
    for key, body in [(OTHER, good), (SPACE.id, good + b" "), (hashlib.sha256(b"{}").hexdigest(), b"{}")]:
        answer = send(intact, "PUT", f"/{BUCKET}/kv/{key}/manifest.json", {"content-length": str(len(body))}, body)
        refused(answer, 400, "InvalidManifest")


def test_chunk_that_disagrees_with_its_key_or_space(intact: RunningGateway) -> None:
    key, good = chunk(1)
    _, other = chunk(2)
    bad = {
        "another chunk": other,
        "no header": bytes(len(good)),
        "truncated": good[:-1],
        "longer": good + b"x",
        "a lying length": good.replace(
            f"[0,{SPACE.layout.nbytes}]".encode(), f"[0,{SPACE.layout.nbytes - 2}]".encode()
        ),
        "another dtype": good.replace(b'"F16"', b'"I16"'),
        "tiny": b"x",
        "empty": b"",
    }
    for body in bad.values():
        answer = send(intact, "PUT", f"/{BUCKET}/{key}", {"content-length": str(len(body))}, body)
        refused(answer, 400, "InvalidChunk")


def test_chunk_is_immutable(intact: RunningGateway) -> None:
    key, good = chunk(3)
    put = {"content-length": str(len(good))}
    assert send(intact, "PUT", f"/{BUCKET}/{key}", put, good)[0] == 200
    assert send(intact, "PUT", f"/{BUCKET}/{key}", put, good)[0] == 200
    different = good[:-1] + b"\x01"
    refused(send(intact, "PUT", f"/{BUCKET}/{key}", put, different), 409, "ImmutableConflict")
    assert send(intact, "GET", f"/{BUCKET}/{key}")[2] == good
    assert send(intact, "DELETE", f"/{BUCKET}/{key}")[0] == 204


def test_quota(intact: RunningGateway) -> None:
    body = bytes(65 * MiB)
    refused(send(intact, "PUT", f"/{BUCKET}/k", {"content-length": str(len(body))}, body), 403, "QuotaExceeded")
    refused(send(intact, "PUT", f"/{BUCKET}/k", {"content-length": str(6 << 30)}, b""), 400, "EntityTooLarge")


def test_chunks_take_the_place_of_older_chunks_within_the_quota(start_gateway: Callable[..., RunningGateway]) -> None:
    _, body = chunk(0)
    quota = 10 * len(body) + len(SPACE.canonical_json())
    keys = {"alpha": {"access_keys": [ALPHA.as_config()], "buckets": [BUCKET], "quota": quota}}
    gateway = start_gateway(tenants={**keys, "beta": {"access_keys": [BETA.as_config()], "buckets": [BUCKET]}})
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        for number in range(25):
            key, body = chunk(number)
            client.put(BUCKET, key, body)
        assert client.stats().nbytes <= quota
        present = {entry.key for entry in client.list(BUCKET)}
    assert {chunk(number)[0] for number in range(15, 25)} <= present
    assert str(ManifestKey(SPACE.id)) in present


def test_full_disk(start_gateway: Callable[..., RunningGateway], tmp_path: Any) -> None:
    """A real full disk below the gateway: uploads that need it fail clearly, those that fit in memory go on."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=8m none {mount} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        gateway = start_gateway(
            tiers={"host": {"capacity": "16MiB"}, "disk": {"path": f"{mount}/disk", "capacity": "1GiB"}}
        )
        body = os.urandom(20 * MiB)
        refused(send(gateway, "PUT", f"/{BUCKET}/large", {"content-length": str(len(body))}, body), 503, "SlowDown")
        assert send(gateway, "GET", f"/{BUCKET}/large")[0] == 404
        small = os.urandom(9 * MiB)
        assert send(gateway, "PUT", f"/{BUCKET}/small", {"content-length": str(len(small))}, small)[0] == 200
        assert send(gateway, "GET", f"/{BUCKET}/small")[2] == small
        assert not os.listdir(f"{mount}/disk/tmp")
        gateway.stop()
    finally:
        os.system(f"umount -l {mount}")


def test_flipped_bit_on_disk_is_a_miss(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    bodies = {f"object-{number}": os.urandom(100_000 + number) for number in range(8)}
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        for key, body in bodies.items():
            client.put(BUCKET, key, body)
    gateway.stop()
    files = sorted(path for path in (gateway.disk / "objects").rglob("*") if path.is_file())
    assert len(files) == len(bodies)
    damaged = set()
    for path in files[::2]:
        content = bytearray(path.read_bytes())
        at = int.from_bytes(os.urandom(4)) % len(content)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        damaged.add(path)
    gateway.start()
    missing = 0
    for key, body in bodies.items():
        status, _, answer = send(gateway, "GET", f"/{BUCKET}/{key}")
        if status == 404:
            missing += 1
            assert b"<Code>NoSuchKey</Code>" in answer
            assert send(gateway, "HEAD", f"/{BUCKET}/{key}")[0] == 404
        else:
            assert (status, answer) == (200, body)
    assert missing == len(damaged)
    assert gateway.metrics()['kvgate_corrupt_copies_total{tier="disk"}'] == len(damaged)
    assert not [path for path in damaged if path.exists()]


def test_bit_that_flipped_far_into_a_large_object_breaks_the_answer_off(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """The head has left by then; what is cut can never be taken for the object."""
    gateway = start_gateway()
    body = os.urandom(16 << 20)
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, "large", body)
    gateway.stop()
    (path,) = [path for path in (gateway.disk / "objects").rglob("*") if path.is_file()]
    with path.open("r+b") as file:
        file.seek(len(body) - 100)
        file.write(bytes([body[-100] ^ 1]))
    gateway.start()
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        with pytest.raises(GatewayUnavailable):
            client.get(BUCKET, "large")
        with pytest.raises(GatewayError, match="NoSuchKey"):
            client.get(BUCKET, "large")
    metrics = gateway.metrics()
    assert metrics['kvgate_corrupt_copies_total{tier="disk"}'] == metrics["kvgate_lost_objects_total"] == 1
    deadline = time.monotonic() + 10
    while path.exists():  # it is removed behind the answer
        assert time.monotonic() < deadline
        time.sleep(0.01)
