"""One bit of one copy turns, on disk or in memory, and the object is read in every way that there is.

On disk, and in a folder that gateways share, the bit is turned in the file; in memory through the memfd behind the
gateway's arena. Whoever reads gets the right bytes or an error, never wrong bytes, and a corrupt copy is counted.
"""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import numpy as np
import pytest

from kvgate.chunk.frame import Status
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.client.chunks import SPACE as SMALL
from tests.gateways import ALPHA, RunningGateway, default_config
from tests.s3.clients import s3_client
from tests.wire import send

SPACE = Space.from_manifest(SMALL.manifest() | {"head_dim": 128, "chunk_tokens": 384})
"""Chunks of 6 MiB: more than what is verified on the event loop, and several steps on disk."""

BUCKET = "alpha-bucket"
MiB = 1 << 20
ROUNDS = 2
REFUSED = None
PATIENCE_S = 60.0


class Object:
    """One object that was stored, and where its bytes are in the chunk that it is."""

    def __init__(self, gateway: RunningGateway, number: int) -> None:
        self.gateway = gateway
        self.name = random.Random(number).randbytes(32)
        header = ChunkHeader.encode(SPACE, self.name, bytes(32), 0)
        self.body = header + random.Random(number).randbytes(SPACE.layout.nbytes)
        self.key = str(ChunkKey(SPACE.id, self.name.hex()))
        self.path = f"/{BUCKET}/{self.key}"

    def slice(self, layers: slice, heads: slice) -> bytes:
        kv = np.frombuffer(self.body[DATA_START:], np.uint16).reshape(SPACE.layout.shape)
        return kv[layers, :, heads].tobytes()


Outcome = tuple[bytes | None, bytes]
"""What was read, or REFUSED; and what it must have been."""


# --- the ways to read: each leaves nothing behind but what it has read ------------------------------------------------


def client_of(gateway: RunningGateway, *, local: bool = False) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=PATIENCE_S, local=local)


def get(each: Object) -> Outcome:
    return sent(each, {}), each.body


def get_the_upper_half(each: Object) -> Outcome:
    return sent(each, {"range": f"bytes={3 * MiB}-"}), each.body[3 * MiB :]


def get_a_small_range(each: Object) -> Outcome:
    return sent(each, {"range": f"bytes={2 * MiB - 5}-{3 * MiB + 4}"}), each.body[2 * MiB - 5 : 3 * MiB + 5]


def get_layers(each: Object) -> Outcome:
    return sent(each, {}, "layers=0-3&heads=2-5"), each.slice(slice(0, 4), slice(2, 6))


def sent(each: Object, headers: dict[str, str], query: str = "") -> bytes | None:
    try:
        status, _, body = send(each.gateway, "GET", each.path, headers, query=query)
    except (OSError, http.client.HTTPException):  # cut
        return REFUSED
    return body if status in (200, 206) else REFUSED


def read_whole(each: Object) -> Outcome:
    with client_of(each.gateway) as client:
        (chunk,) = client.read_chunks(BUCKET, SPACE.id, [each.name])
    return chunk.body if chunk.status == Status.PRESENT else REFUSED, each.body


def read_slice(each: Object) -> Outcome:
    with client_of(each.gateway) as client:
        (chunk,) = client.read_chunks(BUCKET, SPACE.id, [each.name], layers=range(4), heads=range(2, 6))
    return chunk.body if chunk.status == Status.PRESENT else REFUSED, each.slice(slice(0, 4), slice(2, 6))


def by_shared_memory(each: Object) -> Outcome:
    room = bytearray(len(each.body))
    with client_of(each.gateway, local=True) as client:
        client.tenant()
        try:
            client.load(BUCKET, each.key, memoryview(room))
        except GatewayError:
            return REFUSED, each.body
    return bytes(room), each.body


def copy_object(each: Object) -> Outcome:
    s3, target = s3_client(each.gateway), f"copy-of-{each.name.hex()}"
    return made(
        s3, target, lambda: s3.copy_object(Bucket=BUCKET, Key=target, CopySource=f"{BUCKET}/{each.key}")
    ), each.body


def upload_part_copy(each: Object) -> Outcome:
    s3, target = s3_client(each.gateway), f"part-of-{each.name.hex()}"
    span = f"bytes={MiB + 1}-{6 * MiB - 1}"
    where = {"Bucket": BUCKET, "Key": target}

    def make() -> None:
        upload = s3.create_multipart_upload(**where)["UploadId"]
        part = s3.upload_part_copy(
            **where, UploadId=upload, PartNumber=1, CopySource=f"{BUCKET}/{each.key}", CopySourceRange=span
        )["CopyPartResult"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)

    return made(s3, target, make), each.body[MiB + 1 : 6 * MiB]


def change_tags(each: Object) -> Outcome:
    """The body is written anew with them."""
    s3 = s3_client(each.gateway)
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    return made(s3, each.key, lambda: s3.put_object_tagging(Bucket=BUCKET, Key=each.key, Tagging=tags)), each.body


