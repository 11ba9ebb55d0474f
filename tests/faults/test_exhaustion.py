"""Disk, memory and descriptors run out: the gateway serves what it can, refuses the rest, and recovers by itself.

What was acknowledged with `ack: disk` is never lost. The limits of the running process are moved with `prlimit`, and
the small disk is a tmpfs where the test may mount one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateways import RunningGateway
from tests.wire import send, signed_head

PATH = "/alpha-bucket/"
RECOVERY_S = 5.0
PATIENCE_S = 30.0
MiB = 1 << 20


def put(gateway: RunningGateway, key: str, body: bytes) -> int:
    status, _, answer = send(gateway, "PUT", PATH + key, {"content-length": str(len(body))}, body)
    if status == 503:
        assert b"<Code>SlowDown</Code>" in answer or b"<Code>ServiceUnavailable</Code>" in answer
    assert status in (200, 503), answer
    return status


def get(gateway: RunningGateway, key: str) -> bytes:
    status, _, body = send(gateway, "GET", PATH + key)
    assert status == 200, body
    return body


def recovers(gateway: RunningGateway, works: Callable[[], bool]) -> None:
    """The resource is back: so is the gateway, soon."""
    began = time.monotonic()
    while not works():
        assert time.monotonic() - began < RECOVERY_S
        time.sleep(0.05)


def set_limit(gateway: RunningGateway, which: int, soft: int) -> int:
    """Move a soft limit of the running gateway; what it was."""
    assert gateway.process is not None
    before, hard = resource.prlimit(gateway.process.pid, which)
    resource.prlimit(gateway.process.pid, which, (soft, hard))
    return before


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "kvgate-test", folder], check=False, capture_output=True
    ).returncode:
        pytest.skip("this needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing_that_it_did(
    start_gateway: Callable[..., RunningGateway], small_disk: Path
) -> None:
    """The file system is smaller than the tier was told."""
    gateway = start_gateway(
        tiers={
            "host": {"capacity": "64MiB", "prefault": "0"},
            "disk": {"path": str(small_disk / "disk"), "capacity": "2GiB"},
        },
        store={"ack": "disk"},
    )
    kept: dict[str, bytes] = {}

    def fill(first: int, count: int) -> list[int]:
        statuses = []
        for number in range(first, first + count):
            body = os.urandom(MiB)
            statuses.append(put(gateway, f"k{number}", body))
            if statuses[-1] == 200:
                kept[f"k{number}"] = body
        return statuses

    statuses = fill(0, 40)
    assert 15 < statuses.count(200) < 25
    assert statuses[-1] == 503
    for key, body in kept.items():
        assert get(gateway, key) == body
    assert send(gateway, "GET", PATH + "k39")[0] == 404

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    recovers(gateway, lambda: fill(100, 1) == [200])
    gateway.kill()
    gateway.start()
    for key, body in kept.items():
        assert get(gateway, key) == body


def test_a_disk_that_takes_no_more_bytes_refuses_and_recovers(start_gateway: Callable[..., RunningGateway]) -> None:
    """EFBIG, which the disk tier takes for a full disk, needs no right to mount: files end at 256 KiB."""
    gateway = start_gateway(store={"ack": "disk"}, tiers={"host": {"capacity": "64MiB", "prefault": "0"}})
    kept = {f"before{number}": os.urandom(MiB) for number in range(5)}
    for key, body in kept.items():
        assert put(gateway, key, body) == 200
    before = set_limit(gateway, resource.RLIMIT_FSIZE, 256 << 10)
    assert put(gateway, "refused", os.urandom(MiB)) == 503
    assert send(gateway, "GET", PATH + "refused")[0] == 404
    small = os.urandom(1000)
    if put(gateway, "small", small) == 200:  # its file is short enough, the log of the index may not be
        kept["small"] = small
    for key, body in kept.items():
        assert get(gateway, key) == body
    set_limit(gateway, resource.RLIMIT_FSIZE, before)
    kept["after"] = os.urandom(MiB)
    recovers(gateway, lambda: put(gateway, "after", kept["after"]) == 200)
    gateway.kill()
    gateway.start()
    for key, body in kept.items():
        assert get(gateway, key) == body


def test_behind_a_full_disk_memory_goes_on(start_gateway: Callable[..., RunningGateway]) -> None:
    """With `ack: memory`, what the disk does not take is served from memory, and is counted."""
    gateway = start_gateway(tiers={"host": {"capacity": "64MiB", "prefault": "0"}})
    set_limit(gateway, resource.RLIMIT_FSIZE, 9 * MiB)  # memory comes in segments of 8 MiB, which are files too
    bodies = {f"k{number}": os.urandom(10 * MiB) for number in range(12)}
    kept = {key: body for key, body in bodies.items() if put(gateway, key, body) == 200}
    assert len(kept) == len(bodies)
    for key in list(kept)[-3:]:
        assert get(gateway, key) == kept[key]
    stranded = [
        number for name, number in gateway.metrics().items() if name.startswith("kvgate_stranded_objects_total")
    ]
    assert sum(stranded) >= 8
    assert gateway.is_ready()


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_that_is_full_of_uploads_refuses_more_and_serves_what_it_holds(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(tiers={"host": {"capacity": "32MiB", "prefault": "0"}}, store={"memory_wait": "200ms"})
    body = os.urandom(MiB)
    assert put(gateway, "small", body) == 200
    uploads = []
    for number in range(12):
        headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(4 * MiB)}
        sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
        sock.sendall(signed_head("PUT", f"{PATH}slow{number}", headers) + bytes(1000))
        uploads.append(sock)
    statuses = [put(gateway, "another", os.urandom(8 * MiB)) for _ in range(3)]
    assert statuses == [503] * 3
    status, _, answer = send(gateway, "GET", PATH + "small")  # from disk it needs a little memory too
    assert (status, answer) == (200, body) or (status == 503 and b"<Code>SlowDown</Code>" in answer)
    assert gateway.is_ready()
    for sock in uploads:
        sock.close()
    recovers(gateway, lambda: put(gateway, "another", os.urandom(8 * MiB)) == 200)


def test_memory_that_the_system_refuses_is_no_end(start_gateway: Callable[..., RunningGateway]) -> None:
    """The gateway may have more memory than there is: RLIMIT_AS stands for a container's limit."""
    gateway = start_gateway(tiers={"host": {"capacity": "256MiB", "prefault": "0", "segment": "16MiB"}})
    body = os.urandom(MiB)
    assert put(gateway, "small", body) == 200
    assert gateway.process is not None
    pages = int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[0])
    before = set_limit(gateway, resource.RLIMIT_AS, pages * resource.getpagesize() + 8 * MiB)
    statuses = {put(gateway, f"large{number}", os.urandom(15 * MiB)) for number in range(3)}
    assert get(gateway, "small") == body
    set_limit(gateway, resource.RLIMIT_AS, before)
    large = os.urandom(15 * MiB)
    recovers(gateway, lambda: put(gateway, "large", large) == 200)
    assert get(gateway, "large") == large
    assert statuses <= {200, 503}


