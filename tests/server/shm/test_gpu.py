"""Chunks that a gateway keeps in a GPU's memory, in the hands of engines on the same GPU: real processes and sockets.

The GPU's memory is files that every process maps (`tests.kernels.file_device`), so that the bytes do cross processes;
the kernels are those of csrc/, on the CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.client.aio import AsyncClient
from kvgate.client.local import Attachment, DeviceGrant, Gpu, open_gpu
from kvgate.client.sync import Client
from kvgate.errors import GatewayError, GatewayUnavailable, InvalidArgument
from kvgate.http.deadline import Deadline
from kvgate.kernels.device import Copy, Device
from kvgate.kernels.pieces import Extent
from kvgate.memory import handoff
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, BETA, Credential, RunningGateway
from tests.kernels.file_device import FileDevice
from tests.server.shm.engine_process import Engine
from tests.server.shm.gpu_tier import KIND, install

BUCKET = "alpha-bucket"
ROUNDS = 10
"""Of kills; each round stores a prompt of a seed of its own."""

NAME = "a-gpu"
"""Of the tier: before `disk` in the order of the file that the tests write, and so above it."""

GPU = {"kind": KIND, "capacity": "16MiB", "segment": "2MiB"}

StartGpu = Callable[..., RunningGateway]


@pytest.fixture
def start_gpu(start_shm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartGpu]:
    """Start a gateway with a tier on the GPU of the tests. Arguments as for `start_gateway`."""
    for name, value in install(tmp_path).items():
        monkeypatch.setenv(name, value)

    def start(gpu: dict[str, Any] | None = None, **sections: Any) -> RunningGateway:
        return start_shm(tiers={"host": {"capacity": "64MiB"}, NAME: GPU | (gpu or {})}, **sections)

    yield start
    assert not FileDevice(tmp_path / "gpu").broken_rules


@pytest.fixture
def device(tmp_path: Path) -> FileDevice:
    """The GPU, as this process has it."""
    return FileDevice(tmp_path / "gpu")


@pytest.fixture
def gpu(start_gpu: StartGpu, device: FileDevice) -> Iterator[Gpu]:
    gpu = Gpu(device)
    yield gpu
    gpu.close()


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    with contextlib.ExitStack() as stack:

        def start(gateway: RunningGateway, *arguments: object) -> Engine:
            engine = Engine("tests.server.shm.gpu_engine", gateway, gateway.url, *arguments)
            stack.callback(engine.kill)
            return engine

        yield start


def client_of(gateway: RunningGateway, credential: Credential = ALPHA, **options: Any) -> Client:
    return Client(gateway.url, credential.access_key, credential.secret_key, deadline_s=30, **options)


def store_prompt(client: Client, count: int, seed: int = 0, bucket: str = BUCKET) -> list[tuple[bytes, bytes]]:
    prompt = chunks(client.tenant().salt, count, seed)
    client.put(bucket, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    for chunk_hash, body in prompt:
        client.put(bucket, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    return prompt


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wait_for_copies(gateway: RunningGateway, objects: int) -> None:
    """Until so many objects are in the GPU tier: they are written there in the background."""
    name = 'kvgate_tier_objects{tier="a-gpu"}'
    wait_until(lambda: gateway.metrics().get(name, 0) >= objects, f"{objects} objects on the GPU")


class Room:
    """Buffers for chunks, on the GPU and here."""

    def __init__(self, device: Device, prompt: list[tuple[bytes, bytes]]) -> None:
        self.hashes = [chunk_hash for chunk_hash, _ in prompt]
        self.bodies = [body for _, body in prompt]
        self.targets = [device.allocate(len(body)) for body in self.bodies]
        self.buffers = [memoryview(bytearray(len(body))) for body in self.bodies]

    def load(self, client: Client, gpu: Gpu | None, **options: Any) -> Any:
        return client.load_chunks_on_gpu(gpu, BUCKET, SPACE.id, self.hashes, self.targets, self.buffers, **options)

    def check(self, on_gpu: int, leading: int) -> None:
        """That so many leading chunks lie on the GPU, and those behind them here."""
        for index in range(leading):
            body = self.bodies[index]
            where = ctypes.string_at(self.targets[index], len(body)) if index < on_gpu else bytes(self.buffers[index])
            assert where == body


def attached(gateway: RunningGateway, attach: Any, gpu: Gpu, credential: Credential = ALPHA) -> Attachment:
    attachment: Attachment = attach(gateway, credential)
    assert attachment.use_gpu(gpu, Deadline(5))
    return attachment


def grants_of(attachment: Attachment, hashes: list[bytes], bucket: str = BUCKET) -> list[DeviceGrant | int]:
    return attachment.get_chunks_on_gpu(bucket, bytes.fromhex(SPACE.id), hashes, Deadline(5))


def granted(attachment: Attachment, chunk_hash: bytes, bucket: str = BUCKET) -> DeviceGrant:
    (found,) = grants_of(attachment, [chunk_hash], bucket)
    assert isinstance(found, DeviceGrant), f"no grant: {found}"
    return found


def shown(grant: DeviceGrant) -> bytes:
    return b"".join(ctypes.string_at(address, nbytes) for address, nbytes in grant.extents)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_chunks_on_the_gpu_come_from_there_and_the_others_another_way(start_gpu, gpu, device) -> None:
    gateway = start_gpu()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 5)
        wait_for_copies(gateway, 6)
        room = Room(device, prompt)
        loaded = room.load(client, gpu)
        assert (loaded.on_gpu, loaded.leading) == (5, 5)
        room.check(5, 5)
        traffic = client.traffic()
        assert traffic["gpu"] == (5, sum(len(body) for _, body in prompt))
        opened = device.opened
        room.load(client, gpu)
        assert device.opened == opened, "a handle was opened twice"
        missing = [*prompt[:3], (bytes(32), prompt[0][1]), *prompt[3:]]
        loaded = Room(device, missing).load(client, gpu)
        assert (loaded.on_gpu, loaded.leading) == (3, 3)
        assert gateway.metrics()['kvgate_reads_total{tier="a-gpu"}'] == 15
    assert not device.imports, "the client is closed, and nothing is mapped any more"


def test_chunk_that_is_not_on_the_gpu_and_all_behind_it_come_through_shared_memory(start_gpu, gpu, device) -> None:
    gateway = start_gpu(gpu={"write": "never"})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 4)
        room = Room(device, prompt)
        before = client.traffic()["shm"].transfers
        loaded = room.load(client, gpu)
        assert (loaded.on_gpu, loaded.leading) == (0, 4)
        room.check(0, 4)
        assert client.traffic()["shm"].transfers == before + 4
        assert client.traffic()["gpu"].transfers == 0


@pytest.mark.parametrize("why", ["another GPU", "no GPU", "no tier", "no attachment", "handle refused"])
def test_without_a_way_over_the_gpu_chunks_come_as_they_always_did(start_gpu, gpu, start_shm, tmp_path, why) -> None:
    gateway = start_shm() if why == "no tier" else start_gpu()
    mine: Gpu | None = gpu
    if why == "another GPU":
        mine = Gpu(FileDevice(tmp_path / "gpu", uuid=b"another GPU 0123"))
    elif why == "no GPU":
        mine = None
    elif why == "handle refused":
        (tmp_path / "elsewhere").mkdir()
        mine = Gpu(FileDevice(tmp_path / "elsewhere"))
    with client_of(gateway, local=why != "no attachment") as client:
        prompt = store_prompt(client, 3)
        if why != "no tier":
            wait_for_copies(gateway, 4)
        room = Room(FileDevice(tmp_path / "gpu"), prompt)
        for _ in range(3):
            loaded = room.load(client, mine)
            assert (loaded.on_gpu, loaded.leading) == (0, 3)
            room.check(0, 3)
        way = "tcp" if why == "no attachment" else "shm"
        assert client.traffic()[way].transfers >= 9
        assert client.traffic()["gpu"].transfers == 0


async def test_asyncio_client_loads_from_the_gpu_too(start_gpu, gpu, device) -> None:
    gateway = start_gpu()
    with client_of(gateway) as blocking:
        prompt = await asyncio.to_thread(store_prompt, blocking, 4)
    await asyncio.to_thread(wait_for_copies, gateway, 5)
    room = Room(device, prompt)
    client = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20)
    async with client:
        await client.tenant()
        loaded = await client.load_chunks_on_gpu(gpu, BUCKET, SPACE.id, room.hashes, room.targets, room.buffers)
        assert (loaded.on_gpu, loaded.leading) == (4, 4)
        room.check(4, 4)
        loaded = await client.load_chunks_on_gpu(None, BUCKET, SPACE.id, room.hashes, room.targets, room.buffers)
        assert (loaded.on_gpu, loaded.leading) == (0, 4)
        room.check(0, 4)
        assert client.traffic()["gpu"].transfers == 4
        with pytest.raises(InvalidArgument):
            await client.load_chunks_on_gpu(gpu, BUCKET, SPACE.id, room.hashes, room.targets[1:], room.buffers)


def test_byte_that_was_changed_on_the_gpu_is_never_delivered(start_gpu, gpu, device, attach) -> None:
    """CUDA lets whoever maps the memory write there."""
    gateway = start_gpu()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 4)
        wait_for_copies(gateway, 5)
        with granted(attached(gateway, attach, gpu), prompt[2][0]) as grant:
            at = grant.extents[0].address + 77
            ctypes.c_uint8.from_address(at).value ^= 1
        room = Room(device, prompt)
        loaded = room.load(client, gpu)
        assert (loaded.on_gpu, loaded.leading) == (2, 4)
        room.check(2, 4)
        name = 'kvgate_corrupt_copies_total{tier="a-gpu"}'
        wait_until(lambda: gateway.metrics().get(name) == 1, "the gateway drops the copy")
        with granted(attached(gateway, attach, gpu), prompt[3][0]) as grant:
            grant.release(bad=True)
        time.sleep(0.5)
        assert gateway.metrics()[name] == 1, "a copy that is good stays, whatever an engine says"
        assert grants_of(attached(gateway, attach, gpu), [prompt[2][0]]) == [handoff.NOT_IN_MEMORY]
        assert client.get(BUCKET, str(ChunkKey(SPACE.id, prompt[2][0].hex()))).body == prompt[2][1]


def test_chunks_cross_processes_on_a_real_gpu(start_shm: Any) -> None:
    """What `make gpu` shows: CUDA IPC itself, the kernel that verifies, and the driver's word on which GPU it is."""
    gpu = open_gpu()
    if gpu is None:
        pytest.skip("there is no GPU here, or no CuPy")
    gateway = start_shm(tiers={"host": {"capacity": "64MiB"}, NAME: {"kind": "gpu", "capacity": "64MiB"}})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 5)
        wait_for_copies(gateway, 6)
        room = Room(gpu.device, prompt)
        loaded = room.load(client, gpu)
        assert (loaded.on_gpu, loaded.leading) == (5, 5)
        here = gpu.device.allocate_host(max(map(len, room.bodies)))
        for target, body in zip(room.targets, room.bodies, strict=True):
            gpu.device.copy([Copy(here, target, len(body))], 0)
            gpu.device.record(0).wait()
            assert ctypes.string_at(here, len(body)) == body
        gpu.device.free_host(here)
    gpu.close()


