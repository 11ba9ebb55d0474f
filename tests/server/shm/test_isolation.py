"""One tenant's memory is nowhere another tenant's process can look."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from array import array
from pathlib import Path

import pytest

from kvgate.client.local import Grant
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from kvgate.http.deadline import Deadline
from kvgate.memory import handoff
from tests.gateways import ALPHA, BETA, RunningGateway

SECRET = b"of alpha alone: " * 4096


def fill_for_both(gateway: RunningGateway) -> None:
    for credential, body in ((ALPHA, SECRET), (BETA, b"of beta" * 9000)):
        with Client(gateway.url, credential.access_key, credential.secret_key) as client:
            client.put("shared-name", "key", body)


def segments_of_gateway(gateway: RunningGateway) -> dict[int, str]:
    """The inodes of the memory that the gateway maps, and their names."""
    assert gateway.process is not None
    found = {}
    for line in Path(f"/proc/{gateway.process.pid}/maps").read_text().splitlines():
        if "/memfd:kvgate" in line:
            found[int(line.split()[4])] = line.split()[5]
    return found


def own_segments() -> set[int]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {int(line.split()[4]) for line in lines if "/memfd:kvgate" in line}


def test_other_tenants_segments_are_not_mapped(start_shm, attach) -> None:
    gateway = start_shm()
    before = own_segments()
    fill_for_both(gateway)
    alpha = attach(gateway)
    of_alpha = own_segments() - before
    beta = attach(gateway, BETA)
    of_beta = own_segments() - before - of_alpha
    assert of_alpha
    assert of_beta
    assert of_alpha | of_beta <= segments_of_gateway(gateway).keys()
    for attachment in (alpha, beta):
        for number in range(1, 40):
            attachment.release([number])
        assert isinstance(attachment.get("shared-name", "key", Deadline(5)), Grant)
    assert own_segments() - before == of_alpha | of_beta
    for mapping in beta._segments.values():
        assert SECRET[:16] not in bytes(mapping.view)


def test_descriptor_for_reading_maps_for_reading_only(start_shm) -> None:
    from kvgate.auth.sigv4 import Credential
    from kvgate.memory.proof import sign_attach

    gateway = start_shm()
    fill_for_both(gateway)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(gateway.config["listen"]["shm_socket"])
        boot_id, nonce = handoff.decode_hello(sock.recv(1000))
        import time

        proof = sign_attach(Credential(ALPHA.access_key, ALPHA.secret_key), boot_id, nonce, write=True, now=time.time())
        sock.send(handoff.encode_attach(1, *proof, write=True))
        frame, ledgers = receive(sock)
        assert handoff.head_of(frame)[0] == handoff.ATTACHED
        frame, fds = receive(sock)
        assert handoff.head_of(frame)[0] == handoff.SEGMENT
        _, nbytes = handoff.decode_segment(frame)
        with contextlib.ExitStack() as stack:
            for fd in [*ledgers, *fds]:
                stack.callback(os.close, fd)
            with pytest.raises(PermissionError):
                mmap.mmap(fds[0], nbytes)
            with pytest.raises(PermissionError):
                mmap.mmap(ledgers[0], mmap.PAGESIZE)
            with pytest.raises(OSError):
                os.ftruncate(fds[0], 0)
            assert SECRET in mmap.mmap(fds[0], nbytes, prot=mmap.PROT_READ)[:]
            assert reopened_by_another_user(fds[0]) in ("refused", "not root")


def reopened_by_another_user(fd: int) -> str:
    """What happens when a process of another user opens a descriptor that it was given anew, for writing."""
    if os.geteuid() != 0:
        return "not root"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            os.write(writer, b"opened")
        except PermissionError:
            os.write(writer, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    answer = os.read(reader, 20).decode()
    os.close(reader)
    return answer


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    frame, control, _, _ = sock.recvmsg(70_000, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for _, _, data in control:
        fds.frombytes(data)
    return frame, list(fds)


def test_memory_that_goes_to_another_tenant_shows_zeros_to_the_first(start_shm, attach) -> None:
    gateway = start_shm(tiers={"host": {"capacity": "64MiB", "segment": "8MiB"}})
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for number in range(6):
            client.put("alpha-bucket", f"key-{number}", SECRET * 100)
    alpha = attach(gateway)
    grant = alpha.get("alpha-bucket", "key-0", Deadline(5))
    assert isinstance(grant, Grant)
    views = grant.views
    grant.release()
    mapped = dict(alpha._segments)
    with Client(gateway.url, BETA.access_key, BETA.secret_key, deadline_s=30) as client:
        for number in range(40):
            client.put("beta-bucket", f"key-{number}", os.urandom(6 << 20))
    alpha.ping(Deadline(5))
    import time

    time.sleep(1)
    alpha.ping(Deadline(5))
    gone = mapped.keys() - alpha._segments.keys()
    assert gone
    for segment_id in gone:
        assert not any(bytes(mapped[segment_id].view))
    assert not grant.holds
    del views


def test_key_of_another_tenant_cannot_be_asked_for(start_shm, attach) -> None:
    gateway = start_shm()
    fill_for_both(gateway)
    beta = attach(gateway, BETA)
    for bucket in ("alpha-bucket", "alpha_shared-name", "_uploads", "", "alpha\0shared-name"):
        with pytest.raises(GatewayError):
            beta.get(bucket, "key", Deadline(5))
    grant = beta.get("shared-name", "key", Deadline(5))
    assert isinstance(grant, Grant)
    assert b"".join(grant.views) == b"of beta" * 9000
