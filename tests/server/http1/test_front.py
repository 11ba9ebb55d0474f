"""A running gateway under clients that are slow, many or gone."""

from __future__ import annotations

import http.client
import importlib.util
import os
import random
import resource
import selectors
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.client.sync import Client
from tests.gateways import ALPHA, RunningGateway, default_config
from tests.wire import send, signed_head

MiB = 1 << 20
BUCKET = "alpha-bucket"
StartGateway = Callable[..., RunningGateway]


def connect(gateway: RunningGateway, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout_s)


def head_of(gateway: RunningGateway, method: str, key: str, nbytes: int | None = None) -> bytes:
    headers = {"host": f"127.0.0.1:{gateway.port}"}
    if nbytes is not None:
        headers["content-length"] = str(nbytes)
    return signed_head(method, f"/{BUCKET}/{key}", headers)


def put(gateway: RunningGateway, key: str, body: bytes) -> None:
    assert send(gateway, "PUT", f"/{BUCKET}/{key}", {"content-length": str(len(body))}, body)[0] == 200


def rss_nbytes(gateway: RunningGateway) -> int:
    assert gateway.process is not None
    pages = int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def ended_after_s(sock: socket.socket, began: float) -> float:
    """When the gateway closes a connection, whatever it says before."""
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


PLANE = importlib.util.find_spec("kvgate.native") is not None

