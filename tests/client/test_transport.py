"""The client's choice of a way, against real gateways: memory, a unix socket, TCP."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.client.aio import AsyncClient
from kvgate.client.sync import Client
from kvgate.client.values import Loaded
from kvgate.errors import GatewayError, InvalidArgument
from tests.client.chunks import SPACE, chunks
from tests.gateways import ALPHA, RunningGateway

BUCKET = "alpha-bucket"


@pytest.fixture
def start_shm(start_gateway: Callable[..., RunningGateway]) -> Iterator[Callable[..., RunningGateway]]:
    folder = Path(tempfile.mkdtemp(prefix="kvgate-"))  # a path that leaves room for the name of a socket

    def start(*sockets: str, **sections: Any) -> RunningGateway:
        listen = {socket: str(folder / socket) for socket in sockets or ("shm_socket",)}
        return start_gateway(listen=listen, **sections)

    yield start
    shutil.rmtree(folder)


def client_of(gateway: RunningGateway, **options: Any) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20, **options)


def loaded(client: Client, key: str, nbytes: int) -> bytes:
    buffer = memoryview(bytearray(nbytes + 7))
    assert client.load(BUCKET, key, buffer) == nbytes
    return bytes(buffer[:nbytes])


def store_prompt(client: Client, count: int) -> list[tuple[bytes, bytes]]:
    prompt = chunks(client.tenant().salt, count)
    client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    for chunk_hash, body in prompt:
        client.put(BUCKET, str(ChunkKey(SPACE.id, chunk_hash.hex())), body)
    return prompt


def buffers_for(prompt: list[tuple[bytes, bytes]]) -> list[memoryview]:
    return [memoryview(bytearray(len(body))) for _, body in prompt]


def test_client_uses_memory_once_the_gateway_has_told_of_it(start_shm) -> None:
    gateway = start_shm()
    body = os.urandom(1_500_000)
    with client_of(gateway) as client:
        client.put(BUCKET, "key", body)
        assert loaded(client, "key", len(body)) == body
        assert client.traffic()["tcp"] == (2, 2 * len(body))
        assert client.traffic()["shm"] == (0, 0)
        client.tenant()
        assert loaded(client, "key", len(body)) == body
        client.put(BUCKET, "other", body)
        assert client.traffic()["shm"] == (2, 2 * len(body))
        assert client.get(BUCKET, "other").body == body
        client.put(BUCKET, "with-metadata", body, metadata={"a": "b"})
        assert client.traffic()["tcp"].transfers == 4
        prompt = store_prompt(client, 5)
        buffers = buffers_for(prompt)
        before = client.traffic()["tcp"]
        hashes = [chunk_hash for chunk_hash, _ in prompt]
        assert client.load_chunks(BUCKET, SPACE.id, hashes, buffers).leading == 5
        assert [bytes(buffer) for buffer in buffers] == [body for _, body in prompt]
        assert (
            client.load_chunks(BUCKET, SPACE.id, [*hashes[:2], bytes(32), *hashes[2:]], [*buffers, buffers[0]]).leading
            == 2
        )
        assert client.traffic()["tcp"] == before


async def test_asyncio_client_uses_memory_too(start_shm) -> None:
    gateway = start_shm()
    body = os.urandom(9_000_000)
    with client_of(gateway) as blocking:
        prompt = await asyncio.to_thread(store_prompt, blocking, 4)
    client = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20)
    async with client:
        await client.tenant()
        await client.put(BUCKET, "key", body)
        buffer = memoryview(bytearray(len(body)))
        assert await client.load(BUCKET, "key", buffer) == len(body)
        assert buffer == body
        buffers = buffers_for(prompt)
        assert (await client.load_chunks(BUCKET, SPACE.id, [name for name, _ in prompt], buffers)).leading == 4
        assert [bytes(view) for view in buffers] == [body for _, body in prompt]
        traffic = client.traffic()
        assert (traffic["shm"].transfers, traffic["tcp"].transfers, traffic["unix"].transfers) == (6, 0, 0)
        assert (await client.get(BUCKET, "key")).body == body
        assert client.traffic()["tcp"].transfers == 1


@pytest.mark.parametrize("way", ["shm", "unix", "tcp"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_slices_of_chunks_are_loaded_by_every_way(start_shm, way, kind) -> None:
    """Heads and layers whose runs begin and end anywhere in a MiB."""
    gateway = start_shm("unix_socket" if way == "unix" else "shm_socket")
    space = Space.from_manifest(SPACE.manifest() | {"layers": 12, "chunk_tokens": 96, "head_dim": 100})
    layout = space.layout
    hashes, kv = [os.urandom(32) for _ in range(5)], [os.urandom(layout.nbytes) for _ in range(5)]
    with client_of(gateway) as client:
        client.put(BUCKET, str(ManifestKey(space.id)), space.canonical_json())
        for chunk_hash, part in zip(hashes, kv, strict=True):
            key = str(ChunkKey(space.id, chunk_hash.hex()))
            client.put(BUCKET, key, [ChunkHeader.encode(space, chunk_hash, bytes(32), 0), part])

    def check(load: Callable[..., Loaded], traffic: Callable[[], Any]) -> None:
        moved = 0
        for layers, heads in [
            *((None, None), (range(3, 7), None), (None, range(2, 5)), (range(11, 12), range(7, 8))),
            *((range(1, 12), range(8)), (range(12), range(1))),
        ]:
            arrays = [np.frombuffer(each, np.uint16).reshape(layout.shape) for each in kv]
            cut = slice(None) if layers is None else slice(layers.start, layers.stop)
            some = slice(None) if heads is None else slice(heads.start, heads.stop)
            expected = [array[cut, :, some].tobytes() for array in arrays]
            buffers = [memoryview(bytearray(len(expected[0]))) for _ in hashes]
            got = load(BUCKET, space.id, hashes, buffers, layout=layout, layers=layers, heads=heads)
            assert got.leading == 5
            assert [bytes(each) for each in buffers] == expected
            moved += 5 * len(expected[0])
            missing = [*hashes[:2], bytes(32), *hashes[2:4]]
            assert load(BUCKET, space.id, missing, buffers, layout=layout, layers=layers, heads=heads).leading == 2
            moved += 2 * len(expected[0])
        assert traffic()[way].nbytes >= moved
        assert all(count.nbytes == 0 for name, count in traffic().items() if name != way)

    if kind == "sync":
        with client_of(gateway, local=way != "tcp") as client:
            client.tenant()
            check(client.load_chunks, client.traffic)
            return
    with asyncio.Runner() as runner:
        other = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20, local=way != "tcp")
        runner.run(other.tenant())
        check(lambda *args, **options: runner.run(other.load_chunks(*args, **options)), other.traffic)
        runner.run(other.close())


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_chunk_is_stored_once_and_its_bytes_are_not_sent_again(start_shm, local, kind) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 1)
        fresh = chunks(client.tenant().salt, 2)[1]

    def check(client: Any) -> None:
        client.tenant()
        way = "shm" if local else "tcp"

        def stored(body: bytes, name: bytes = fresh[0]) -> bool:
            views = [body[:DATA_START], memoryview(body)[DATA_START:]]
            return bool(client.put_chunk(BUCKET, SPACE.id, name, views))

        assert stored(fresh[1])
        assert client.traffic()[way] == (1, len(fresh[1]))
        another = fresh[1][:-1] + bytes([fresh[1][-1] ^ 1])
        assert not stored(fresh[1])
        assert not stored(another), "the first one wins, whatever the other is"
        assert not stored(prompt[0][1], prompt[0][0])
        assert client.traffic()[way] == (1, len(fresh[1]))
        with pytest.raises(GatewayError) as raised:
            stored(fresh[1], bytes(32))
        assert raised.value.code == "InvalidChunk"
        with pytest.raises(GatewayError) as raised:
            client.put_chunk(BUCKET, "ab" * 32, fresh[0], fresh[1])
        assert raised.value.code == "UnknownSpace"
        assert client.get(BUCKET, str(ChunkKey(SPACE.id, fresh[0].hex()))).body == fresh[1]

    if kind == "sync":
        with client_of(gateway, local=local) as client:
            check(client)
        return

    class Blocking:
        """The asyncio client, call by call."""

        def __getattr__(self, name: str) -> Any:
            attribute = getattr(other, name)
            return attribute if name == "traffic" else lambda *args, **options: runner.run(attribute(*args, **options))

    with asyncio.Runner() as runner:
        other = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20, local=local)
        check(Blocking())
        runner.run(other.close())


@pytest.mark.parametrize("way", ["shm", "tcp"])
def test_slices_of_chunks_in_a_codec_are_loaded_too(start_shm, way) -> None:
    """Such a chunk has several tensors, and a slice some runs of each."""
    gateway = start_shm()
    space = Space.from_manifest(
        SPACE.manifest()
        | {"layers": 12, "chunk_tokens": 96, "head_dim": 96, "layout_version": 2, "packing": "none"}
        | {"layer_set": "all", "codec": "int8"}
    )
    hashes, bodies = [os.urandom(32) for _ in range(3)], [os.urandom(space.stored.nbytes) for _ in range(3)]
    with client_of(gateway, local=way == "shm") as client:
        client.tenant()
        client.put(BUCKET, str(ManifestKey(space.id)), space.canonical_json())
        for chunk_hash, body in zip(hashes, bodies, strict=True):
            assert client.put_chunk(
                BUCKET, space.id, chunk_hash, [ChunkHeader.encode(space, chunk_hash, bytes(32), 0), body]
            )
        before = client.traffic()[way].nbytes
        moved = 0
        for layers, heads in [(range(3, 7), None), (None, range(2, 5)), (range(11, 12), range(7, 8)), (None, None)]:
            runs = space.stored.slices(layers or range(12), heads or range(8))
            assert len(runs.tensors) > 1
            buffers = [memoryview(bytearray(runs.nbytes)) for _ in hashes]
            got = client.load_chunks(BUCKET, space.id, hashes, buffers, layout=space.stored, layers=layers, heads=heads)
            assert got.leading == 3
            for buffer, body in zip(buffers, bodies, strict=True):
                assert buffer == b"".join(body[run.start : run.stop] for run in runs.runs())
            moved += 3 * runs.nbytes
        assert client.traffic()[way].nbytes == before + moved
        raw = [memoryview(bytearray(space.layout.nbytes)) for _ in hashes]
        assert client.load_chunks(BUCKET, space.id, hashes, raw, layout=space.layout).leading == 0


def test_slices_that_there_are_not_are_told_before_anything_is_loaded(start_shm) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 2)
        hashes, layout = [name for name, _ in prompt], SPACE.layout
        buffers = [memoryview(bytearray(layout.nbytes // layout.layers)) for _ in prompt]
        for options in (
            *({"layers": range(1)}, {"heads": range(1)}, {"layout": layout, "layers": range(4, 5)}),
            *({"layout": layout, "layers": range(0, 2, 2)}, {"layout": layout, "heads": range(0)}),
            *({"layout": layout}, {"layout": layout, "layers": range(2)}),
        ):
            with pytest.raises(InvalidArgument):
                client.load_chunks(BUCKET, SPACE.id, hashes, buffers, **options)
        assert client.load_chunks(BUCKET, SPACE.id, hashes, buffers, layout=layout, layers=range(1)).leading == 2
        another = replace(layout, layers=layout.layers // 2, tokens=layout.tokens * 4)
        halves = [memoryview(bytearray(another.nbytes)) for _ in prompt]
        for _ in range(2):
            client.tenant()
            got = client.load_chunks(BUCKET, SPACE.id, hashes, halves, layout=another)
            assert got.leading == 0, "chunks of another size than the layout says are not what is wanted"


def test_chunks_on_disk_come_through_memory(start_shm) -> None:
    gateway = start_shm(store={"ack": "disk"})
    with client_of(gateway) as client:
        prompt = store_prompt(client, 6)
    gateway.restart()
    with client_of(gateway) as client:
        client.tenant()
        buffers = buffers_for(prompt)
        assert client.load_chunks(BUCKET, SPACE.id, [name for name, _ in prompt], buffers).leading == 6
        assert [bytes(view) for view in buffers] == [body for _, body in prompt]
        assert client.traffic()["tcp"].transfers == 0


@pytest.mark.parametrize("use_session", [False, True])
def test_http_goes_over_the_unix_socket_where_there_is_one(start_shm, use_session) -> None:
    gateway = start_shm("unix_socket")
    body = os.urandom(2_000_000)
    with client_of(gateway, use_session=use_session) as client:
        client.put(BUCKET, "key", body)
        client.tenant()
        client.put(BUCKET, "other", body)
        assert loaded(client, "other", len(body)) == body
        assert client.get(BUCKET, "key").body == body
        traffic = client.traffic()
        assert (traffic["unix"].transfers, traffic["tcp"].transfers) == (3, 1)
        Path(gateway.config["listen"]["unix_socket"]).unlink()
        gateway.restart()
        assert client.get(BUCKET, "key").body == body
        time.sleep(1.1)
        client.put(BUCKET, "back", body)
        assert client.get(BUCKET, "back").body == body
        assert client.traffic()["unix"].transfers >= 5


async def test_asyncio_client_uses_the_unix_socket_too(start_shm) -> None:
    gateway = start_shm("unix_socket")
    body = os.urandom(2_000_000)
    client = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20)
    async with client:
        await client.tenant()
        await client.put(BUCKET, "key", body)
        assert (await client.get(BUCKET, "key")).body == body
        assert client.traffic()["unix"] == (2, 2 * len(body))
        path = Path(gateway.config["listen"]["unix_socket"])
        path.unlink()
        await asyncio.to_thread(gateway.restart)
        path.rename(path.with_name("elsewhere"))
        assert (await client.get(BUCKET, "key")).body == body
        assert client.traffic()["tcp"].transfers == 1


def test_memory_and_unix_socket_are_used_together(start_shm) -> None:
    gateway = start_shm("shm_socket", "unix_socket")
    with client_of(gateway) as client:
        client.tenant()
        client.put(BUCKET, "key", b"body" * 1000)
        assert loaded(client, "key", 4000) == b"body" * 1000
        assert client.get(BUCKET, "key").body == b"body" * 1000
        traffic = client.traffic()
        assert (traffic["shm"].transfers, traffic["unix"].transfers, traffic["tcp"].transfers) == (2, 1, 0)


def test_socket_that_cannot_be_used_costs_no_load(start_shm) -> None:
    gateway = start_shm()
    path = Path(gateway.config["listen"]["shm_socket"])
    with client_of(gateway) as client:
        client.put(BUCKET, "key", b"body" * 1000)
        path.rename(path.with_name("elsewhere"))
        client.tenant()
        assert loaded(client, "key", 4000) == b"body" * 1000
        assert client.traffic()["shm"].transfers == 0
        path.with_name("elsewhere").rename(path)
        client.tenant()
        time.sleep(1.1)
        assert loaded(client, "key", 4000) == b"body" * 1000
        assert client.traffic()["shm"].transfers == 1


def test_socket_of_another_gateway_is_not_believed(start_shm, start_gateway) -> None:
    """As when the path is on another host, where another gateway has a socket of that name."""
    meant = start_shm()
    path = Path(meant.config["listen"]["shm_socket"])
    path.unlink()
    other = start_gateway(listen={"shm_socket": str(path)})
    with client_of(meant) as client, client_of(other) as of_other:
        client.put(BUCKET, "key", b"meant" * 1000)
        of_other.put(BUCKET, "key", b"other" * 1000)
        client.tenant()
        assert loaded(client, "key", 5000) == b"meant" * 1000
        assert client.traffic()["shm"].transfers == 0


def test_client_told_to_stay_with_tcp_does(start_shm) -> None:
    gateway = start_shm()
    with client_of(gateway, local=False) as client:
        client.tenant()
        client.put(BUCKET, "key", b"body")
        assert loaded(client, "key", 4) == b"body"
        assert client.traffic()["tcp"].transfers == 2


def test_gateway_killed_under_loads_is_used_again_when_it_is_back(start_shm) -> None:
    gateway = start_shm(store={"ack": "disk"})
    body = os.urandom(3_000_000)
    failures: list[str] = []
    wrong: list[str] = []
    stopped = threading.Event()
    with client_of(gateway) as client:
        client.tenant()
        client.put(BUCKET, "key", body)

        def load() -> None:
            buffer = memoryview(bytearray(len(body)))
            while not stopped.is_set():
                try:
                    client.load(BUCKET, "key", buffer, deadline_s=3)
                except GatewayError as error:
                    failures.append(type(error).__name__)
                    time.sleep(0.05)
                else:
                    if buffer != body:
                        wrong.append("a load that counted had other bytes")

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            time.sleep(0.4)
            gateway.kill()
            gateway.start()
        time.sleep(2.5)
        before = client.traffic()["shm"].transfers
        time.sleep(0.5)
        stopped.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert client.traffic()["shm"].transfers > before, "memory was not attached to again"
        assert client.traffic()["tcp"].transfers > 0
        assert set(failures) <= {"GatewayUnavailable", "DeadlineExceeded"}


def test_gateway_that_stands_still_costs_no_more_than_the_deadline(start_shm) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        prompt = store_prompt(client, 3)
        buffers = buffers_for(prompt)
        hashes = [name for name, _ in prompt]
        assert client.load_chunks(BUCKET, SPACE.id, hashes, buffers).leading == 3
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert client.load_chunks(BUCKET, SPACE.id, hashes, buffers, 0.5).leading == 0
            assert time.monotonic() - began < 1.0
        finally:
            gateway.process.send_signal(signal.SIGCONT)
        assert client.load_chunks(BUCKET, SPACE.id, hashes, buffers).leading == 3


async def test_load_that_is_cancelled_lets_go_of_its_buffers(start_shm) -> None:
    gateway = start_shm()
    client = AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=20)
    async with client:
        await client.tenant()
        body = os.urandom(30_000_000)
        await client.put(BUCKET, "key", body)
        buffer = memoryview(bytearray(len(body)))
        for wait_s in (0.0, 0.001, 0.005):
            task = asyncio.create_task(client.load(BUCKET, "key", buffer))
            await asyncio.sleep(wait_s)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                taken = bytes(buffer)
                await asyncio.sleep(0.05)
                assert buffer == taken, "somebody wrote after the load was cancelled"


def test_child_process_attaches_for_itself(start_shm) -> None:
    gateway = start_shm()
    with client_of(gateway) as client:
        client.tenant()
        client.put(BUCKET, "key", b"body" * 100)
        assert loaded(client, "key", 400) == b"body" * 100
        reader, writer = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                good = loaded(client, "key", 400) == b"body" * 100 and client.traffic()["shm"].transfers >= 3
                writer.send(b"good" if good else b"bad")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert reader.recv(10) == b"good"
        assert loaded(client, "key", 400) == b"body" * 100
        reader.close()
        writer.close()
