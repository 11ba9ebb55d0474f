"""The blocking client against peers that misbehave: every call ends in time, with the right error."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme

from kvgate.client.sync import Client
from kvgate.errors import DeadlineExceeded, GatewayError, GatewayUnavailable, InvalidArgument, InvalidKey
from tests.client.peer import always, checksum_header, ends_within

BODY = os.urandom(3 << 20)


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_peer_that_never_answers_costs_the_deadline(serve, client_of) -> None:
    server = serve(lambda peer: peer.stopped.wait())
    with ends_within(0.3, 0.7), pytest.raises(DeadlineExceeded):
        client_of(server).tenant(deadline_s=0.3)


def test_peer_that_accepts_but_has_no_room_costs_the_deadline(client_of) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with (
            socket.create_connection(address),
            Client(f"http://127.0.0.1:{address[1]}", "a", "b") as client,
            ends_within(0.3, 0.7),
            pytest.raises(DeadlineExceeded),
        ):
            client.tenant(deadline_s=0.3)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"])
def test_trickling_peer_cannot_stretch_the_deadline(serve, client_of, head) -> None:
    def trickle(peer) -> None:
        peer.request()
        peer.sock.sendall(head)
        while not peer.stopped.wait(0.05):
            peer.sock.sendall(b"x")

    server = serve(trickle)
    with ends_within(0.5, 0.9), pytest.raises(DeadlineExceeded):
        client_of(server).get("bucket", "key", deadline_s=0.5)


def test_endless_continue_responses_cannot_stretch_the_deadline(serve, client_of) -> None:
    def go_on(peer) -> None:
        peer.request()
        while not peer.stopped.is_set():
            peer.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    with ends_within(0.3, 0.9), pytest.raises(DeadlineExceeded):
        client_of(serve(go_on)).get("bucket", "key", deadline_s=0.3)


def test_peer_that_does_not_read_an_upload_costs_the_deadline(serve, client_of) -> None:
    server = serve(lambda peer: peer.stopped.wait())
    with ends_within(0.3, 0.8), pytest.raises(DeadlineExceeded):
        client_of(server).put("bucket", "key", [bytes(64 << 20)], deadline_s=0.3)


def test_waiting_for_a_free_connection_counts(serve, client_of) -> None:
    client = client_of(serve(lambda peer: peer.stopped.wait()), max_connections=1)

    def hold() -> None:
        with pytest.raises(DeadlineExceeded):
            client.tenant(deadline_s=1.0)

    holder = threading.Thread(target=hold)
    holder.start()
    time.sleep(0.1)
    with ends_within(0.2, 0.5), pytest.raises(DeadlineExceeded):
        client.tenant(deadline_s=0.2)
    holder.join()


def test_host_name_that_does_not_resolve_in_time_costs_the_deadline(monkeypatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait()
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with Client("http://gateway.invalid", "a", "b") as client:
        for _ in range(3):
            with ends_within(0.1, 0.4), pytest.raises(DeadlineExceeded):
                client.tenant(deadline_s=0.1)
        assert sum(thread.name == "kvgate-resolver" for thread in threading.enumerate()) == 1
        released.set()


def test_deadline_that_has_passed_already_sends_nothing(serve, client_of) -> None:
    server = serve(always(b""))
    with pytest.raises(DeadlineExceeded):
        client_of(server).tenant(deadline_s=0)
    assert server.connections == 0


# --- a gateway that goes away -----------------------------------------------------------------------------------------


def test_absent_gateway_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "a", "b") as client, pytest.raises(GatewayUnavailable, match="refused"):
        client.tenant()


def test_unknown_host_is_unavailable() -> None:
    with Client("http://gateway.invalid:9000", "a", "b") as client, pytest.raises(GatewayUnavailable):
        client.tenant()


def test_body_that_breaks_off_is_unavailable(serve, client_of) -> None:
    def break_off(peer) -> None:
        peer.request()
        peer.respond(BODY, checksum_header(BODY), nbytes=len(BODY) + 1)

    client = client_of(serve(break_off))
    with pytest.raises(GatewayUnavailable, match="1 bytes before the end"):
        client.get("bucket", "key")
    with pytest.raises(GatewayUnavailable):
        client.get("bucket", "key", into=memoryview(bytearray(len(BODY) + 10)))


def test_reset_is_unavailable(serve, client_of) -> None:
    def reset(peer) -> None:
        peer.request()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with pytest.raises(GatewayUnavailable):
        client_of(serve(reset)).tenant()


@pytest.mark.parametrize("answer", [b"\x00\x01\x02\x03\r\n\r\n", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 999999 \r\n\r\n"])
def test_peer_that_speaks_no_http_is_unavailable(serve, client_of, answer) -> None:
    def babble(peer) -> None:
        peer.request()
        peer.sock.sendall(answer)

    with pytest.raises(GatewayUnavailable):
        client_of(serve(babble)).tenant()


def test_closed_client_is_unavailable(serve, client_of) -> None:
    client = client_of(serve(always(b"")))
    client.close()
    with pytest.raises(GatewayUnavailable, match="closed"):
        client.tenant()


# --- kept-alive connections -------------------------------------------------------------------------------------------


def test_connections_are_kept(serve, client_of) -> None:
    server = serve(always(BODY, checksum_header(BODY)))
    client = client_of(server)
    for _ in range(5):
        assert client.get("bucket", "key").body == BODY
    assert server.connections == 1


def answer_once(peer) -> None:
    """Promise to keep the connection, and end it with the next request."""
    if peer.request()[0]:
        peer.respond(b"", 'etag: "e"')
        peer.request()


def test_stale_connection_is_replaced_for_a_repeatable_call(serve, client_of) -> None:
    server = serve(answer_once)
    client = client_of(server)
    for _ in range(3):
        assert client.put("bucket", "key", [b"body"]) == "e"
    assert server.connections == 3


def test_stale_connection_fails_a_call_that_must_not_be_repeated(serve, client_of) -> None:
    server = serve(answer_once)
    client = client_of(server)
    client.put("bucket", "key", [b"body"])
    with pytest.raises(GatewayUnavailable):
        client.put("bucket", "key", [b"body"], if_none_match=True)
    assert server.connections == 1


def test_connection_that_was_ended_while_idle_is_not_used(serve, client_of) -> None:
    def end(peer) -> None:
        peer.request()
        peer.respond(b"", 'etag: "e"')

    server = serve(end)
    client = client_of(server)
    client.put("bucket", "key", [b"body"])
    time.sleep(0.1)
    client.put("bucket", "key", [b"body"], if_none_match=True)
    assert server.connections == 2


def test_stray_bytes_after_an_answer_are_not_the_next_answer(serve, client_of) -> None:
    def overshoot(peer) -> None:
        while peer.request()[0]:
            peer.respond(BODY + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", nbytes=len(BODY))

    server = serve(overshoot)
    client = client_of(server)
    for _ in range(3):
        assert client.get("bucket", "key").body == BODY
    assert server.connections == 3


def test_connection_is_dropped_after_an_unfinished_answer(serve, client_of) -> None:
    server = serve(always(BODY))
    client = client_of(server)
    for _ in range(2):
        with pytest.raises(GatewayError) as raised:
            client.get("bucket", "key", into=memoryview(bytearray(10)))
        assert raised.value.code == "BufferTooSmall"
    assert server.connections == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_child_process_does_not_share_connections(serve, client_of) -> None:
    server = serve(always(b"", 'etag: "e"'))
    client = client_of(server)
    client.put("bucket", "key", [b"body"])
    child = os.fork()
    if child == 0:
        os._exit(0 if client.put("bucket", "key", [b"body"]) == "e" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert server.connections == 2


def test_threads_share_the_client(serve, client_of) -> None:
    server = serve(always(BODY, checksum_header(BODY)))
    client = client_of(server, max_connections=3)
    right = []

    def get() -> None:
        right.extend(client.get("bucket", "key").body == BODY for _ in range(5))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40
    assert server.connections <= 3


# --- what comes back --------------------------------------------------------------------------------------------------


def test_get_into_a_buffer_fills_it_and_verifies(serve, client_of) -> None:
    buffer = bytearray(len(BODY) + 100)
    got = client_of(serve(always(BODY, checksum_header(BODY), 'etag: "e"', "x-amz-meta-model: m"))).get(
        "bucket", "key", into=memoryview(buffer)
    )
    assert (got.body, got.nbytes, got.verified, buffer[: got.nbytes]) == (None, len(BODY), True, BODY)
    assert (got.info.etag, got.info.metadata, got.info.crc64nvme) == ("e", {"model": "m"}, crc64nvme(BODY))


def test_wrong_checksum_is_an_error(serve, client_of) -> None:
    client = client_of(serve(always(BODY, checksum_header(BODY[1:]))))
    with pytest.raises(GatewayError) as raised:
        client.get("bucket", "key")
    assert raised.value.code == "BadDigest"


def test_body_without_checksum_is_not_verified(serve, client_of) -> None:
    assert not client_of(serve(always(BODY))).get("bucket", "key").verified


def test_chunked_body_of_an_object_is_refused(serve, client_of) -> None:
    def chunked(peer) -> None:
        peer.request()
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    with pytest.raises(GatewayError, match="length"):
        client_of(serve(chunked)).get("bucket", "key")


def test_length_beyond_memory_is_not_allocated(serve, client_of) -> None:
    def lie(peer) -> None:
        peer.request()
        peer.respond(b"x", nbytes=10**18)

    with pytest.raises(GatewayUnavailable):
        client_of(serve(lie)).get("bucket", "key")


def test_range_is_checked(serve, client_of) -> None:
    server = serve(always(b"cdef", "content-range: bytes 2-5/10", status="206 Partial Content"))
    client = client_of(server)
    got = client.get("bucket", "key", start=2, stop=6)
    assert (got.body, got.nbytes, got.info.nbytes, got.verified) == (b"cdef", 4, 10, False)
    for start, stop in [(1, 5), (2, 5), (2, None), (None, None)]:
        with pytest.raises(GatewayError, match="range"):
            client.get("bucket", "key", start=start, stop=stop)
    with pytest.raises(InvalidArgument):
        client.get("bucket", "key", start=3, stop=3)


def test_answer_without_end_is_refused(serve, client_of) -> None:
    def flood(peer) -> None:
        peer.request()
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        while not peer.stopped.is_set():
            peer.sock.sendall(bytes(1 << 20))

    with pytest.raises(GatewayError, match="longer than"):
        client_of(serve(flood)).tenant()


def test_refusal_that_comes_during_an_upload_is_told(serve, client_of) -> None:
    def refuse(peer) -> None:
        peer.sock.recv(1000)
        peer.respond(b"<Error><Code>SlowDown</Code><Message>later</Message></Error>", status="503 Slow Down")
        peer.stopped.wait()

    client = client_of(serve(refuse))
    with pytest.raises(GatewayError, match="later") as raised:
        client.put("bucket", "key", [bytes(64 << 20)])
    assert (raised.value.status, raised.value.code) == (503, "SlowDown")


def test_refusal_of_a_gateway_that_hangs_up_during_an_upload_is_told(serve, client_of) -> None:
    def refuse(peer) -> None:
        peer.sock.recv(1000)
        peer.respond(b"<Error><Code>SlowDown</Code><Message>later</Message></Error>", status="503 Slow Down")

    with pytest.raises(GatewayError) as raised:
        client_of(serve(refuse)).put("bucket", "key", [bytes(64 << 20)])
    assert (raised.value.status, raised.value.code) == (503, "SlowDown")


def test_proxy_page_is_told_by_its_status(serve, client_of) -> None:
    page = always(b"<html><body>Bad gateway", "content-type: text/html", status="502 Bad Gateway")
    with pytest.raises(GatewayError) as raised:
        client_of(serve(page)).tenant()
    assert (raised.value.status, raised.value.code) == (502, "BadGateway")


def test_redirect_is_not_followed(serve, client_of) -> None:
    with pytest.raises(GatewayError) as raised:
        client_of(serve(always(b"", "location: http://127.0.0.1:1/", status="307 Temporary Redirect"))).tenant()
    assert raised.value.status == 307


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_views_are_sent_in_order_with_their_checksum(serve, client_of) -> None:
    received: list[tuple[bytes, bytes]] = []

    def keep(peer) -> None:
        while (request := peer.request())[0]:
            received.append(request)
            peer.respond(b"", 'etag: "e"')

    client = client_of(serve(keep))
    views = [memoryview(BODY)[:5], memoryview(b""), memoryview(BODY)[5:].cast("B")] + [b"ab", bytearray(b"cd")] * 200
    client.put("bucket", "a key/ü", views, metadata={"Model": "m"}, content_type="text/plain", if_none_match=True)
    head, body = received[0]
    assert body == BODY + b"abcd" * 200
    assert head.startswith(b"PUT /bucket/a%20key/%C3%BC HTTP/1.1\r\n")
    for line in [checksum_header(body), "if-none-match: *", "x-amz-meta-model: m", "content-type: text/plain"]:
        assert line.encode() in head


def test_arguments_that_would_break_the_request_are_refused(serve, client_of) -> None:
    client = client_of(serve(always(b"")))
    with pytest.raises(InvalidArgument):
        client.put("bucket", "key", [b""], metadata={"a": "b\r\nx-evil: 1"})
    with pytest.raises(InvalidArgument):
        client.put("bucket", "key", [b""], metadata={"a b": "c"})
    with pytest.raises(InvalidArgument):
        client.put("bucket", "key", [memoryview(bytes(16))[::2]])
    with pytest.raises(InvalidArgument):
        client.get("bucket", "key", into=memoryview(b"read-only"))
    with pytest.raises(InvalidKey):
        client.get("bucket", "a/../b")
    with pytest.raises(InvalidArgument):
        client.match("bucket", "00" * 32, [b"short"])


def test_proxy_environment_is_ignored(serve, client_of, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert client_of(serve(always(BODY))).get("bucket", "key").body == BODY


def test_secret_is_not_shown(client_of, serve) -> None:
    client = client_of(serve(always(b"")))
    assert "not-a-real-secret" not in repr(client) + repr(vars(client))


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    pem = folder / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", pem, "-out", folder / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + (folder / "certificate.pem").read_bytes())
    return pem


def test_tls_carries_large_bodies_both_ways(serve, certificate) -> None:
    received = []

    def behave(peer) -> None:
        while (request := peer.request())[0]:
            received.append(request[1])
            peer.respond(BODY, checksum_header(BODY))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(behave, tls=context)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with Client(f"https://localhost:{server.port}", "a", "b", tls=trusting) as client:
        client.put("bucket", "key", [BODY, BODY])
        assert client.get("bucket", "key").body == BODY
    assert received[0] == BODY + BODY
    with (
        Client(f"https://localhost:{server.port}", "a", "b") as client,
        pytest.raises(GatewayUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.put("bucket", "key", [BODY])


def test_tls_with_a_silent_peer_costs_the_deadline(serve) -> None:
    server = serve(lambda peer: peer.stopped.wait())
    client = Client(f"https://127.0.0.1:{server.port}", "a", "b")
    with client, ends_within(0.3, 0.7), pytest.raises(DeadlineExceeded):
        client.tenant(deadline_s=0.3)
