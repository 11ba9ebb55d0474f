"""GET of layers and heads of a chunk, at a real gateway."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
from awscrt.checksums import crc64nvme

from kvgate.auth.sigv4 import Credential
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START, Layout
from kvgate.client.sync import Client
from kvgate.client.values import Slice
from kvgate.codec.chunk_body import decode_body, decode_kv, encode_body, encode_kv
from kvgate.errors import GatewayError
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, BETA, RunningGateway
from tests.wire import send

BUCKET = "alpha-bucket"


@pytest.fixture
def chunk(gateway: RunningGateway) -> tuple[str, bytes]:
    """The path of a stored chunk, and its body."""
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        ((chunk_hash, body),) = chunks(client.tenant().salt, 1, seed=77)
        key = str(ChunkKey(SPACE.id, chunk_hash.hex()))
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        client.put(BUCKET, key, body)
    return f"/{BUCKET}/{key}", body


@pytest.mark.parametrize(
    ("query", "layers", "heads"),
    [
        ("layers=1-2", slice(1, 3), slice(None)),
        ("heads=4-7", slice(None), slice(4, 8)),
        ("heads=3&layers=0", slice(0, 1), slice(3, 4)),
        ("layers=0-3", slice(None), slice(None)),
    ],
)
def test_slice_is_what_numpy_says(gateway, chunk, query, layers, heads) -> None:
    path, body = chunk
    status, headers, got = send(gateway, "GET", path, {"x-amz-checksum-mode": "ENABLED"}, query=query)
    expected = np.frombuffer(body[DATA_START:], np.uint16).reshape(SPACE.layout.shape)[layers, :, heads].tobytes()
    assert (status, got) == (200, expected)
    assert headers["content-length"] == str(len(expected))
    assert headers["x-amz-checksum-crc64nvme"] == b64encode(crc64nvme(expected).to_bytes(8, "big")).decode()
    assert headers["etag"] == send(gateway, "HEAD", path)[1]["etag"]


@pytest.mark.parametrize(
    ("method", "query", "headers", "status", "code"),
    [
        ("GET", "layers=4", {}, 400, "InvalidArgument"),
        ("GET", "heads=x", {}, 400, "InvalidArgument"),
        ("GET", "layers=0", {"range": "bytes=0-9"}, 400, "InvalidRequest"),
        ("GET", "layers=0&partNumber=1", {}, 501, "NotImplemented"),
        ("PUT", "layers=0", {}, 405, "MethodNotAllowed"),
        ("GET", "layers=0", {"if-match": '"x"'}, 412, "PreconditionFailed"),
    ],
)
def test_what_is_no_slice_is_refused(gateway, chunk, method, query, headers, status, code) -> None:
    got, _, body = send(gateway, method, chunk[0], headers, query=query)
    assert got == status
    assert f"<Code>{code}</Code>".encode() in body


def test_other_objects_have_no_slices(gateway, chunk) -> None:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, "opaque", b"x")
    status, _, body = send(gateway, "GET", f"/{BUCKET}/opaque", query="layers=0")
    assert (status, b"this object is none" in body) == (400, True)
    status, _, body = send(gateway, "GET", chunk[0][:-64] + "0" * 64, query="layers=0")
    assert (status, b"NoSuchKey" in body) == (404, True)


def test_unchanged_chunk_is_not_sent(gateway, chunk) -> None:
    etag = send(gateway, "HEAD", chunk[0])[1]["etag"]
    status, headers, body = send(gateway, "GET", chunk[0], {"if-none-match": etag}, query="layers=0")
    assert (status, headers["etag"], body) == (304, etag, b"")


def test_slices_of_another_tenant_are_denied(gateway, chunk) -> None:
    credential = Credential(BETA.access_key, BETA.secret_key)
    path = chunk[0].replace(f"/{BUCKET}", f"/alpha_{BUCKET}", 1)
    assert send(gateway, "GET", path, query="layers=0", credential=credential)[0] == 403


INT8 = replace(SPACE, layout_version=2, codec="int8")
KV = (np.random.default_rng(0).standard_normal(SPACE.layout.shape).astype(np.float32).view(np.uint32) >> 16).astype(
    np.uint16
)
HASH, PARENT = bytes(range(32)), bytes(32)


@pytest.fixture
def client(gateway: RunningGateway):
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        for space in (SPACE, INT8):
            client.put(BUCKET, str(ManifestKey(space.id)), space.canonical_json())
        yield client


def test_ranks_write_and_read_a_lossy_chunk_in_slices(gateway, client) -> None:
    """Each encodes and decodes its own layers and heads, and never sees the others'."""
    slices = []
    for layers, heads in [(range(2), range(8)), (range(2, 4), range(3)), (range(2, 4), range(3, 8))]:
        part = Layout(len(layers), 2, len(heads), SPACE.chunk_tokens, SPACE.head_dim, SPACE.dtype)
        picked = KV[layers.start : layers.stop, :, heads.start : heads.stop]
        data = bytearray(INT8.stored.slices(layers, heads).nbytes)
        encode_kv(INT8, picked.tobytes(), data, part)
        slices.append(Slice(layers, heads, data))
    assert client.write_slices(BUCKET, INT8.id, HASH, PARENT, 0, slices).state == "committed"

    path = f"/{BUCKET}/{ChunkKey(INT8.id, HASH.hex())}"
    body = send(gateway, "GET", path)[2]
    assert body == b"".join(encode_body(INT8, HASH, PARENT, 0, KV.tobytes()))
    whole = bytearray(SPACE.layout.nbytes)
    decode_body(INT8, body, whole)
    words = np.frombuffer(whole, np.uint16).reshape(SPACE.layout.shape)

    status, headers, got = send(gateway, "GET", path, query="layers=1-2&heads=4-6")
    assert (status, headers["content-length"]) == (200, str(len(got)))
    part = Layout(2, 2, 3, SPACE.chunk_tokens, SPACE.head_dim, SPACE.dtype)
    out = bytearray(part.nbytes)
    decode_kv(INT8, got, out, part)
    assert out == words[1:3, :, 4:7].tobytes()
    (read,) = client.read_chunks(BUCKET, INT8.id, [HASH], layers=range(1, 3), heads=range(4, 7))
    assert read.body == got