# --- grants -----------------------------------------------------------------------------------------------------------


def test_grant_shows_the_bytes_where_they_lie_until_it_is_released(start_gpu, gpu, device, attach) -> None:
    gateway = start_gpu()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 2)
    wait_for_copies(gateway, 3)
    attachment = attached(gateway, attach, gpu)
    with granted(attachment, prompt[0][0]) as grant:
        assert all(isinstance(extent, Extent) for extent in grant.extents)
        assert shown(grant) == prompt[0][1]
        assert b"".join(ctypes.string_at(*extent) for extent in grant.kv) == prompt[0][1][DATA_START:]
        assert grant.holds
        assert gateway.metrics()["kvgate_shm_grants"] == 1
    assert not grant.holds
    grant.release()
    wait_until(lambda: gateway.metrics()["kvgate_shm_grants"] == 0, "the grant ends")
    assert grants_of(attachment, [bytes(32)]) == [handoff.ABSENT]
    assert attachment.use_gpu(gpu, Deadline(5))
    assert not attachment.use_gpu(Gpu(device), Deadline(5)), "a connection has one GPU"


def test_chunk_is_kept_on_the_gpu_while_it_is_granted(start_gpu, gpu, attach) -> None:
    gateway = start_gpu(gpu={"capacity": "2MiB", "segment": "2MiB"})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 3)
        wait_for_copies(gateway, 4)
        attachment = attached(gateway, attach, gpu)
        with granted(attachment, prompt[0][0]) as grant:
            for seed in range(1, 7):  # several times what fits there
                store_prompt(client, 12, seed)
            name = 'kvgate_evicted_objects_total{tier="a-gpu"}'
            wait_until(lambda: gateway.metrics().get(name, 0) > 10, "others are evicted")
            assert grant.holds
            assert shown(grant) == prompt[0][1]
            granted(attachment, prompt[0][0]).release()
            assert grants_of(attachment, [prompt[1][0]]) == [handoff.NOT_IN_MEMORY]


