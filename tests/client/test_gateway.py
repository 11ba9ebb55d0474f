"""Both clients against a real gateway: the same calls, the same results."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvgate.chunk.frame import Status
from kvgate.chunk.header import NO_PARENT, ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import decode_header, file_nbytes
from kvgate.chunk.space import VLLM_SHA256_CBOR, Space
from kvgate.client.aio import AsyncClient
from kvgate.client.sync import Client
from kvgate.client.values import Chosen, Slice
from kvgate.codec.chunk_body import encode_body, max_body_nbytes
from kvgate.errors import GatewayError, GatewayUnavailable, InvalidArgument
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, BETA, Credential


class _Blocking:
    """The asyncio client, driven call by call like the blocking one."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner, self._client = runner, client

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*args, **kwargs))

        return call

    def list(self, *args: Any) -> Any:
        async def collect() -> list[Any]:
            return [entry async for entry in self._client.list(*args)]

        return self._runner.run(collect())


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, gateway: Any) -> Iterator[Any]:
    """Clients of the shared gateway, for alpha by default."""
    closers = []
    with asyncio.Runner() as runner:

        def make(credential: Credential = ALPHA) -> Any:
            if request.param == "sync":
                client = Client(gateway.url, credential.access_key, credential.secret_key)
                closers.append(client.close)
                return client
            other = AsyncClient(gateway.url, credential.access_key, credential.secret_key)
            closers.append(lambda: runner.run(other.close()))
            return _Blocking(runner, other)

        yield make
        for close in closers:
            close()


@pytest.fixture
def bucket() -> str:
    return f"client-{secrets.token_hex(8)}"


def test_object_comes_back_as_it_was_put(connect, bucket) -> None:
    client, body = connect(), os.urandom(5_000_000)
    client.create_bucket(bucket)
    client.create_bucket(bucket)
    key = "a b/ü+%2F&=?#"
    views = [memoryview(body)[:7], memoryview(body)[7:]]
    etag = client.put(bucket, key, views, content_type="text/plain", metadata={"Model": "llama"})
    info = client.head(bucket, key)
    assert (info.nbytes, info.etag, info.content_type, info.metadata) == (
        5_000_000,
        etag,
        "text/plain",
        {"model": "llama"},
    )
    got = client.get(bucket, key)
    assert (got.body, got.verified, got.info) == (body, True, info)
    buffer = bytearray(5_000_001)
    assert client.get(bucket, key, into=memoryview(buffer)).verified
    assert buffer[:-1] == body
    part = client.get(bucket, key, start=10, stop=20)
    assert (part.body, part.info.nbytes, part.verified) == (body[10:20], 5_000_000, False)
    assert client.get(bucket, key, start=4_999_990, stop=6_000_000).body == body[-10:]
    assert client.get(bucket, key, start=4_999_990).body == body[-10:]
    with pytest.raises(GatewayError) as raised:
        client.get(bucket, key, start=5_000_000)
    assert (raised.value.status, raised.value.code) == (416, "InvalidRange")


def test_empty_object_comes_back(connect, bucket) -> None:
    client = connect()
    client.create_bucket(bucket)
    client.put(bucket, "empty", [])
    got = client.get(bucket, "empty")
    assert (got.body, got.nbytes, got.verified) == (b"", 0, True)


def test_refusals_have_status_and_code(connect, bucket) -> None:
    client = connect()
    client.create_bucket(bucket)
    client.put(bucket, "key", b"body", if_none_match=True)
    for call, status, code in [
        (lambda: client.put(bucket, "key", b"other", if_none_match=True), 412, "PreconditionFailed"),
        (lambda: client.get(bucket, "absent"), 404, "NoSuchKey"),
        (lambda: client.head(bucket, "absent"), 404, "NotFound"),
        (lambda: client.get("no-such-bucket", "key"), 404, "NoSuchBucket"),
        (lambda: client.release("no-such-lease"), 404, "NoSuchLease"),
        (lambda: connect(Credential(ALPHA.access_key, "not-the-secret")).tenant(), 403, "SignatureDoesNotMatch"),
        (lambda: connect(Credential("not-the-key", "x")).list_buckets(), 403, "InvalidAccessKeyId"),
    ]:
        with pytest.raises(GatewayError) as raised:
            call()
        assert (raised.value.status, raised.value.code) == (status, code)
        assert not isinstance(raised.value, GatewayUnavailable)


