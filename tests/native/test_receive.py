"""A digest in C takes bytes off a socket, and says why it stopped."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

native = pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")

BODY = random.Random(0).randbytes(5 << 20)
ENDED = -1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_it_stops_when_there_is_nothing_for_now(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    room, digest = bytearray(100), native.BlockDigest()
    assert digest.receive(ours, [room], 100) == (0, errno.EAGAIN)
    theirs.sendall(b"123456789")
    assert digest.receive(ours, [room], 100) == (9, errno.EAGAIN)
    assert (room[:9], digest.nbytes, digest.value) == (b"123456789", 9, 0xAE8B14860A799888)


def test_it_stops_when_the_peer_has_ended_the_stream(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    room, digest = bytearray(100), native.BlockDigest()
    theirs.sendall(b"12345")
    theirs.close()
    assert digest.receive(ours, [room], 5) == (5, 0)
    assert digest.receive(ours, [room], 5) == (0, ENDED)
    assert digest.nbytes == 5


def test_it_stops_at_the_end_of_the_room_and_at_the_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    room, digest = memoryview(bytearray(100)), native.BlockDigest()
    theirs.sendall(b"123456789")
    assert digest.receive(ours, [room[:0], room[:2], room[2:2], room[2:3]], 100) == (3, 0)
    assert digest.receive(ours, [room[3:]], 4) == (4, 0)
    assert digest.receive(ours, [], 4) == (0, 0)
    assert digest.receive(ours, [room[7:]], 0) == (0, 0)
    assert digest.receive(ours, [room[7:]], 93) == (2, errno.EAGAIN)
    assert (bytes(room[:9]), bytes(room[9:])) == (b"123456789", bytes(91))
    assert digest.value == 0xAE8B14860A799888


@pytest.mark.parametrize("width", [1 << 14, 1 << 20, 3 << 20, 5 << 20])
def test_views_of_any_width_are_filled_in_order(pair: tuple[socket.socket, socket.socket], width: int) -> None:
    ours, theirs = pair
    sender = threading.Thread(target=theirs.sendall, args=(BODY,))
    sender.start()
    room, digest = memoryview(bytearray(len(BODY))), native.BlockDigest()
    while digest.nbytes < len(BODY):
        left = room[digest.nbytes :]
        views = [left[start : start + width] for start in range(0, len(left), width)]
        count, stopped = digest.receive(ours, views, len(left))
        assert stopped in (0, errno.EAGAIN)
        assert count >= 0
    sender.join()
    assert room == BODY
    assert digest.value == native.crc64nvme(BODY)
    assert len(digest.blocks) == 5


def test_an_error_of_the_socket_is_its_errno() -> None:
    digest, room = native.BlockDigest(), [bytearray(10)]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        ours, _ = server.accept()
        with ours:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            assert digest.receive(ours, room, 10) == (0, errno.ECONNRESET)
    read_end, write_end = os.pipe()
    assert digest.receive(read_end, room, 10) == (0, errno.ENOTSOCK)
    os.close(read_end)
    os.close(write_end)
    assert digest.receive(1 << 30, room, 10) == (0, errno.EBADF)


def test_what_it_cannot_do_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    digest = native.BlockDigest()
    with pytest.raises(BufferError):
        digest.receive(ours, [b"read-only"], 5)
    with pytest.raises(ValueError, match="-1 is not a number of bytes"):
        digest.receive(ours, [bytearray(5)], -1)
    with pytest.raises(ValueError):
        digest.receive(-1, [bytearray(5)], 5)
    with pytest.raises(TypeError):
        digest.receive(ours, None, 5)
    with pytest.raises(TypeError):
        digest.receive(ours, [bytearray(5)])
    with pytest.raises(TypeError):
        native.BlockDigest(1)
    assert digest.nbytes == 0