def made(s3: Any, target: str, make: Callable[[], Any]) -> bytes | None:
    """What lies at `target` after `make`, whether or not that has succeeded."""
    with contextlib.suppress(botocore.exceptions.ClientError):
        make()
    try:
        body: bytes = s3.get_object(Bucket=BUCKET, Key=target)["Body"].read()
    except (botocore.exceptions.ClientError, botocore.exceptions.ResponseStreamingError):  # refused, or cut
        return REFUSED
    return body


EVERYWHERE = (0, 6 * MiB + DATA_START)
WAYS: dict[Callable[[Object], Outcome], tuple[int, int]] = {
    get: EVERYWHERE,
    get_the_upper_half: (3 * MiB, EVERYWHERE[1]),
    get_a_small_range: (MiB, 4 * MiB),
    get_layers: (DATA_START, EVERYWHERE[1]),
    read_whole: EVERYWHERE,
    read_slice: (DATA_START + MiB, 5 * MiB),
    by_shared_memory: EVERYWHERE,
    copy_object: EVERYWHERE,
    upload_part_copy: (MiB, 6 * MiB),
    change_tags: EVERYWHERE,
}
"""Every way to read, and the bytes of the object of which it cannot do without one."""


# --- turning bits -----------------------------------------------------------------------------------------------------


def flip_in_a_file(root: Path, each: Object, at: int, bit: int) -> None:
    def found() -> Path | None:
        for path in root.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(DATA_START + 64) == each.body[: DATA_START + 64]:
                        return path
        return None

    path = found()
    assert path is not None
    with path.open("r+b") as file:
        flip_in(file.fileno(), at, bit)


def flip_in_memory(each: Object, at: int, bit: int) -> None:
    """Look for the bytes in the gateway's segments, of which each is a memfd, and turn a bit there."""
    start = min(at, len(each.body) - 48)
    around = each.body[start : max(start, DATA_START) + 48]  # of the header up to the KV: headers of chunks are alike
    assert each.gateway.process is not None
    for link in Path(f"/proc/{each.gateway.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: it was none of the segments
            if os.readlink(link).startswith("/memfd:kvgate"):
                link.chmod(0o600)  # of the file behind it, so that its owner can open it anew for writing
                with link.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                    if (place := memory.find(around)) >= 0:
                        memory[place + at - start] ^= 1 << bit
                        return
    raise AssertionError("the object is not in memory")


def flip_in(fd: int, at: int, bit: int) -> None:
    octet = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([octet ^ 1 << bit]), at)


# --- the test ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a short name: sockets lie in it."""
    made_here = Path(tempfile.mkdtemp(prefix="kvgate-"))
    yield made_here
    shutil.rmtree(made_here)


@pytest.fixture(scope="module")
def stored(folder: Path) -> Iterator[dict[str, list[Object]]]:
    """Objects for every way and place: in memory and below it, on disk alone, and in a shared tier alone."""
    started: list[RunningGateway] = []

    def start(name: str, **below: Any) -> RunningGateway:
        home = folder / name
        home.mkdir()
        config = default_config(home)
        config["listen"]["shm_socket"] = str(home / "shm")
        config["tiers"] = {"host": {"capacity": "512MiB"}, **below}
        started.append(RunningGateway(home, config))
        return started[-1].start()

    numbers = iter(range(1000))

    def put(gateway: RunningGateway) -> list[Object]:
        objects = [Object(gateway, next(numbers)) for _ in range(ROUNDS * len(WAYS))]
        with client_of(gateway) as client:
            client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
            for each in objects:
                client.put(BUCKET, each.key, each.body)
        deadline = time.monotonic() + PATIENCE_S
        while waiting(gateway) and time.monotonic() < deadline:
            time.sleep(0.05)
        return objects

    try:
        private = start("private", disk={"path": str(folder / "disk"), "capacity": "2GiB"})
        shared = start("shared", fs={"path": str(folder / "fs")})
        objects = {"disk": put(private), "fs": put(shared)}
        for gateway in (private, shared):
            gateway.restart()
        yield {**objects, "host": put(private)}
    finally:
        for gateway in started:
            gateway.kill()


def waiting(gateway: RunningGateway) -> float:
    return sum(value for name, value in gateway.metrics().items() if name.startswith("kvgate_demotion_queue_objects"))


@pytest.mark.parametrize("tier", ["host", "disk", "fs"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_bit_that_turns_is_never_read(
    stored: dict[str, list[Object]], folder: Path, way: Callable[[Object], Outcome], tier: str
) -> None:
    counter = f'kvgate_corrupt_copies_total{{tier="{tier}"}}'
    for _ in range(ROUNDS):
        each = stored[tier].pop()
        at, bit = random.randrange(*WAYS[way]), random.randrange(8)
        if tier == "host":
            flip_in_memory(each, at, bit)
        else:
            flip_in_a_file(folder / tier / "objects", each, at, bit)
        before = each.gateway.metrics().get(counter, 0)
        read, expected = way(each)
        where = f"bit {bit} of byte {at}"
        assert read in (REFUSED, expected), f"{where}: wrong bytes were read"
        assert each.gateway.metrics()[counter] == before + 1, f"{where}: no corrupt copy was counted"
        if tier == "host":
            assert read == expected, f"{where}: the disk has a good copy"
        else:
            assert read is REFUSED
            assert send(each.gateway, "GET", each.path)[0] == 404