def test_listing_pages_and_rolls_up(connect, bucket) -> None:
    client = connect()
    client.create_bucket(bucket)
    keys = sorted([f"many/{index:04}" for index in range(1005)] + ["a +/x", "ü"])
    for key in keys:
        client.put(bucket, key, b"x")
    assert [entry.key for entry in client.list(bucket)] == keys
    assert [(entry.key, entry.is_prefix) for entry in client.list(bucket, "", "/")] == [
        ("a +/", True),
        ("many/", True),
        ("ü", False),
    ]
    assert [entry.key for entry in client.list(bucket, "many/100")] == [f"many/{index}" for index in range(1000, 1005)]
    assert bucket in [found.name for found in client.list_buckets()]
    client.delete(bucket, "ü")
    client.delete(bucket, "ü")
    assert list(client.list(bucket, "ü")) == []


def test_chunks_are_matched_leased_loaded_and_released(connect, bucket) -> None:
    client = connect()
    client.create_bucket(bucket)
    tenant = client.tenant()
    assert (tenant.name, len(tenant.salt)) == ("alpha", 32)
    assert bucket in tenant.buckets
    prompt = chunks(tenant.salt, 6)
    hashes = [chunk_hash for chunk_hash, _ in prompt]
    assert client.match(bucket, SPACE.id, hashes).matched == 0
    before = client.stats()

    client.put(bucket, str(ManifestKey(SPACE.id)), [SPACE.canonical_json()])
    for chunk_hash, body in prompt[:5]:
        key = str(ChunkKey(SPACE.id, chunk_hash.hex()))
        client.put(bucket, key, [memoryview(body)[:4096], memoryview(body)[4096:]])
        client.put(bucket, key, body)  # the same body again is no error
    match = client.match(bucket, SPACE.id, hashes, lease_s=20)
    assert ([match.tiers[rank] for rank in match.ranks], match.nbytes) == (["host"] * 5, (len(prompt[0][1]),) * 5)
    assert match.expires_s == 20
    buffers = [memoryview(bytearray(len(body))) for _, body in prompt]
    assert client.load_chunks(bucket, SPACE.id, hashes, buffers, 10).arrived == (*[True] * 5, False)
    assert [bytes(buffer) for buffer in buffers[:5]] == [body for _, body in prompt[:5]]

    stats = client.stats()
    assert stats.leases - before.leases == 1
    assert stats.match_chunks_asked - before.match_chunks_asked == 6
    assert stats.match_chunks_found - before.match_chunks_found == 5
    assert stats.objects - before.objects == 6
    with pytest.raises(GatewayError):
        connect(BETA).release(match.lease)
    client.release(match.lease)
    assert client.stats().leases == before.leases
    with pytest.raises(GatewayError):
        client.release(match.lease)


@pytest.fixture
def prompt(connect, bucket) -> tuple[Any, list[tuple[bytes, bytes]]]:
    """A client, and chunks of a space that its bucket knows; none of them is stored."""
    client = connect()
    client.create_bucket(bucket)
    client.put(bucket, str(ManifestKey(SPACE.id)), [SPACE.canonical_json()])
    return client, chunks(client.tenant().salt, 4)


