"""The S3 tier beside other S3 clients of Python, on the same bytes and the same server, in turn in each round.

    python loadtest/s3_tier.py [--server seaweedfs] [--nbytes 4MiB 32MiB] [--rounds 5] [--at-once 1 4]

Every client ends with the body in memory that was there before, as a tier must; only the S3 tier verifies it there.
boto3 is used with its own defaults, and as `transfer` in the way of `aws s3 cp`, in parts of 8 MiB by 10 threads.
obstore and awscrt's S3 client move a whole object in one request, and hand out buffers of their own, which are copied.
What is not installed is left out (pip install boto3 obstore).

Prints the medians over the rounds, for each size and each number of objects that are moved at once: GB/s, its ratio to
boto3's in the same round, and CPU seconds of this process a GB. Then the latency of a question for what is there, and
for what is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gateway import ACCESS_KEY, BUCKET, SECRET_KEY
from peers.kvgate import Kvgate
from peers.seaweedfs import SeaweedFS

from kvgate.config import Secret, Size, format_size, parse_size
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BlockDigest
from kvgate.memory.lease import Lease
from kvgate.tiers.base import HERE, Name, Record
from kvgate.tiers.s3 import S3Tier
from kvgate.tiers.s3_config import S3Config

REGION = "us-east-1"
QUESTIONS = 100
READY_S = 30.0
SERVERS = {"seaweedfs": SeaweedFS, "kvgate": Kvgate}


class Body(NamedTuple):
    """What is moved: it fills a lease, and the digests that a gateway has of everything are taken."""

    lease: Lease
    crc64nvme: int
    blocks: array[int]


class Client(Protocol):
    """One way to use the bucket. Objects have a number each; `ask` says whether one is there."""

    name: str

    async def put(self, number: int, body: Body) -> None: ...

    async def get(self, number: int, into: Lease) -> None: ...

    async def ask(self, number: int) -> bool: ...


class Tier:
    """Each object is put under a key that nothing has yet, because a tier replaces nothing."""

    name = "S3 tier"

    def __init__(self, endpoint: str) -> None:
        self._tier = S3Tier(S3Config(BUCKET, endpoint, access_key=ACCESS_KEY, secret_key=Secret(SECRET_KEY)))
        self._records: dict[int, Record] = {}

    async def put(self, number: int, body: Body) -> None:
        key = f"{number}/{time.time_ns()}"
        record = self._records[number] = Record("t", "b", key, body.lease.nbytes, body.crc64nvme, 0)
        upload = await self._tier.begin("t", record.nbytes)
        await upload.write(body.lease, 0, record.nbytes)
        await upload.finish(record, body.blocks)

    async def get(self, number: int, into: Lease) -> None:
        await self._tier.open(self._records[number], HERE).read_into(0, into, into.nbytes)

    async def ask(self, number: int) -> bool:
        key = self._records[number].key if number in self._records else f"absent/{number}"
        return (await self._tier.lookup([Name("t", "b", key)])) != [None]


class Boto3:
    name = "boto3"

    def __init__(self, endpoint: str) -> None:
        self._s3 = connect_boto3(endpoint)

    async def put(self, number: int, body: Body) -> None:
        await asyncio.to_thread(self._s3.put_object, Bucket=BUCKET, Key=f"boto3/{number}", Body=joined(body.lease))

    async def get(self, number: int, into: Lease) -> None:
        def get() -> None:
            stream = self._s3.get_object(Bucket=BUCKET, Key=f"boto3/{number}")["Body"]
            for view in into.views:
                at = 0
                while at < len(view):
                    at += stream.readinto(view[at:])

        await asyncio.to_thread(get)

    async def ask(self, number: int) -> bool:
        def ask() -> bool:
            try:
                self._s3.head_object(Bucket=BUCKET, Key=f"boto3/{number}")
            except self._s3.exceptions.ClientError:
                return False
            return True

        return await asyncio.to_thread(ask)


class Transfer(Boto3):
    name = "transfer"

    async def put(self, number: int, body: Body) -> None:
        stream = io.BytesIO(joined(body.lease))
        await asyncio.to_thread(self._s3.upload_fileobj, stream, BUCKET, f"boto3/{number}")

    async def get(self, number: int, into: Lease) -> None:
        await asyncio.to_thread(self._s3.download_fileobj, BUCKET, f"boto3/{number}", _Into(into))


class Obstore:
    name = "obstore"

    def __init__(self, endpoint: str) -> None:
        import obstore  # noqa: PLC0415 - need not be installed
        from obstore.store import S3Store  # noqa: PLC0415

        self._obstore = obstore
        self._store = S3Store(
            BUCKET,
            endpoint=endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=REGION,
            client_options={"allow_http": True},
        )

    async def put(self, number: int, body: Body) -> None:
        content = list(body.lease.views)  # it takes any buffers
        await self._obstore.put_async(self._store, f"obstore/{number}", content, use_multipart=False)

    async def get(self, number: int, into: Lease) -> None:
        answer = await self._obstore.get_async(self._store, f"obstore/{number}")
        content = memoryview(await answer.bytes_async())
        await asyncio.to_thread(_Into(into).write, content)

    async def ask(self, number: int) -> bool:
        try:
            await self._obstore.head_async(self._store, f"obstore/{number}")
        except FileNotFoundError:
            return False
        return True


class AwsCrt:
    name = "awscrt"

    def __init__(self, endpoint: str) -> None:
        from awscrt import auth, http, s3  # noqa: PLC0415 - threads of its own begin with it

        self._http, self._s3 = http, s3
        self._host = endpoint.removeprefix("http://")
        provider = auth.AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY)
        self._client = s3.S3Client(
            region=REGION,
            tls_mode=s3.S3RequestTlsMode.DISABLED,
            signing_config=s3.create_default_s3_signing_config(region=REGION, credential_provider=provider),
            part_size=1 << 30,
            multipart_upload_threshold=1 << 30,
        )

    async def _request(self, method: str, number: int, kind: Any, operation: str, **more: Any) -> None:
        headers = self._http.HttpHeaders([("host", self._host)])
        stream = more.pop("stream", None)
        if stream is not None:
            headers.add("content-length", str(len(stream.getbuffer())))
        request = self._http.HttpRequest(method, f"/{BUCKET}/awscrt/{number}", headers, stream)
        asked = self._client.make_request(type=kind, request=request, operation_name=operation, **more)
        await asyncio.wrap_future(asked.finished_future)

    async def put(self, number: int, body: Body) -> None:
        stream = io.BytesIO(joined(body.lease))
        await self._request("PUT", number, self._s3.S3RequestType.PUT_OBJECT, "PutObject", stream=stream)

    async def get(self, number: int, into: Lease) -> None:
        target = _Into(into)

        def take(chunk: bytes, offset: int, **_: Any) -> None:
            target.seek(offset)
            target.write(memoryview(chunk))

        await self._request("GET", number, self._s3.S3RequestType.GET_OBJECT, "GetObject", on_body=take)

    async def ask(self, number: int) -> bool:
        try:
            await self._request("HEAD", number, self._s3.S3RequestType.DEFAULT, "HeadObject")
        except Exception:  # of its own kind for each status
            return False
        return True


class _Into(io.RawIOBase):
    """A file that is the memory of a lease."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._at = 0

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        rest = memoryview(content)
        for view in self._lease.slices(self._at, self._at + len(rest)):
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]
        self._at += len(content)
        return len(content)


