"""A tenant learns nothing of another: whatever it asks, another's things answer as things that do not exist."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kvgate.auth import sigv4
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.chunks import SPACE
from tests.gateways import ALPHA, BETA, Credential, RunningGateway, default_config
from tests.wire import send

SHARED = "shared-name"  # a bucket of this name in both tenants
OF_ALPHA = "alpha-bucket"
NOBODYS = "nobody-bucket"
NAME = hashlib.sha256(b"a chunk of alpha").digest()
CHUNK = ChunkHeader.encode(SPACE, NAME, bytes(32), 0) + bytes(SPACE.layout.nbytes)


def client(gateway: RunningGateway, credential: Credential) -> Client:
    return Client(gateway.url, credential.access_key, credential.secret_key)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway where alpha alone has something: an object and a chunk in both buckets."""
    folder = tmp_path_factory.mktemp("tenants")
    gateway = RunningGateway(folder, default_config(folder)).start()
    with client(gateway, ALPHA) as alpha:
        for bucket in (SHARED, OF_ALPHA):
            alpha.put(bucket, "secret", b"alpha's own")
            alpha.put(bucket, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
            alpha.put(bucket, str(ChunkKey(SPACE.id, NAME.hex())), CHUNK)
    yield gateway
    gateway.kill()


REQUESTS: list[tuple[str, str, str, dict[str, str], bytes]] = [
    ("GET", "/{bucket}", "", {}, b""),
    ("GET", "/{bucket}", "list-type=2", {}, b""),
    ("GET", "/{bucket}", "location=", {}, b""),
    ("GET", "/{bucket}", "uploads=", {}, b""),
    ("HEAD", "/{bucket}", "", {}, b""),
    ("DELETE", "/{bucket}", "", {}, b""),
    ("GET", "/{bucket}/secret", "", {}, b""),
    ("HEAD", "/{bucket}/secret", "", {}, b""),
    ("GET", "/{bucket}/secret", "", {"range": "bytes=0-3"}, b""),
    ("GET", "/{bucket}/secret", "", {"if-none-match": "*"}, b""),
    ("DELETE", "/{bucket}/secret", "", {}, b""),
    ("PUT", "/{bucket}/secret", "", {"content-length": "4"}, b"mine"),
    ("PUT", "/{bucket}/secret", "", {"content-length": "4", "if-none-match": "*"}, b"mine"),
    ("PUT", "/{bucket}/kv/" + SPACE.id + "/" + NAME.hex(), "", {"content-length": str(len(CHUNK))}, CHUNK),
    ("POST", "/{bucket}/secret", "uploads=", {"content-length": "0"}, b""),
    ("POST", "/_kv/v1/match", "", {"content-type": "application/json"}, b'{"bucket": "{bucket}", "space": "'
     + SPACE.id.encode() + b'", "hashes": ["' + NAME.hex().encode() + b'"]}'),
]  # fmt: skip


@pytest.mark.parametrize("request_parts", REQUESTS, ids=lambda parts: f"{parts[0]} {parts[1][:20]} {parts[2]}")
def test_anothers_bucket_answers_as_one_that_does_not_exist(
    stored: RunningGateway, request_parts: tuple[str, str, str, dict[str, str], bytes]
) -> None:
    method, path, query, headers, body = request_parts
    answers = []
    for bucket in (OF_ALPHA, NOBODYS):
        sent = body.replace(b"{bucket}", bucket.encode())
        if sent != body:
            headers = {**headers, "content-length": str(len(sent))}
        status, answered, content = send(
            stored,
            method,
            path.replace("{bucket}", bucket),
            headers,
            sent,
            query=query,
            credential=sigv4.Credential(BETA.access_key, BETA.secret_key),
        )
        text = re.sub(rb"<RequestId>\w+</RequestId>", b"", content).replace(bucket.encode(), b"BUCKET")
        volatile = {"date", "x-amz-request-id", "content-length"}
        answers.append((status, {k: v for k, v in answered.items() if k not in volatile}, text))
    assert answers[0] == answers[1]
    assert answers[0][0] >= 400
    with client(stored, ALPHA) as alpha:
        assert alpha.get(OF_ALPHA, "secret").body == b"alpha's own"


def test_same_names_are_different_things(stored: RunningGateway) -> None:
    with client(stored, ALPHA) as alpha, client(stored, BETA) as beta:
        assert [entry.key for entry in beta.list(SHARED)] == []
        assert beta.match(SHARED, SPACE.id, [NAME]).matched == 0
        with pytest.raises(GatewayError, match="NoSuchKey"):
            beta.get(SHARED, "secret")
        with pytest.raises(GatewayError, match="UnknownSpace"):  # alpha's manifest is not beta's
            beta.put(SHARED, str(ChunkKey(SPACE.id, NAME.hex())), CHUNK)
        beta.put(SHARED, "secret", b"beta's own", if_none_match=True)
        beta.delete(SHARED, "secret")
        beta.put(SHARED, "secret", b"beta's own")
        assert alpha.get(SHARED, "secret").body == b"alpha's own"
        assert beta.get(SHARED, "secret").body == b"beta's own"
        beta.delete(SHARED, "secret")
        assert alpha.get(SHARED, "secret").body == b"alpha's own"
        assert {bucket.name for bucket in beta.list_buckets()} >= {"beta-bucket", SHARED}
        assert OF_ALPHA not in {bucket.name for bucket in beta.list_buckets()}


def test_salts_keep_chunk_addresses_apart(stored: RunningGateway) -> None:
    with client(stored, ALPHA) as alpha, client(stored, BETA) as beta:
        assert alpha.tenant().salt != beta.tenant().salt


def test_anothers_lease_is_one_that_does_not_exist(stored: RunningGateway) -> None:
    def refusal(of: Client, lease: str) -> tuple[Any, ...]:
        with pytest.raises(GatewayError) as raised:
            of.release(lease)
        return raised.value.status, raised.value.code, str(raised.value)

    with client(stored, ALPHA) as alpha, client(stored, BETA) as beta:
        match = alpha.match(SHARED, SPACE.id, [NAME])
        assert match.matched == 1
        assert refusal(beta, match.lease) == refusal(beta, "0" * 32)
        assert alpha.stats().leases >= 1
        assert beta.stats().leases == 0
        alpha.release(match.lease)


def test_bucket_names_of_others_can_be_taken(stored: RunningGateway) -> None:
    with client(stored, ALPHA) as alpha, client(stored, BETA) as beta:
        beta.create_bucket(OF_ALPHA)
        assert [entry.key for entry in beta.list(OF_ALPHA)] == []
        assert [entry.key for entry in alpha.list(OF_ALPHA)] != []
        status, _, _ = send(
            stored, "DELETE", f"/{OF_ALPHA}", credential=sigv4.Credential(BETA.access_key, BETA.secret_key)
        )
        assert status == 204
        assert alpha.get(OF_ALPHA, "secret").body == b"alpha's own"
