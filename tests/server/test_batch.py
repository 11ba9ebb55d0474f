"""Batch reads and chunks in slices on a real gateway: slow peers, peers that go away, and a gateway that is killed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from kvgate.auth import sigv4
from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.frame import FRAME_NBYTES, Status, decode_frame
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.client.chunks import SPACE as SMALL
from tests.gateways import ALPHA, RunningGateway
from tests.wire import CREDENTIAL, signed_head

SPACE = Space.from_manifest(SMALL.manifest() | {"head_dim": 128, "chunk_tokens": 128})
"""Chunks of 2 MiB."""

BUCKET = "alpha-bucket"
KV = bytes(range(256)) * (SPACE.layout.nbytes // 256)
PATIENCE_S = 20.0


@contextlib.contextmanager
def client_of(gateway: RunningGateway) -> Iterator[Client]:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20) as client:
        yield client


def hashes_of(client: Client, count: int) -> list[bytes]:
    """The hashes of a prompt, the root before them; the space is known to the bucket."""
    client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    start = root(SPACE.digest, client.tenant().salt)
    return [start, *chain_hashes(start, list(range(count * SPACE.chunk_tokens)), SPACE.chunk_tokens)]


def put_chunks(client: Client, count: int) -> list[bytes]:
    hashes = hashes_of(client, count)
    for index in range(count):
        header = ChunkHeader.encode(SPACE, hashes[index + 1], hashes[index], index * SPACE.chunk_tokens)
        client.put(BUCKET, str(ChunkKey(SPACE.id, hashes[index + 1].hex())), [header, KV])
    return hashes[1:]


def reserved(client: Client) -> tuple[str, str]:
    """The name of a reservation of the first chunk, and the chunk's key."""
    start, first = hashes_of(client, 1)
    return client.reserve(BUCKET, SPACE.id, first, start, 0).name, str(ChunkKey(SPACE.id, first.hex()))


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come to be"
        time.sleep(0.05)


def read_request(gateway: RunningGateway, hashes: list[bytes], version: str = "1.1") -> bytes:
    body = msgpack.packb({"bucket": BUCKET, "space": SPACE.id, "hashes": b"".join(hashes)})
    headers = {
        "host": f"127.0.0.1:{gateway.port}",
        "content-type": "application/msgpack",
        "content-length": str(len(body)),
    }
    return signed_head("POST", "/_kv/v1/read", headers).replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1) + body


def slice_head(gateway: RunningGateway, query: str) -> bytes:
    headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(len(KV))}
    signed = sigv4.sign(
        CREDENTIAL, "PUT", "/_kv/v1/slice", query, headers, region="us-east-1", now=time.time(),
        payload_hash=sigv4.UNSIGNED_PAYLOAD,
    )  # fmt: skip
    lines = [f"PUT /_kv/v1/slice?{query} HTTP/1.1", *(f"{name}: {value}" for name, value in (headers | signed).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def test_reader_that_takes_nothing_is_cut_and_holds_up_nobody(start_gateway) -> None:
    gateway = start_gateway(listen={"body_timeout": "1s"}, tiers={"host": {"capacity": "256MiB"}})
    with client_of(gateway) as client:
        hashes = put_chunks(client, 12)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", gateway.port))
            slow.sendall(read_request(gateway, hashes))
            time.sleep(0.2)
            start_s = time.monotonic()
            assert [chunk.status for chunk in client.read_chunks(BUCKET, SPACE.id, hashes)] == [Status.PRESENT] * 12
            assert time.monotonic() - start_s < 5
            time.sleep(2.5)
            slow.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                while slow.recv(1 << 20):
                    pass
        for chunk_hash in hashes:  # a leased chunk could be deleted too; its memory would stay
            client.delete(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())))
        until(lambda: gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] < 1 << 20)


def test_reader_that_goes_away_leaves_no_lease(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as client:
        hashes = put_chunks(client, 12)
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                sock.sendall(read_request(gateway, hashes))
                sock.recv(1000)
        for chunk_hash in hashes:
            client.delete(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())))
        until(lambda: gateway.metrics()['kvgate_tier_used_bytes{tier="host"}'] < 1 << 20)
    assert "Traceback" not in gateway.log