def test_chunks_are_read_in_one_call(prompt, bucket) -> None:
    client, stored = prompt
    for chunk_hash, body in stored[:3]:
        client.put(bucket, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    hashes, bodies = [chunk_hash for chunk_hash, _ in stored], [body for _, body in stored]
    got = client.read_chunks(bucket, SPACE.id, [hashes[3], *hashes[:3]])
    assert [chunk.status for chunk in got] == [Status.MISSING, *[Status.PRESENT] * 3]
    assert [chunk.body for chunk in got] == [None, *bodies[:3]]
    into = [memoryview(bytearray(len(body))) for body in bodies]
    got = client.read_chunks(bucket, SPACE.id, hashes, into=into)
    assert [(chunk.nbytes, chunk.body) for chunk in got] == [(len(bodies[0]), None)] * 3 + [(0, None)]
    assert [bytes(view) for view in into[:3]] == bodies[:3]
    assert client.read_chunks(bucket, SPACE.id, []) == []
    assert [chunk.status for chunk in client.read_chunks("elsewhere", SPACE.id, hashes)] == [Status.MISSING] * 4
    with pytest.raises(GatewayError) as raised:
        client.read_chunks(bucket, SPACE.id, hashes, layers=range(5))
    assert (raised.value.status, raised.value.code) == (400, "InvalidArgument")
    with pytest.raises(GatewayError) as raised:
        client.read_chunks(bucket, SPACE.id, hashes[:1], into=[memoryview(bytearray(5))])
    assert raised.value.code == "BufferSizeMismatch"
    assert client.stats().leases == 0


def test_chunks_that_are_shorter_than_their_buffers_are_taken_where_that_is_said(prompt, bucket, gateway) -> None:
    client, stored = prompt
    (first, raw), (second, _), *_ = stored
    short = b"".join(encode_body(SPACE, second, first, SPACE.chunk_tokens, bytes(SPACE.layout.nbytes), lossless="lz4"))
    for chunk_hash, body in ((first, raw), (second, short)):
        client.put(bucket, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, local=False) as remote:
        for each in (client, remote):
            into = [memoryview(bytearray(max_body_nbytes(SPACE))) for _ in range(2)]
            assert each.load_chunks(bucket, SPACE.id, [first, second], into).leading < 2
            assert each.load_chunks(bucket, SPACE.id, [first, second], into, exact=False).leading == 2
            assert [file_nbytes(view) for view in into] == [len(raw), len(short)]
            assert (into[0], into[1][: len(short)]) == (raw, short)
            small = [memoryview(bytearray(len(short) - 1))]
            assert each.load_chunks(bucket, SPACE.id, [second], small, exact=False).leading == 0
            with pytest.raises(InvalidArgument, match="whole objects"):
                each.load_chunks(bucket, SPACE.id, [], [], layout=SPACE.layout, exact=False)


def test_chunk_is_written_and_read_by_ranks(prompt, bucket) -> None:
    client, stored = prompt
    chunk_hash, body = stored[0]
    parent = bytes.fromhex(ChunkHeader.from_metadata(decode_header(body, len(body)).metadata).parent)
    kv = np.frombuffer(body[DATA_START:], np.uint16).reshape(SPACE.layout.shape)
    ranks = [(range(first, first + 2), range(head, head + 4)) for first in (0, 2) for head in (0, 4)]

    def part(layers: range, heads: range) -> bytes:
        return kv[layers.start : layers.stop, :, heads.start : heads.stop].tobytes()

    slices = [Slice(layers, heads, part(layers, heads)) for layers, heads in ranks]
    place = bucket, SPACE.id, chunk_hash, parent, 0
    assert client.write_slices(*place, slices[:3]).state == "open"
    assert client.read_chunks(bucket, SPACE.id, [chunk_hash])[0].status == Status.MISSING
    assert client.write_slices(*place, slices).state == "committed"
    assert client.write_slices(*place, slices).state == "present"
    assert client.get(bucket, str(ChunkKey(SPACE.id, chunk_hash.hex()))).body == body
    for layers, heads in ranks:
        (got,) = client.read_chunks(bucket, SPACE.id, [chunk_hash], layers=layers, heads=heads)
        assert got.body == part(layers, heads)

    other = client.reserve(bucket, SPACE.id, stored[1][0], chunk_hash, SPACE.chunk_tokens)
    assert other.nbytes == SPACE.layout.nbytes
    assert client.write_slice(other.name, None, range(8), [kv.tobytes()]).state == "committed"
    unfinished = client.reserve(bucket, SPACE.id, stored[2][0], stored[1][0], 2 * SPACE.chunk_tokens)
    client.abort_reservation(unfinished.name)
    for call in (
        lambda: client.abort_reservation(unfinished.name),
        lambda: client.write_slice(unfinished.name, None, None, kv.tobytes()),
    ):
        with pytest.raises(GatewayError) as raised:
            call()
        assert (raised.value.status, raised.value.code) == (404, "NoSuchReservation")


def test_gateway_that_restarts_is_found_again(start_gateway) -> None:
    running = start_gateway()
    with Client(running.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put("alpha-bucket", "key", b"body")
        running.stop()
        with pytest.raises(GatewayUnavailable):
            client.get("alpha-bucket", "key")
        running.start()
        assert client.get("alpha-bucket", "key").body == b"body"


def test_blocking_client_needs_no_event_loop_library() -> None:
    import subprocess
    import sys

    program = "import sys, kvgate.client.sync, kvgate.client.credentials; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"aiohttp", "torch", "numpy", "yarl"} & set(loaded)


# --- prefetch, retention and jobs -------------------------------------------------------------------------------------


def test_jobs_prefetch_and_retention(connect: Any, bucket: str) -> None:
    client = connect()
    client.create_bucket(bucket)
    client.put(bucket, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    prompt = chunks(client.tenant().salt, 3)
    for chunk_hash, body in prompt:
        client.put(bucket, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    hashes = [chunk_hash for chunk_hash, _ in prompt]
    job = _ended(client, client.start_job("move", Chosen(bucket, space=SPACE.id, hashes=hashes), tier="disk"))
    assert (job.state, job.total, job.done, job.selected, job.options) == ("done", 3, 3, 3, {"tier": "disk"})
    assert job.done_nbytes == sum(len(body) for _, body in prompt)
    found = client.prefetch(bucket, SPACE.id, [*hashes, bytes(32)])
    assert (found.tiers, found.ranks, found.wanted) == (("host", "disk"), (1, 1, 1, -1), 3)
    retained = client.retain(Chosen(bucket, keys=["none"]), pin="hard")
    assert (retained.states, retained.rule) == (("missing",), None)
    rule = client.retain(Chosen(bucket, prefix="kv/"), pin="soft", pin_s=60, ttl_s=3600).rule
    assert (rule.bucket, rule.prefix, rule.pin, rule.ttl_s) == (bucket, "kv/", "soft", 3600)
    assert rule.prefix in [each.prefix for each in client.retention().rules if each.bucket == bucket]
    assert job.id in [each.id for each in client.jobs()]
    assert client.cancel_job(job.id) == client.job(job.id)
    with pytest.raises(GatewayError) as refused:
        connect(BETA).job(job.id)
    assert refused.value.code == "NoSuchJob"
    with pytest.raises(InvalidArgument):
        client.retain(Chosen(bucket), pin="hard")
    assert _ended(client, client.start_job("unpin", Chosen(bucket, prefix="kv/"))).state == "done"
    assert _ended(client, client.start_job("clear", Chosen(bucket, prefix=""))).state == "done"
    assert list(client.list(bucket)) == []


def _ended(client: Any, job: Any) -> Any:
    while not job.has_ended:
        job = client.job(job.id)
    return job


def test_chunks_of_layout_version_2_under_an_engines_hashes_are_stored_matched_and_cut(connect, bucket) -> None:
    """Opaque bytes of some layers of a model: what lies in a run is nobody's business, where runs lie is."""
    client = connect()
    client.create_bucket(bucket)
    space = Space.from_manifest(
        SPACE.manifest()
        | {"layout_version": 2, "packing": "vllm-cpu-amx-32", "layer_set": "0-1,4,6", "codec": "raw"}
        | {"hash_scheme": VLLM_SHA256_CBOR}
    )
    client.put(bucket, str(ManifestKey(space.id)), space.canonical_json())
    hashes, kv = [os.urandom(32) for _ in range(3)], os.urandom(space.layout.nbytes)
    for chunk_hash in hashes[:2]:
        client.put(
            bucket, str(ChunkKey(space.id, chunk_hash.hex())), [ChunkHeader.encode(space, chunk_hash, NO_PARENT, 0), kv]
        )
    assert client.write_slices(bucket, space.id, hashes[2], NO_PARENT, 0, [Slice(None, None, kv)]).state == "committed"
    with pytest.raises(GatewayError, match="64 zeros"):
        client.reserve(bucket, space.id, os.urandom(32), hashes[2], 0)
    assert len(client.match(bucket, space.id, hashes).nbytes) == 3
    whole = np.frombuffer(kv, np.uint16).reshape(space.layout.shape)
    for read in client.read_chunks(bucket, space.id, hashes, layers=range(1, 3), heads=range(2, 5)):
        assert read.body == whole[1:3, :, 2:5].tobytes()
    other = Space.from_manifest(space.manifest() | {"layer_set": "2-3,5,7"})
    explained = client.explain(bucket, other.id, hashes, manifest=other.manifest())
    assert [(near.space, near.differs) for near in explained.nearest] == [(space.id, ("layer_set",))]
    assert explained.objects[0].elsewhere == space.id