def test_grant_ends_at_its_deadline_and_its_copy_is_void(start_gpu, gpu, attach) -> None:
    gateway = start_gpu(listen={"shm_lease": 1.0})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 1)
    wait_for_copies(gateway, 2)
    grant = granted(attached(gateway, attach, gpu), prompt[0][0])
    wait_until(lambda: not grant.holds, "the grant ends")
    assert gateway.metrics()["kvgate_shm_expired_total"] == 1
    assert shown(grant) == prompt[0][1], "the memory is still mapped: a copy that is under way breaks nothing"
    grant.release()


def test_load_that_takes_longer_than_its_lease_does_not_count_on_the_gpu(start_gpu, tmp_path) -> None:
    class Slow(FileDevice):
        def record(self, stream: int) -> Any:
            time.sleep(0.7)
            return super().record(stream)

    gateway = start_gpu(listen={"shm_lease": 0.5})
    device = Slow(tmp_path / "gpu")
    with client_of(gateway) as client:
        prompt = store_prompt(client, 2)
        wait_for_copies(gateway, 3)
        room = Room(device, prompt)
        loaded = room.load(client, Gpu(device))
        assert (loaded.on_gpu, loaded.leading) == (0, 2)
        room.check(0, 2)
        assert client.traffic()["gpu"].transfers == 0