def test_a_chunk_in_blocks_is_taken_and_given_and_has_no_slices(gateway, client) -> None:
    key = str(ChunkKey(SPACE.id, HASH.hex()))
    body = b"".join(encode_body(SPACE, HASH, PARENT, 0, bytes(SPACE.layout.nbytes), lossless="zstd"))
    client.put(BUCKET, key, body)
    assert send(gateway, "GET", f"/{BUCKET}/{key}")[2] == body
    status, _, got = send(gateway, "GET", f"/{BUCKET}/{key}", query="layers=0")
    assert (status, b"GET it whole" in got) == (400, True)
    raw = b"".join(encode_body(SPACE, HASH, PARENT, 0, bytes(SPACE.layout.nbytes)))
    with pytest.raises(GatewayError, match="holds another body") as refused:
        client.put(BUCKET, key, raw)
    assert refused.value.status == 409, "the first form stays"


@pytest.mark.parametrize("codec", ["zip", "int8"])
def test_a_chunk_of_a_codec_that_is_not_the_spaces_is_refused(gateway, client, codec) -> None:
    key = str(ChunkKey(SPACE.id, HASH.hex()))
    body = b"".join(encode_body(INT8, HASH, PARENT, 0, KV.tobytes()))
    body = body.replace(INT8.id.encode(), SPACE.id.encode()).replace(
        b'"codec":"int8"', f'"codec":"{codec}"'.encode() + b" " * (4 - len(codec))
    )
    with pytest.raises(GatewayError, match="unknown codec"):
        client.put(BUCKET, key, body)
