"""Loading a prefix, in both clients: how many leading chunks arrived, whatever the gateway does."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvgate.client.aio import AsyncClient
from kvgate.client.sync import Client
from kvgate.errors import InvalidArgument, InvalidBucketName, InvalidKey
from tests.client.peer import Peer, checksum_header, ends_within

SPACE = "ab" * 32
CHUNKS = [os.urandom(200_000) for _ in range(12)]
HASHES = [bytes([index]) * 32 for index in range(12)]

Load = Callable[..., int]


@pytest.fixture(params=["sync", "async"])
def load(request: pytest.FixtureRequest) -> Load:
    """Loads from a port into buffers, and returns how many chunks arrived."""

    def sync(port, buffers, deadline_s=5.0, hashes=HASHES, connections=4, bucket="bucket") -> int:
        with Client(f"http://127.0.0.1:{port}", "a", "b", max_connections=connections) as client:
            views = [memoryview(buffer) for buffer in buffers]
            return client.load_chunks(bucket, SPACE, hashes, views, deadline_s)

    def aio(port, buffers, deadline_s=5.0, hashes=HASHES, connections=4, bucket="bucket") -> int:
        async def run() -> int:
            async with AsyncClient(f"http://127.0.0.1:{port}", "a", "b", max_connections=connections) as client:
                views = [memoryview(buffer) for buffer in buffers]
                return await client.load_chunks(bucket, SPACE, hashes, views, deadline_s)

        return asyncio.run(run())

    return sync if request.param == "sync" else aio


@pytest.fixture
def buffers() -> list[bytearray]:
    return [bytearray(len(chunk)) for chunk in CHUNKS]


def store_of(chunks: list[bytes], **special: Callable[[Peer], None]) -> Callable[[Peer], None]:
    """A gateway that holds chunks; `special` says what it does instead for some, as _3=…."""

    def run(peer: Peer) -> None:
        while head := peer.request()[0]:
            assert head.startswith(f"GET /bucket/kv/{SPACE}/".encode())
            index = bytes.fromhex(head.split(b" ")[1].rpartition(b"/")[2].decode())[0]
            if f"_{index}" in special:
                special[f"_{index}"](peer)
            else:
                peer.respond(chunks[index], checksum_header(chunks[index]))

    return run


def absent(peer: Peer) -> None:
    peer.respond(b"<Error><Code>NoSuchKey</Code></Error>", status="404 Not Found")


def corrupt(peer: Peer) -> None:
    peer.respond(CHUNKS[0], checksum_header(CHUNKS[1]))


def unchecked(peer: Peer) -> None:
    peer.respond(CHUNKS[5])


def short(peer: Peer) -> None:
    peer.respond(CHUNKS[5][:-1], checksum_header(CHUNKS[5][:-1]))


def long(peer: Peer) -> None:
    peer.respond(CHUNKS[5] + b"x", checksum_header(CHUNKS[5] + b"x"))


def broken(peer: Peer) -> None:
    peer.respond(CHUNKS[5][:1000], nbytes=len(CHUNKS[5]))
    peer.sock.close()


def overloaded(peer: Peer) -> None:
    peer.respond(b"", status="503 Slow Down")


def silent(peer: Peer) -> None:
    peer.stopped.wait()


def trickling(peer: Peer) -> None:
    peer.respond(b"", checksum_header(CHUNKS[5]), nbytes=len(CHUNKS[5]))
    while not peer.stopped.wait(0.02):
        peer.sock.sendall(b"x")


@pytest.mark.parametrize("connections", [1, 3, 32])
def test_all_chunks_arrive_over_a_bounded_number_of_connections(serve, load, buffers, connections) -> None:
    server = serve(store_of(CHUNKS))
    assert load(server.port, buffers, connections=connections) == 12
    assert [bytes(buffer) for buffer in buffers] == CHUNKS
    assert 1 <= server.connections <= min(connections, 12)


@pytest.mark.parametrize("failure", [absent, corrupt, unchecked, short, long, broken, overloaded])
def test_first_chunk_that_fails_ends_the_prefix_at_once(serve, load, buffers, failure) -> None:
    server = serve(store_of(CHUNKS, _5=failure, _7=absent))
    with ends_within(0, 2):
        assert load(server.port, buffers, deadline_s=20) == 5
    assert [bytes(buffer) for buffer in buffers[:5]] == CHUNKS[:5]


@pytest.mark.parametrize("lateness", [silent, trickling])
def test_late_chunk_ends_the_prefix_at_the_deadline(serve, load, buffers, lateness) -> None:
    server = serve(store_of(CHUNKS, _5=lateness))
    with ends_within(0.4, 1.2):
        assert load(server.port, buffers, deadline_s=0.5) == 5


@pytest.mark.parametrize("lateness", [silent, trickling])
def test_chunks_beyond_the_gap_are_not_waited_for(serve, load, buffers, lateness) -> None:
    server = serve(store_of(CHUNKS, _1=lambda peer: (time.sleep(0.2), absent(peer)), _2=lateness, _3=lateness))
    with ends_within(0, 2):
        assert load(server.port, buffers, deadline_s=20) == 1


def test_absent_gateway_gives_nothing(load, buffers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert load(port, buffers) == 0


def test_gateway_that_speaks_no_http_gives_nothing(serve, load, buffers) -> None:
    server = serve(lambda peer: peer.sock.sendall(b"220 smtp.example.com ESMTP\r\n" * 10))
    assert load(server.port, buffers) == 0


def test_deadline_that_has_passed_gives_nothing(serve, load, buffers) -> None:
    assert load(serve(store_of(CHUNKS)).port, buffers, deadline_s=0) == 0
    assert load(serve(store_of(CHUNKS)).port, buffers, deadline_s=-1) == 0


def test_nothing_asked_for_is_nothing_loaded(load) -> None:
    assert load(1, [], hashes=[]) == 0


def test_wrong_arguments_are_told(load, buffers) -> None:
    with pytest.raises(InvalidArgument):
        load(1, buffers[:3])
    with pytest.raises(InvalidBucketName):
        load(1, buffers, bucket="_kv")
    with pytest.raises(InvalidKey):
        load(1, buffers[:1], hashes=[b"short"])
    with pytest.raises(InvalidArgument):
        load(1, [b"read-only"], hashes=HASHES[:1])


def test_no_thread_outlives_a_load(serve, buffers) -> None:
    server = serve(store_of(CHUNKS, _2=silent, _3=silent))
    with Client(f"http://127.0.0.1:{server.port}", "a", "b") as client:
        views = [memoryview(buffer) for buffer in buffers]
        assert client.load_chunks("bucket", SPACE, HASHES, views, 0.3) == 2
        assert not [thread for thread in threading.enumerate() if thread.name == "kvgate-load"]


async def test_cancelled_load_writes_no_more(serve, buffers) -> None:
    server = serve(store_of(CHUNKS, _0=trickling))
    async with AsyncClient(f"http://127.0.0.1:{server.port}", "a", "b", max_connections=1) as client:
        loading = asyncio.create_task(
            client.load_chunks("bucket", SPACE, HASHES[:1], [memoryview(buffers[0])], deadline_s=20)
        )
        await asyncio.sleep(0.3)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        seen = bytes(buffers[0])
        assert any(seen)
        await asyncio.sleep(0.1)
        assert bytes(buffers[0]) == seen


@pytest.fixture(autouse=True)
def _no_leftover_tasks() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kvgate")]