def test_memory_goes_to_another_tenant_only_when_no_engine_maps_it(start_gpu, gpu, device, attach) -> None:
    """The first tenant's engine holds a grant past its deadline, and then lets go of it, asking for nothing more."""
    gateway = start_gpu(gpu={"capacity": "2MiB", "segment": "2MiB"}, listen={"shm_lease": 1.0})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 2)
        wait_for_copies(gateway, 3)
        grant = granted(attached(gateway, attach, gpu), prompt[0][0])
        wait_until(lambda: not grant.holds, "the grant ends")
        for chunk_hash, _ in prompt:
            client.delete(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())))
        client.delete(BUCKET, str(ManifestKey(SPACE.id)))
    used = 'kvgate_tier_used_bytes{tier="a-gpu"}'
    wait_until(lambda: gateway.metrics()[used] == 0, "the first tenant has nothing there")
    with client_of(gateway, BETA) as client:
        client.put("beta-bucket", "refused", os.urandom(5000))
        time.sleep(1.5)
        assert shown(grant) == prompt[0][1]
        assert gateway.metrics().get('kvgate_tier_objects{tier="a-gpu"}', 0) == 0, "nothing can be written there yet"
        grant.release()
        wait_until(lambda: not device.imports, "the engine unmaps what is gone")

        def written() -> bool:
            client.put("beta-bucket", f"key-{time.monotonic()}", os.urandom(5000))
            return gateway.metrics().get('kvgate_tier_objects{tier="a-gpu"}', 0) > 0

        wait_until(written, "the memory goes to the other tenant")


def test_engine_gets_no_memory_of_another_tenant(start_gpu, gpu, attach) -> None:
    gateway = start_gpu()
    with client_of(gateway) as client, client_of(gateway, BETA) as other:
        ours = store_prompt(client, 2, bucket="shared-name")
        theirs = store_prompt(other, 2, seed=1, bucket="shared-name")
    wait_for_copies(gateway, 6)
    alpha, beta = attached(gateway, attach, gpu), attached(gateway, attach, gpu, BETA)
    for attachment, own, foreign in ((alpha, ours, theirs), (beta, theirs, ours)):
        for chunk_hash, body in own:
            with granted(attachment, chunk_hash, "shared-name") as grant:
                assert shown(grant) == body
        assert grants_of(attachment, [foreign[0][0]], "shared-name") == [handoff.ABSENT]
        for bucket in ("alpha-bucket", "beta-bucket", "alpha_shared-name", "beta_shared-name"):
            with contextlib.suppress(GatewayError):
                assert grants_of(attachment, [foreign[0][0]], bucket) == [handoff.ABSENT]
    handed = [set(attachment._device._segments) for attachment in (alpha, beta)]
    assert handed[0]
    assert handed[1]
    assert not handed[0] & handed[1]


def test_grants_on_the_gpu_need_a_gpu_that_was_named_and_is_the_gateways(start_gpu, gpu, attach) -> None:
    gateway = start_gpu()
    for named in ([], [b"another GPU 0123"], [b"short"]):
        attachment = attach(gateway)
        with pytest.raises(GatewayUnavailable):
            for uuid in named:
                attachment._ask(lambda number, uuid=uuid: handoff.encode_device(number, uuid), Deadline(5))
            attachment._ask(
                lambda number: handoff.encode_get_chunks(number, BUCKET, bytes(32), [bytes(32)], 0, on_device=True),
                Deadline(5),
            )
    attachment = attached(gateway, attach, gpu)
    for uuid, told in ((gpu.device.uuid, NAME), (b"another GPU 0123", "")):
        (frame,) = attachment._ask(lambda number, uuid=uuid: handoff.encode_device(number, uuid), Deadline(5))
        assert handoff.decode_text(frame) == told
    assert grants_of(attachment, [bytes(32)]) == [handoff.ABSENT]
    assert "Traceback" not in gateway.log


