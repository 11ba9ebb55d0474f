"""Loading a prefix, in both clients: how many leading chunks arrived, whatever the gateway does."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest
from awscrt.checksums import crc64nvme

from kvgate.chunk.frame import Frame, Status
from kvgate.client.aio import AsyncClient
from kvgate.client.frames import FRAMES
from kvgate.client.sync import Client
from kvgate.client.values import Loaded
from kvgate.errors import InvalidArgument, InvalidBucketName, InvalidKey
from tests.client.peer import Peer, checksum_header, ends_within

SPACE = "ab" * 32
CHUNKS = [os.urandom(200_000) for _ in range(12)]
HASHES = [bytes([index]) * 32 for index in range(12)]

Load = Callable[..., Loaded]


@pytest.fixture(params=["sync", "async"])
def load(request: pytest.FixtureRequest) -> Load:
    """Loads from a port into buffers, and returns what arrived."""

    def sync(port, buffers, deadline_s=5.0, hashes=HASHES, connections=4, bucket="bucket") -> Loaded:
        with Client(f"http://127.0.0.1:{port}", "a", "b") as client:
            views = [memoryview(buffer) for buffer in buffers]
            return client.load_chunks(bucket, SPACE, hashes, views, deadline_s, connections=connections)

    def aio(port, buffers, deadline_s=5.0, hashes=HASHES, connections=4, bucket="bucket") -> Loaded:
        async def run() -> Loaded:
            async with AsyncClient(f"http://127.0.0.1:{port}", "a", "b") as client:
                views = [memoryview(buffer) for buffer in buffers]
                return await client.load_chunks(bucket, SPACE, hashes, views, deadline_s, connections=connections)

        return asyncio.run(run())

    return sync if request.param == "sync" else aio


@pytest.fixture
def buffers() -> list[bytearray]:
    return [bytearray(len(chunk)) for chunk in CHUNKS]


def store_of(chunks: list[bytes], **special: Callable[[Peer, int], object]) -> Callable[[Peer], None]:
    """A gateway that holds chunks; `special` says what it does instead for some, as _3=…."""

    def run(peer: Peer) -> None:
        while True:
            head, body = peer.request()
            if not head:
                return
            assert head.startswith(b"POST /_kv/v1/read ")
            asked = msgpack.unpackb(body)
            indices = list(asked["hashes"][::32])
            if (refuse := special.get(f"_{indices[0]}")) in REFUSALS:
                refuse(peer, 0)
                continue
            peer.sock.sendall(
                f"HTTP/1.1 200 OK\r\ncontent-type: {FRAMES}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
            )
            for position, index in enumerate(indices):
                special.get(f"_{index}", whole(chunks[index]))(peer, position)
            peer.sock.sendall(b"0\r\n\r\n")

    return run


def send(peer: Peer, data: bytes) -> None:
    peer.sock.sendall(b"%x\r\n" % len(data) + data + b"\r\n")


def whole(chunk: bytes, stated: bytes | None = None) -> Callable[[Peer, int], None]:
    def run(peer: Peer, position: int) -> None:
        crc = crc64nvme(chunk if stated is None else stated)
        send(peer, Frame(position, Status.PRESENT, len(chunk), crc).encode() + chunk)

    return run


def status(what: Status) -> Callable[[Peer, int], None]:
    return lambda peer, position: send(peer, Frame(position, what).encode())


def broken(peer: Peer, position: int) -> None:
    send(peer, Frame(position, Status.PRESENT, len(CHUNKS[5]), 0).encode() + CHUNKS[5][:1000])
    peer.sock.shutdown(socket.SHUT_RDWR)


def senseless(peer: Peer, position: int) -> None:
    send(peer, os.urandom(64))


def out_of_order(peer: Peer, position: int) -> None:
    send(peer, Frame(position + 1, Status.MISSING).encode())


def overloaded(peer: Peer, position: int) -> None:
    peer.respond(b"", "retry-after: 1", status="503 Slow Down")


def object_instead(peer: Peer, position: int) -> None:
    peer.respond(CHUNKS[5], checksum_header(CHUNKS[5]))


REFUSALS = (overloaded, object_instead)


def silent(peer: Peer, position: int) -> None:
    peer.stopped.wait()


def trickling(peer: Peer, position: int) -> None:
    send(peer, Frame(position, Status.PRESENT, len(CHUNKS[5]), 0).encode())
    while not peer.stopped.wait(0.02):
        send(peer, b"x")


@pytest.mark.parametrize("connections", [1, 3, 32])
def test_all_chunks_arrive_over_a_bounded_number_of_connections(serve, load, buffers, connections) -> None:
    server = serve(store_of(CHUNKS))
    assert load(server.port, buffers, connections=connections) == Loaded((True,) * 12)
    assert [bytes(buffer) for buffer in buffers] == CHUNKS
    assert 1 <= server.connections <= min(connections, 8), "8 is the client's own bound"


FAILURES = {
    **{what.name: status(what) for what in Status if what != Status.PRESENT},
    "corrupt": whole(CHUNKS[5], stated=CHUNKS[4]),
    "short": whole(CHUNKS[5][:-1]),
    "long": whole(CHUNKS[5] + b"x"),
    "broken": broken,
    "senseless": senseless,
    "out of order": out_of_order,
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_first_chunk_that_fails_ends_the_prefix_at_once(serve, load, buffers, failure) -> None:
    server = serve(store_of(CHUNKS, _5=failure, _7=status(Status.MISSING)))
    with ends_within(0, 2):
        assert load(server.port, buffers, deadline_s=20).leading == 5
    assert [bytes(buffer) for buffer in buffers[:5]] == CHUNKS[:5]


def test_a_load_tells_that_its_first_gap_is_a_chunk_without_slices(serve, load, buffers) -> None:
    without = status(Status.NO_SLICES)
    assert load(serve(store_of(CHUNKS, _5=without)).port, buffers).no_slices
    assert not load(serve(store_of(CHUNKS, _5=status(Status.MISSING), _6=without)).port, buffers).no_slices
    assert not load(serve(store_of(CHUNKS)).port, buffers).no_slices


@pytest.mark.parametrize("refusal", REFUSALS)
def test_call_that_is_refused_ends_the_prefix(serve, load, buffers, refusal) -> None:
    server = serve(store_of(CHUNKS, _6=refusal))
    with ends_within(0, 2):
        assert load(server.port, buffers, deadline_s=20).leading == 6


@pytest.mark.parametrize("lateness", [silent, trickling])
def test_late_chunk_ends_the_prefix_at_the_deadline(serve, load, buffers, lateness) -> None:
    server = serve(store_of(CHUNKS, _5=lateness))
    with ends_within(0.4, 1.2):
        loaded = load(server.port, buffers, deadline_s=0.5)
    assert loaded.leading == 5
    for index in range(12):
        assert loaded.arrived[index] == (index != 5)
        assert not loaded.arrived[index] or bytes(buffers[index]) == CHUNKS[index], "complete ones are told"


@pytest.mark.parametrize("lateness", [silent, trickling])
def test_chunks_beyond_the_gap_are_not_waited_for(serve, load, buffers, lateness) -> None:
    def absent_after_a_while(peer: Peer, position: int) -> None:
        time.sleep(0.2)
        status(Status.MISSING)(peer, position)

    server = serve(store_of(CHUNKS, _1=absent_after_a_while, _2=lateness, _3=lateness))
    with ends_within(0, 2):
        assert load(server.port, buffers, deadline_s=20).leading == 1


def test_gateway_is_told_how_long_its_answer_is_wanted(serve, load, buffers) -> None:
    asked = []

    def run(peer: Peer) -> None:
        asked.append(msgpack.unpackb(peer.request()[1]))
        overloaded(peer, 0)

    load(serve(run).port, buffers, deadline_s=2.0, connections=1)
    assert 1500 < asked[0]["deadline_ms"] <= 2000
    assert asked[0]["hashes"] == b"".join(HASHES)


def test_absent_gateway_gives_nothing(load, buffers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert load(port, buffers).leading == 0


def test_gateway_that_speaks_no_http_gives_nothing(serve, load, buffers) -> None:
    server = serve(lambda peer: peer.sock.sendall(b"220 smtp.example.com ESMTP\r\n" * 10))
    assert load(server.port, buffers).leading == 0


def test_deadline_that_has_passed_gives_nothing(serve, load, buffers) -> None:
    assert load(serve(store_of(CHUNKS)).port, buffers, deadline_s=0).leading == 0
    assert load(serve(store_of(CHUNKS)).port, buffers, deadline_s=-1).leading == 0


def test_nothing_asked_for_is_nothing_loaded(load) -> None:
    assert load(1, [], hashes=[]) == Loaded(())


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
        assert client.load_chunks("bucket", SPACE, HASHES, views, 0.3).leading == 2
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