def test_reader_of_http_1_0_gets_the_frames_up_to_the_end_of_the_connection(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as client:
        hashes = put_chunks(client, 1)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as sock:
        sock.sendall(read_request(gateway, [bytes(32), *hashes], "1.0"))
        answer = b""
        while received := sock.recv(1 << 20):
            answer += received
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"transfer-encoding" not in head.lower()
    assert decode_frame(frames[:FRAME_NBYTES]).status == Status.MISSING
    assert decode_frame(frames[FRAME_NBYTES : 2 * FRAME_NBYTES]).nbytes == DATA_START + len(KV)
    assert frames.endswith(KV)
    assert len(frames) == 2 * FRAME_NBYTES + DATA_START + len(KV)


def test_writer_that_stops_within_a_slice_is_cut_and_another_finishes(start_gateway) -> None:
    gateway = start_gateway(listen={"body_timeout": "1s"})
    with client_of(gateway) as client:
        name, key = reserved(client)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as slow:
            slow.sendall(slice_head(gateway, f"reservation={name}") + KV[: 1 << 20])
            time.sleep(0.3)
            with pytest.raises(GatewayError) as raised:
                client.write_slice(name, None, None, KV)
            assert raised.value.code == "SliceConflict"
            assert b" 400 " in slow.recv(1 << 16).split(b"\r\n")[0]
        assert client.write_slice(name, None, None, KV).state == "committed"
        assert client.get(BUCKET, key).body[DATA_START:] == KV


@pytest.mark.parametrize("end", ["abort", "lease end"])
def test_slice_under_way_ends_with_its_reservation(start_gateway, end) -> None:
    gateway = start_gateway(store={"max_lease": "2s" if end == "lease end" else "1m"})
    with client_of(gateway) as client:
        name, key = reserved(client)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as slow:
            slow.sendall(slice_head(gateway, f"reservation={name}") + KV[: 1 << 20])
            until(lambda: gateway.metrics()["kvgate_reserved_bytes"] > 0)
            if end == "abort":
                time.sleep(0.3)
                client.abort_reservation(name)
            answer = slow.recv(1 << 16)
            assert b" 404 " in answer.split(b"\r\n")[0]
            assert b"NoSuchReservation" in answer
        until(lambda: gateway.metrics()["kvgate_reserved_bytes"] == 0)
        until(lambda: client.stats().nbytes == len(SPACE.canonical_json()))
        with pytest.raises(GatewayError, match="NoSuchKey"):
            client.get(BUCKET, key)
    assert "Traceback" not in gateway.log


def test_gateway_that_is_killed_between_slices_has_nothing_of_the_chunk(start_gateway) -> None:
    gateway = start_gateway(store={"ack": "disk"})
    with client_of(gateway) as client:
        name, _key = reserved(client)
        half = len(KV) // 2
        assert client.write_slice(name, range(2), None, KV[:half]).state == "open"
        gateway.kill()
        gateway.start()
        with pytest.raises(GatewayError) as raised:
            client.write_slice(name, range(2, 4), None, KV[half:])
        assert raised.value.code == "NoSuchReservation"
        assert [entry.key for entry in client.list(BUCKET)] == [str(ManifestKey(SPACE.id))]
        assert client.stats().nbytes == len(SPACE.canonical_json())


def test_chunk_that_was_committed_survives_a_kill(start_gateway) -> None:
    gateway = start_gateway(store={"ack": "disk"})
    with client_of(gateway) as client:
        name, key = reserved(client)
        threads = [
            threading.Thread(target=client.write_slice, args=(name, range(layer, layer + 1), None, KV[: len(KV) // 4]))
            for layer in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gateway.kill()
        gateway.start()
        body = client.get(BUCKET, key).body
        assert body is not None
        assert body[DATA_START:] == KV[: len(KV) // 4] * 4


def test_batch_is_counted(start_gateway) -> None:
    gateway = start_gateway()
    with client_of(gateway) as client:
        hashes = put_chunks(client, 2)
        client.read_chunks(BUCKET, SPACE.id, [*hashes, bytes(32)])
        metrics = gateway.metrics()
        assert metrics['kvgate_batch_chunks_total{status="present"}'] == 2
        assert metrics['kvgate_batch_chunks_total{status="missing"}'] == 1
        assert metrics['kvgate_requests_total{operation="Read",status="200"}'] == 1