# --- the end of engines -----------------------------------------------------------------------------------------------


def test_connection_that_the_gateway_cuts_keeps_the_memory_until_the_engine_has_closed_it(
    start_gpu, gpu, device, attach
) -> None:
    gateway = start_gpu(gpu={"capacity": "2MiB", "segment": "2MiB"})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 1)
    wait_for_copies(gateway, 2)
    attachment = attached(gateway, attach, gpu)
    grant = granted(attachment, prompt[0][0])
    attachment._sock.send(b"no frame")
    wait_until(lambda: not attachment.usable, "the connection is cut, which an engine notices that asks for nothing")
    assert not grant.holds
    assert gateway.metrics()["kvgate_shm_grants"] == 0
    assert gateway.metrics()["kvgate_shm_engines"] == 1, "it still counts among the tenant's engines"
    assert shown(grant) == prompt[0][1]
    grant.release()
    wait_until(lambda: gateway.metrics()["kvgate_shm_engines"] == 0, "the engine has unmapped everything")
    assert not device.imports


def test_engines_that_are_killed_leave_nothing_behind_and_others_never_read_a_wrong_byte(
    start_gpu, start_engine, device
) -> None:
    """Under pressure: the chunks do not all fit on the GPU, so that slots are reused all the time."""
    gateway = start_gpu(gpu={"capacity": "2MiB", "segment": "2MiB"}, listen={"shm_lease": 1.0})
    choose = random.Random(20261126)
    with client_of(gateway) as client:
        store_prompt(client, 12)
        engines = [start_engine(gateway, "read", number) for number in range(2)]
        for number in range(ROUNDS):
            which = choose.randrange(2)
            engines[which].wait_for("on-gpu")
            store_prompt(client, 12, seed=number + 1)
            time.sleep(choose.uniform(0, 0.05))
            engines[which].kill()
            engines[which] = start_engine(gateway, "read", number + 2)
    lines = [line for engine in engines for line in engine.kill()]
    assert not [line for line in lines if line.startswith("WRONG")]
    wait_until(lambda: gateway.metrics()["kvgate_shm_grants"] == 0, "no grant is left")
    wait_until(lambda: gateway.metrics()["kvgate_shm_engines"] == 0, "no engine is left")
    metrics = gateway.metrics()
    assert metrics["kvgate_leases"] == 0
    assert metrics['kvgate_evicted_objects_total{tier="a-gpu"}'] > 10


def test_engine_that_sleeps_past_its_lease_finds_its_copy_void(start_gpu, start_engine, device) -> None:
    gateway = start_gpu(gpu={"capacity": "2MiB", "segment": "2MiB"}, listen={"shm_lease": 1.0})
    with client_of(gateway) as client:
        store_prompt(client, 12)
        wait_for_copies(gateway, 8)
        engine = start_engine(gateway, "hold", 0)
        engine.wait_for("held")
        engine.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: gateway.metrics()["kvgate_shm_expired_total"] >= 1, "its lease ends")
        for seed in range(1, 7):  # where the sleeper was to copy from
            store_prompt(client, 12, seed)
        engine.process.send_signal(signal.SIGCONT)
        engine.wait_for("void")
    engine.kill()


def test_gateway_that_stops_frees_no_memory_that_an_engine_maps(start_gpu, gpu, attach) -> None:
    gateway = start_gpu()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 1)
    wait_for_copies(gateway, 2)
    attachment = attached(gateway, attach, gpu)
    with granted(attachment, prompt[0][0]) as grant:
        assert gateway.stop() == 0
        assert shown(grant) == prompt[0][1]
        wait_until(lambda: not attachment.usable, "an engine that asks for nothing notices")


def test_gateway_that_ends_leaves_engines_a_way(start_gpu, gpu, device) -> None:
    gateway = start_gpu(store={"ack": "disk"})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 3)
        wait_for_copies(gateway, 4)
        room = Room(device, prompt)
        assert room.load(client, gpu).on_gpu == 3
        gateway.kill()
        loaded = room.load(client, gpu, deadline_s=1)
        room.check(loaded.on_gpu, loaded.leading)
        gateway.start()
        wait_until(lambda: room.load(client, gpu).on_gpu == 3, "the GPU is used again")
        room.check(3, 3)