# --- descriptors ------------------------------------------------------------------------------------------------------


def test_without_descriptors_connections_go_on_and_new_ones_wait(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(store={"ack": "disk"}, tiers={"host": {"capacity": "32MiB", "prefault": "0"}})
    kept = {f"k{number}": os.urandom(MiB) for number in range(60)}
    for key, body in kept.items():
        assert put(gateway, key, body) == 200
    assert gateway.process is not None
    with contextlib.ExitStack() as stack:
        established = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=20))
        assert exchange(established, gateway, "GET", "k59") == (200, kept["k59"])
        open_now = len(os.listdir(f"/proc/{gateway.process.pid}/fd"))
        before = set_limit(gateway, resource.RLIMIT_NOFILE, open_now + 3)
        for _ in range(20):  # they take every descriptor that is left, and the rest waits in the backlog
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=20))
        deadline = time.monotonic() + PATIENCE_S
        while "no connection can be accepted" not in gateway.log:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert exchange(established, gateway, "GET", "k59") == (200, kept["k59"])
        status, body = exchange(established, gateway, "GET", "k0")  # on disk, if there is a descriptor for it
        assert (status, body) == (200, kept["k0"]) or status == 503
        status, _ = exchange(established, gateway, "PUT", "new", os.urandom(MiB))
        assert status in (200, 503)
        set_limit(gateway, resource.RLIMIT_NOFILE, before)
        recovers(gateway, lambda: exchange(established, gateway, "GET", "k0") == (200, kept["k0"]))
    recovers(gateway, gateway.is_ready)
    for key, body in kept.items():
        assert get(gateway, key) == body


def exchange(
    sock: socket.socket, gateway: RunningGateway, method: str, key: str, body: bytes = b""
) -> tuple[int, bytes]:
    """One request on a connection that stays open: status and body of the answer."""
    headers = {"host": f"127.0.0.1:{gateway.port}", "content-length": str(len(body))}
    sock.sendall(signed_head(method, PATH + key, headers) + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(65536)
        assert piece, "the connection ended"
        answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    nbytes = int(fields.get(b"content-length", b"0"))
    while len(rest) < nbytes:
        rest += sock.recv(65536)
    return int(head.split()[1]), rest
