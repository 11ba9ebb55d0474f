"""Transfers over real socket pairs, on the loop and in threads."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from kvgate.memory import BLOCK_NBYTES, crc64nvme, plain_digest
from kvgate.server.http1.mover import Movers
from kvgate.server.http1.transfer import Pace, PeerGone, Receive, Send

PACE = Pace(30.0)
NBYTES = 24 << 20

Digest = plain_digest.BlockDigest


class Ignore:
    """A consumer that is no digest."""

    def __call__(self, view: memoryview) -> None:
        pass


Consumer = Digest | Ignore

try:
    from kvgate.native import BlockDigest as DigestInC
except ImportError:
    DigestInC = Digest  # type: ignore[misc, assignment]

DIGESTS = [
    pytest.param(Digest, id="a digest in Python"),
    pytest.param(DigestInC, id="a digest in C", marks=pytest.mark.skipif(DigestInC is Digest, reason="`make native`")),
]
each_digest = pytest.mark.parametrize("consumer", DIGESTS)
each_consumer = pytest.mark.parametrize("consumer", [pytest.param(Ignore, id="no digest"), *DIGESTS])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def movers() -> Iterator[Movers]:
    movers = Movers(2)
    loop = asyncio.get_running_loop()
    loop.add_reader(movers.fd, movers.collect)
    yield movers
    loop.remove_reader(movers.fd)
    movers.close()


async def test_a_body_is_scattered_and_seen_in_order(pair: tuple[socket.socket, socket.socket], movers: Movers) -> None:
    ours, theirs = pair
    body = os.urandom(NBYTES)
    sender = threading.Thread(target=theirs.sendall, args=(body,))
    sender.start()
    room = bytearray(NBYTES)
    seen = bytearray()
    threads = set()

    def consume(view: memoryview) -> None:
        seen.extend(view)
        threads.add(threading.current_thread().name)

    cuts = [0, 1, 4096, 4097, 5000, 3 << 20, NBYTES]
    views = [memoryview(room)[start:stop] for start, stop in itertools.pairwise(cuts)]
    receive = Receive(ours, PACE, views, NBYTES, consume)
    movers.submit(receive)
    await receive.ended
    sender.join()
    assert room == seen == body
    assert len(threads) == 1
    assert threads.pop().startswith("kvgate-mover-")


async def test_many_small_buffers_leave_in_order(pair: tuple[socket.socket, socket.socket], movers: Movers) -> None:
    ours, theirs = pair
    body = os.urandom(NBYTES)
    received = bytearray()

    def receive() -> None:
        while len(received) < NBYTES:
            received.extend(theirs.recv(1 << 20))

    receiver = threading.Thread(target=receive)
    receiver.start()
    send = Send(ours, PACE, [body[start : start + 1777] for start in range(0, NBYTES, 1777)])
    movers.submit(send)
    await send.ended
    receiver.join()
    assert received == body


@each_digest
async def test_a_body_that_is_digested_alone_is_scattered_in_order(
    pair: tuple[socket.socket, socket.socket], movers: Movers, consumer: type[Digest]
) -> None:
    """A digest in C takes the bytes off the socket by itself; behind the body is what belongs to the next request."""
    ours, theirs = pair
    body = os.urandom(NBYTES)
    sender = threading.Thread(target=theirs.sendall, args=(body + b"next",))
    sender.start()
    room = bytearray(NBYTES + 4096)
    cuts = [0, 1, 4096, 4097, 5000, *range(5001, 5300), 3 << 20, *range(4 << 20, 5 << 20, 8192), NBYTES + 4096]
    views = [memoryview(room)[start:stop] for start, stop in itertools.pairwise(cuts)]
    digest = consumer()
    receive = Receive(ours, PACE, views, NBYTES, digest)
    movers.submit(receive)
    await receive.ended
    sender.join()
    assert room[:NBYTES] == body
    assert not any(room[NBYTES:])
    assert (receive.received, receive.left, digest.nbytes) == (NBYTES, 0, NBYTES)
    assert digest.blocks.tolist() == [
        crc64nvme([memoryview(body)[start : start + BLOCK_NBYTES]]) for start in range(0, NBYTES, BLOCK_NBYTES)
    ]
    assert ours.recv(10) == b"next"


@each_consumer
async def test_a_peer_that_goes_ends_the_transfer(
    pair: tuple[socket.socket, socket.socket], movers: Movers, consumer: type[Consumer]
) -> None:
    ours, theirs = pair
    theirs.sendall(bytes(1000))
    receive = Receive(ours, PACE, [memoryview(bytearray(NBYTES))], NBYTES, consumer())
    movers.submit(receive)
    await asyncio.sleep(0.05)
    theirs.close()
    with pytest.raises(PeerGone):
        await receive.ended
    assert receive.received == 1000


async def test_an_error_of_the_consumer_is_the_callers(
    pair: tuple[socket.socket, socket.socket], movers: Movers
) -> None:
    ours, theirs = pair

    def refuse(view: memoryview) -> None:
        raise ValueError("a wrong byte")

    theirs.sendall(bytes(1000))
    receive = Receive(ours, PACE, [memoryview(bytearray(NBYTES))], NBYTES, refuse)
    movers.submit(receive)
    with pytest.raises(ValueError, match="a wrong byte"):
        await receive.ended


async def test_a_cancelled_task_goes_on_when_nobody_touches_the_memory_any_more(
    pair: tuple[socket.socket, socket.socket], movers: Movers
) -> None:
    ours, theirs = pair
    consuming, let_go = threading.Event(), threading.Event()

    def consume(view: memoryview) -> None:
        consuming.set()
        let_go.wait(10)

    receive = Receive(ours, PACE, [memoryview(bytearray(NBYTES))], NBYTES, consume)

    async def work() -> None:
        movers.submit(receive)
        await receive.ended

    task = asyncio.create_task(work())
    theirs.sendall(bytes(1000))
    await asyncio.to_thread(consuming.wait, 10)
    task.cancel()
    _, pending = await asyncio.wait([task], timeout=0.1)
    assert pending, "the thread still looks at the memory"
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@each_consumer
async def test_an_error_of_the_socket_is_the_callers(
    pair: tuple[socket.socket, socket.socket], movers: Movers, consumer: type[Consumer]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        ours, _ = server.accept()
        with ours:
            ours.setblocking(False)
            receive = Receive(ours, PACE, [memoryview(bytearray(NBYTES))], NBYTES, consumer())
            movers.submit(receive)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            with pytest.raises(ConnectionResetError):
                await receive.ended


@each_consumer
@pytest.mark.parametrize("rate", [0, 1 << 30])
async def test_what_pauses_or_crawls_is_cut(
    pair: tuple[socket.socket, socket.socket], movers: Movers, rate: int, consumer: type[Consumer]
) -> None:
    ours, theirs = pair
    receive = Receive(ours, Pace(0.3, rate), [memoryview(bytearray(NBYTES))], NBYTES, consumer())
    movers.submit(receive)
    began = time.monotonic()
    while not receive.ended.done():
        await asyncio.sleep(0.05)
        if rate and not receive.late:  # it never pauses, but is slower than that
            theirs.send(b"x")
        receive.cut_if_late(time.monotonic())
        assert time.monotonic() - began < 10
    assert receive.late
    assert isinstance(receive.ended.exception(), PeerGone)
    assert time.monotonic() - began >= 0.3


async def test_bodies_of_different_connections_move_at_the_same_time(movers: Movers) -> None:
    """More transfers than threads, each of which waits for a peer of its own."""
    pairs = [socket.socketpair() for _ in range(8)]
    receives = []
    for ours, _ in pairs:
        ours.setblocking(False)
        receives.append(Receive(ours, PACE, [memoryview(bytearray(4096))], 4096, lambda view: None))
        movers.submit(receives[-1])
    for _, theirs in reversed(pairs):
        theirs.sendall(bytes(4096))
    await asyncio.wait_for(asyncio.gather(*[receive.ended for receive in receives]), 10)
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