def joined(lease: Lease) -> bytes:
    """The body as these clients take it: a copy."""
    return b"".join(lease.views)


def connect_boto3(endpoint: str) -> Any:
    import boto3  # noqa: PLC0415 - need not be installed

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


# --- measuring --------------------------------------------------------------------------------------------------------


async def timed(work: Callable[[int], Coroutine[Any, Any, None]], at_once: int, nbytes: int) -> tuple[float, float]:
    """GB/s, and CPU seconds of this process a GB, of `at_once` pieces of work beside each other."""
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.gather(*[work(number) for number in range(at_once)])
    moved_gb = at_once * nbytes / 1e9
    return moved_gb / (time.monotonic() - wall), (time.process_time() - cpu) / moved_gb


async def transfers(clients: list[Client], arena: Arena, nbytes: int, at_once: int, rounds: int) -> None:
    content = os.urandom(nbytes)
    digest = BlockDigest()
    digest.update(memoryview(content))
    into = [arena.reserve("t", nbytes) for _ in range(at_once)]
    with arena.reserve("t", nbytes) as lease:
        _Into(lease).write(content)
        body = Body(lease, digest.value, digest.blocks)
        samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(-1, rounds):  # the first round warms up
            for client in clients:

                async def put(number: int, client: Client = client) -> None:
                    await client.put(number, body)

                async def get(number: int, client: Client = client) -> None:
                    await client.get(number, into[number])

                for verb, work in (("PUT", put), ("GET", get)):
                    sample = await timed(work, at_once, nbytes)
                    if number >= 0:
                        samples.setdefault((verb, client.name), []).append(sample)
                assert b"".join(into[0].views) == content, f"{client.name} brought something else"
    for lease in into:
        lease.release()
    for (verb, name), each in samples.items():
        rates = [rate for rate, _ in each]
        line = f"{verb} {format_size(nbytes):>6} x{at_once}  {name:8} {statistics.median(rates):6.2f} GB/s"
        if base := samples.get((verb, "boto3")):
            ratios = [rate / other for rate, (other, _) in zip(rates, base, strict=True)]
            line += f"  {statistics.median(ratios):5.2f} of boto3"
        print(f"{line}  {statistics.median([cpu for _, cpu in each]):5.2f} CPU s/GB")


async def questions(clients: list[Client]) -> None:
    for what, number in (("there", 0), ("absent", 10**6)):
        for client in clients:
            took: list[float] = []
            for _ in range(QUESTIONS):
                began = time.monotonic()
                assert await client.ask(number) == (what == "there"), f"{client.name} does not know what is {what}"
                took.append((time.monotonic() - began) * 1e3)
            quantiles = statistics.quantiles(took, n=100)
            print(f"{what:6}  {client.name:8} p50 {quantiles[49]:6.2f} ms  p99 {quantiles[98]:6.2f} ms")


def make_bucket(endpoint: str) -> None:
    """Wait until the server takes objects."""
    s3 = connect_boto3(endpoint)
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists):
                s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            return
        except Exception:  # whatever it is, as long as it comes up
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


async def measure(endpoint: str, sizes: list[Size], at_once: list[int], rounds: int) -> None:
    clients: list[Client] = []
    for kind in (Tier, Boto3, Transfer, Obstore, AwsCrt):
        try:
            clients.append(kind(endpoint))
        except ImportError as error:
            print(f"without {kind.name}: {error}")
    arena = Arena((max(at_once) + 2) * max(sizes) + (64 << 20), segment_nbytes=max(sizes))
    for nbytes in sizes:
        for count in at_once:
            await transfers(clients, arena, nbytes, count, rounds)
    await questions(clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=sorted(SERVERS), default="seaweedfs")
    parser.add_argument("--nbytes", type=parse_size, nargs="+", default=[4 << 20, 32 << 20])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = SERVERS[options.server](Path(folder) / "server")
        try:
            server.start()
            endpoint = f"http://127.0.0.1:{server.port}"
            make_bucket(endpoint)
            asyncio.run(measure(endpoint, options.nbytes, options.at_once, options.rounds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