# --- time limits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["plane", "python"])
def hasty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits for nobody long, with the native plane and without."""
    folder = tmp_path_factory.mktemp("hasty")
    config = default_config(folder)
    if request.param == "python":
        config["store"] = {"published": 0}
    config["listen"] |= {"header_timeout": 1, "idle_timeout": 2, "body_timeout": 1, "min_rate": "100KiB"}
    config["listen"]["unix_socket"] = str(folder / "http.sock")
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()


@pytest.mark.parametrize("first", [b"", b"PATCH / HTTP/1.1\r\nx: y\r\n"], ids=["own", "aiohttp"])
def test_a_head_that_never_ends_is_cut(hasty: RunningGateway, first: bytes) -> None:
    with connect(hasty) as sock:
        began = time.monotonic()
        sock.sendall(first or b"GET / HTTP/1.1\r\n")
        gone = threading.Event()

        def trickle() -> None:
            while not gone.wait(0.2):
                try:
                    sock.send(b"x")
                except OSError:
                    return

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            assert 0.8 < ended_after_s(sock, began) < 5
        finally:
            gone.set()
            trickling.join()


def test_an_idle_connection_is_closed_and_counted(hasty: RunningGateway) -> None:
    name = 'kvgate_late_connections_total{what="request"}'
    before = hasty.metrics().get(name, 0)
    with connect(hasty) as sock:
        began = time.monotonic()
        assert 1.5 < ended_after_s(sock, began) < 6
    assert hasty.metrics()[name] == before + 1


@pytest.mark.parametrize("nbytes", [10_000, 8 * MiB], ids=["on the loop", "by a mover"])
@pytest.mark.parametrize("crawls", [False, True])
def test_a_body_that_stops_or_crawls_is_cut_and_leaves_nothing(
    hasty: RunningGateway, nbytes: int, crawls: bool
) -> None:
    used = hasty.metrics()['kvgate_tier_used_bytes{tier="host"}']
    with connect(hasty) as sock:
        began = time.monotonic()
        sock.sendall(head_of(hasty, "PUT", "never", nbytes) + b"x" * 100)
        answer = b""
        sock.settimeout(0.3)
        while time.monotonic() - began < 10:
            try:
                if crawls:
                    sock.send(b"x")
                piece = sock.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            answer += piece
            if not piece:
                break
        assert 0.8 < time.monotonic() - began < 8
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"IncompleteBody" in answer
    assert send(hasty, "HEAD", f"/{BUCKET}/never")[0] == 404
    assert hasty.metrics()['kvgate_tier_used_bytes{tier="host"}'] == used


def test_a_reader_that_takes_nothing_is_cut_and_its_lease_ends(hasty: RunningGateway) -> None:
    put(hasty, "large", bytes(64 * MiB))
    with connect(hasty) as sock:
        began = time.monotonic()
        sock.sendall(head_of(hasty, "GET", "large"))
        time.sleep(4)
        received = 0
        try:
            while piece := sock.recv(MiB):
                received += len(piece)
        except ConnectionResetError:
            pass
        assert received < 64 * MiB
        assert time.monotonic() - began < 8
    assert send(hasty, "DELETE", f"/{BUCKET}/large")[0] == 204
    deadline = time.monotonic() + 10
    while (left := hasty.metrics()['kvgate_tier_used_bytes{tier="host"}']) >= 64 * MiB:
        assert time.monotonic() < deadline, f"{left:.0f} bytes are still held"
        time.sleep(0.05)


# --- unix sockets -----------------------------------------------------------------------------------------------------


def unix_exchange(path: str, request: bytes) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(request)
        with http.client.HTTPResponse(sock) as answer:
            answer.begin()
            return answer.status, answer.read()


@pytest.mark.parametrize("option", ["", "connection: keep-alive, unusual\r\n"], ids=["own", "aiohttp"])
def test_a_unix_socket_takes_the_same_requests(hasty: RunningGateway, option: str) -> None:
    path = hasty.config["listen"]["unix_socket"]
    put(hasty, "small", b"payload")
    request = signed_head("GET", f"/{BUCKET}/small", {"host": "local"}).replace(
        b"\r\n\r\n", b"\r\n" + option.encode() + b"\r\n"
    )
    assert unix_exchange(path, request) == (200, b"payload")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert unix_exchange(path, f"GET /{BUCKET}/small HTTP/1.1\r\nhost: local\r\n\r\n".encode())[0] == 403


def test_a_unix_socket_of_a_dead_gateway_is_replaced_and_of_a_living_one_is_not(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    path = str(tmp_path / "http.sock")
    first = start_gateway(listen={"unix_socket": path})
    first.kill()
    assert os.path.exists(path)
    first.start()
    with pytest.raises(AssertionError, match=r"listen.unix_socket: somebody listens on .*http.sock"):
        start_gateway(listen={"unix_socket": path})
    assert first.stop() == 0
    assert not os.path.exists(path)


# --- many and much ----------------------------------------------------------------------------------------------------


def test_ten_thousand_idle_connections_cost_little_and_stop_nobody(start_gateway: StartGateway) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 11_000:
        pytest.skip(f"the limit of open files is {hard}; `ulimit -Hn` must be 11000 or more")
    gateway = start_gateway(listen={"max_connections": 10_050, "idle_timeout": 300}, tiers={"host": {"prefault": 0}})
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks: list[socket.socket] = []
    try:
        before = rss_nbytes(gateway)
        for number in range(10_000):  # from more than one address, lest ports run out
            sock = socket.create_connection(("127.0.0.1", gateway.port), 10, (f"127.0.1.{number % 4 + 1}", 0))
            socks.append(sock)
        put(gateway, "small", b"payload")
        began = time.monotonic()
        for _ in range(100):
            assert send(gateway, "GET", f"/{BUCKET}/small")[2] == b"payload"
        assert time.monotonic() - began < 10
        assert rss_nbytes(gateway) - before < 10_000 * 8192
        while gateway.metrics()["kvgate_connections"] > 10_000:  # those of the requests above end in their time
            time.sleep(0.01)
        while len(socks) < 10_050:
            socks.append(connect(gateway))
        with connect(gateway) as one_more:
            answer = one_more.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After" in answer
        assert gateway.metrics()["kvgate_connections"] == 10_050
        assert gateway.metrics()["kvgate_refused_connections_total"] == 1
        for sock in socks[9_000:]:
            sock.close()
        put(gateway, "small", b"other")  # there is room again
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Upload:
    """One PUT that sends as fast as it is let, and reads what it is answered meanwhile."""

    def __init__(self, gateway: RunningGateway, key: str, body: memoryview, selector: selectors.BaseSelector) -> None:
        self.answer = b""
        self.failed = False
        self.done = False
        self._rest = [memoryview(head_of(gateway, "PUT", key, len(body))), body]
        self._selector = selector
        self.sock = connect(gateway)
        self.sock.setblocking(False)
        selector.register(self.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def step(self) -> None:
        try:
            if self._rest:
                count = self.sock.send(self._rest[0][:MiB])
                self._rest[0] = self._rest[0][count:]
                if not self._rest[0]:
                    del self._rest[0]
                if not self._rest:
                    self._selector.modify(self.sock, selectors.EVENT_READ, self)
        except BlockingIOError:
            pass
        except ConnectionError:
            self._rest.clear()
            self._selector.modify(self.sock, selectors.EVENT_READ, self)
        try:
            piece = self.sock.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            self.failed, piece = True, b""
        self.answer += piece
        if not piece or b"\r\n\r\n" in self.answer:
            self.done = True
            self._selector.unregister(self.sock)
            self.sock.close()


def test_five_hundred_uploads_of_32_mib_into_1_gib_neither_kill_nor_stall(start_gateway: StartGateway) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "1GiB"}})
    gateway.stop()
    del gateway.config["tiers"]["disk"]
    gateway.start()
    put(gateway, "small", b"payload")
    selector = selectors.DefaultSelector()
    body = memoryview(bytes(32 * MiB))
    slowest = 0.0
    over = threading.Event()

    def look() -> None:
        nonlocal slowest
        while not over.wait(0.02):
            began = time.monotonic()
            assert send(gateway, "GET", f"/{BUCKET}/small")[0] in (200, 404)  # it may be evicted
            slowest = max(slowest, time.monotonic() - began)

    looking = threading.Thread(target=look)
    uploads = [Upload(gateway, f"upload-{number}", body, selector) for number in range(500)]
    looking.start()
    try:
        deadline = time.monotonic() + 120
        most = 0
        while not all(upload.done for upload in uploads):
            assert time.monotonic() < deadline
            for key, _ in selector.select(1):
                key.data.step()
            most = max(most, rss_nbytes(gateway))
    finally:
        over.set()
        looking.join()
    statuses = [int(upload.answer.split()[1]) for upload in uploads if not upload.failed]
    assert set(statuses) == {200, 503}, "some fit, and the others were told to slow down"
    assert len(statuses) > 450, "an early answer is read before the connection ends"
    assert statuses.count(200) >= 30
    assert most < 1024 * MiB + 300 * MiB
    assert slowest < 5
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        assert {entry.key for entry in client.list(BUCKET)} - {"small"} == {
            f"upload-{number}" for number, upload in enumerate(uploads) if b" 200 " in upload.answer[:16]
        }


def test_bodies_that_are_read_into_buffers_are_bounded_over_all_requests(start_gateway: StartGateway) -> None:
    gateway = start_gateway(listen={"buffered_bodies": "1MiB"})
    headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(700 << 10)}
    with connect(gateway) as first:
        first.sendall(signed_head("POST", "/_kv/v1/match", headers) + b"x")
        time.sleep(0.2)
        status, _, body = send(gateway, "POST", "/_kv/v1/match", {"content-length": "400000"}, b"x" * 400_000)
        assert (status, b"SlowDown" in body) == (503, True)
        assert send(gateway, "POST", "/_kv/v1/match", {"content-length": "2"}, b"{}")[0] == 400
    deadline = time.monotonic() + 10
    while send(gateway, "POST", "/_kv/v1/match", {"content-length": "400000"}, b"x" * 400_000)[0] == 503:
        assert time.monotonic() < deadline


def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    program = (
        "import resource; from kvgate.server.gateway import _raise_open_files as go;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 900)); go(10);"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "900"


def test_pipelined_requests_are_answered_while_another_connection_is_slow(gateway: RunningGateway) -> None:
    put(gateway, "front/one", b"1")
    put(gateway, "front/two", b"2" * (3 * MiB))
    with connect(gateway) as slow, connect(gateway) as sock:
        slow.sendall(head_of(gateway, "PUT", "front/slow", 8 * MiB) + bytes(4 * MiB))
        sock.sendall(
            head_of(gateway, "GET", "front/one")
            + head_of(gateway, "GET", "front/two")
            + head_of(gateway, "GET", "front/one")
        )
        answers: list[Any] = []
        reader = sock.makefile("rb")
        for _ in range(3):
            status = int(reader.readline().split()[1])
            nbytes = 0
            while line := reader.readline().strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    nbytes = int(value)
            answers.append((status, reader.read(nbytes)))
        assert answers == [(200, b"1"), (200, b"2" * (3 * MiB)), (200, b"1")]
        slow.sendall(bytes(4 * MiB))
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(not PLANE, reason="the native extension was not built")
def test_hot_objects_are_answered_by_the_plane_as_by_python(gateway: RunningGateway) -> None:
    body = random.Random(1).randbytes(3 * MiB)
    put(gateway, "front/hot", body)
    before = gateway.metrics()["kvgate_plane_requests_total"]
    with connect(gateway) as sock:
        answers = []
        for method in ("GET", "GET", "HEAD", "GET"):
            sock.sendall(head_of(gateway, method, "front/hot"))
            with http.client.HTTPResponse(sock, method=method) as answer:
                answer.begin()
                content = answer.read()
            changing = {"x-amz-request-id", "Date"}
            answers.append(
                (method, answer.status, content, [row for row in answer.getheaders() if row[0] not in changing])
            )
        assert answers[0] == answers[1] == answers[3]
        assert answers[0][2] == body
        assert answers[2][3] == answers[0][3]
    assert gateway.metrics()["kvgate_plane_requests_total"] == before + 3


@pytest.mark.skipif(not PLANE, reason="the native extension was not built")
def test_a_connection_changes_between_plane_and_python_as_its_requests_do(gateway: RunningGateway) -> None:
    with connect(gateway) as sock:
        for version in range(20):
            body = bytes([version]) * (1000 + version)
            sock.sendall(head_of(gateway, "PUT", "front/turns", len(body)) + body)
            for method in ("PUT", "GET", "HEAD", "GET", "GET"):
                if method != "PUT":
                    sock.sendall(head_of(gateway, method, "front/turns"))
                with http.client.HTTPResponse(sock, method=method) as answer:
                    answer.begin()
                    assert answer.status == 200
                    assert answer.read() == (body if method == "GET" else b"")
        for method, status in (("DELETE", 204), ("GET", 404)):
            sock.sendall(head_of(gateway, method, "front/turns"))
            with http.client.HTTPResponse(sock) as answer:
                answer.begin()
                assert answer.status == status
                answer.read()
