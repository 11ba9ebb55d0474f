"""The asyncio client against peers that misbehave: the same deadlines and errors as the blocking one."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgpack
import pytest

from kvgate.client.aio import AsyncClient
from kvgate.errors import DeadlineExceeded, GatewayError, GatewayUnavailable, InvalidArgument
from tests.client.peer import Peer, Server, always, checksum_header, ends_within

BODY = os.urandom(3 << 20)


@pytest.fixture
async def aclient_of():
    clients: list[AsyncClient] = []

    def make(server: Server, **options: Any) -> AsyncClient:
        clients.append(AsyncClient(f"http://127.0.0.1:{server.port}", "AKIDEXAMPLE", "not-a-real-secret", **options))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_peer_that_never_answers_costs_the_deadline(serve, aclient_of) -> None:
    server = serve(lambda peer: peer.stopped.wait())
    with ends_within(0.3, 0.7), pytest.raises(DeadlineExceeded):
        await aclient_of(server).tenant(deadline_s=0.3)


async def test_trickling_peer_cannot_stretch_the_deadline(serve, aclient_of) -> None:
    def trickle(peer: Peer) -> None:
        peer.request()
        peer.respond(b"", nbytes=100_000)
        while not peer.stopped.wait(0.05):
            peer.sock.sendall(b"x")

    with ends_within(0.5, 0.9), pytest.raises(DeadlineExceeded):
        await aclient_of(serve(trickle)).get("bucket", "key", deadline_s=0.5)


async def test_peer_that_does_not_read_an_upload_costs_the_deadline(serve, aclient_of) -> None:
    server = serve(lambda peer: peer.stopped.wait())
    with ends_within(0.3, 0.9), pytest.raises(DeadlineExceeded):
        await aclient_of(server).put("bucket", "key", [bytes(64 << 20)], deadline_s=0.3)


async def test_absent_gateway_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with AsyncClient(f"http://127.0.0.1:{port}", "a", "b") as client:
        with pytest.raises(GatewayUnavailable):
            await client.tenant()


async def test_closed_client_is_unavailable() -> None:
    client = AsyncClient("http://127.0.0.1:1", "a", "b")
    await client.close()
    with pytest.raises(GatewayUnavailable, match="closed"):
        await client.tenant()


async def test_body_that_breaks_off_is_unavailable(serve, aclient_of) -> None:
    def break_off(peer: Peer) -> None:
        peer.request()
        peer.respond(BODY, checksum_header(BODY), nbytes=len(BODY) + 1)

    with pytest.raises(GatewayUnavailable):
        await aclient_of(serve(break_off)).get("bucket", "key")


async def test_get_into_a_buffer_fills_it_and_verifies(serve, aclient_of) -> None:
    server = serve(always(BODY, checksum_header(BODY)))
    client, buffer = aclient_of(server), bytearray(len(BODY) + 100)
    for _ in range(3):
        got = await client.get("bucket", "key", into=memoryview(buffer))
        assert (got.body, got.nbytes, got.verified, buffer[: got.nbytes]) == (None, len(BODY), True, BODY)
    assert server.connections == 1


async def test_wrong_checksum_is_an_error(serve, aclient_of) -> None:
    with pytest.raises(GatewayError) as raised:
        await aclient_of(serve(always(BODY, checksum_header(b"other")))).get("bucket", "key")
    assert raised.value.code == "BadDigest"


async def test_body_longer_than_the_buffer_is_an_error(serve, aclient_of) -> None:
    with pytest.raises(GatewayError) as raised:
        await aclient_of(serve(always(BODY))).get("bucket", "key", into=memoryview(bytearray(10)))
    assert raised.value.code == "BufferTooSmall"


async def test_stale_connection_is_replaced_for_a_repeatable_call(serve, aclient_of) -> None:
    bodies = []

    def once(peer: Peer) -> None:
        for _ in range(2):
            head, body = peer.request()
            if not head:
                return
            bodies.append(body)
            if len(bodies) % 2:
                peer.respond(b"", 'etag: "e"')
            else:
                return  # the connection ends instead of an answer

    server = serve(once)
    client = aclient_of(server)
    for _ in range(2):
        assert await client.put("bucket", "key", [b"one", b"two"]) == "e"
    assert bodies == [b"onetwo"] * 3
    assert server.connections == 2


async def test_stale_connection_is_replaced_for_a_match(serve, aclient_of) -> None:
    answer = msgpack.packb({"matched": 0, "lease": None, "expires_s": 0, "tiers": [], "ranks": [], "nbytes": []})

    def once(peer: Peer) -> None:
        if peer.request()[0]:
            peer.respond(answer, "content-type: application/msgpack")
            peer.request()

    server = serve(once)
    client = aclient_of(server)
    for _ in range(2):
        assert (await client.match("bucket", "00" * 32, [bytes(32)])).matched == 0
    assert server.connections == 2


async def test_stale_connection_fails_a_call_that_must_not_be_repeated(serve, aclient_of) -> None:
    heads = []

    def once(peer: Peer) -> None:
        heads.append(peer.request()[0])
        peer.respond(b"", 'etag: "e"')
        heads.append(peer.request()[0])

    server = serve(once)
    client = aclient_of(server)
    await client.put("bucket", "key", [b"body"])
    with pytest.raises(GatewayUnavailable):
        await client.put("bucket", "key", [b"body"], if_none_match=True)
    assert (server.connections, len(heads)) == (1, 2)


async def test_refusal_during_an_upload_is_told(serve, aclient_of) -> None:
    def refuse(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.respond(b"<Error><Code>SlowDown</Code><Message>later</Message></Error>", status="503 Slow Down")
        peer.stopped.wait()

    with pytest.raises(GatewayError) as raised:
        await aclient_of(serve(refuse)).put("bucket", "key", [bytes(64 << 20)])
    assert (raised.value.status, raised.value.code) == (503, "SlowDown")


async def test_views_are_sent_in_order_with_their_checksum(serve, aclient_of) -> None:
    received: list[tuple[bytes, bytes]] = []

    def keep(peer: Peer) -> None:
        while (request := peer.request())[0]:
            received.append(request)
            peer.respond(b"", 'etag: "e"')

    views = [memoryview(BODY)[:5], b"", memoryview(BODY)[5:], *[b"ab", bytearray(b"cd")] * 200]
    await aclient_of(serve(keep)).put("bucket", "a key/ü", views, metadata={"Model": "m"})
    head, body = received[0]
    assert body == BODY + b"abcd" * 200
    assert head.startswith(b"PUT /bucket/a%20key/%C3%BC HTTP/1.1\r\n")
    assert checksum_header(body).encode() in head


async def test_wrong_arguments_are_told(serve, aclient_of) -> None:
    client = aclient_of(serve(always(b"")))
    with pytest.raises(InvalidArgument):
        await client.put("bucket", "key", [b""], metadata={"a": "b\r\nx-evil: 1"})
    with pytest.raises(InvalidArgument):
        await client.get("bucket", "key", into=memoryview(b"read-only"))


async def test_proxy_environment_is_ignored(serve, aclient_of, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await aclient_of(serve(always(BODY))).get("bucket", "key")).body == BODY


async def test_secret_is_not_shown(serve, aclient_of) -> None:
    client = aclient_of(serve(always(b"")))
    assert "not-a-real-secret" not in repr(client) + repr(vars(client))
