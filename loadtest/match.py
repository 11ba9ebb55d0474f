"""How many chain hashes a second POST /_kv/v1/match looks up, beside a bare loop over a dict of the same keys.

    python loadtest/match.py --chunks 200000 --hashes 16384 --seconds 3

Fills a store with chunks of a few bytes of KV each (the least that a space allows), then asks for random runs of
them, in msgpack, through the API as a server calls it: the request's signature and sha256 are verified, the chunks
are leased and touched, the answer is packed, and each lease is released by a call of its own, which counts too.
Without sockets, so that the figure is the gateway's CPU alone. The dict loop is what no server in Python alone can
beat: a dict with the same bytes as keys, one lookup a hash. Prints hashes a second of both, in alternation, by wall
clock and by CPU time, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import time

import msgpack

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.sigv4 import Credential, sign
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.chunk.chain import HASH_NBYTES, chain_hashes, root
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.space import HASH_SCHEME, LAYOUT_VERSION, Space
from kvgate.config import MiB, Secret, Size
from kvgate.kvapi.api import KVApi
from kvgate.kvapi.call import Local
from kvgate.kvapi.config import KVApiConfig
from kvgate.messages import Headers, Request
from kvgate.metrics import Metrics
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.host import HostConfig, HostTier

MSGPACK = "application/msgpack"
CREDENTIAL = Credential("load-key", "a-secret-of-some-length")
SPACE = Space(
    model="loadtest", weights="0" * 40, tokenizer="0" * 64, dtype="I8", layers=1, kv_heads=1, head_dim=1,
    attention="mqa", rope={}, lora="none", multimodal="none", chunk_tokens=1, hash_scheme=HASH_SCHEME,
    layout_version=LAYOUT_VERSION,
)  # fmt: skip


class Body:
    """A request body that is there already."""

    def __init__(self, body: bytes) -> None:
        self._rest = memoryview(body)

    async def readinto(self, view: memoryview) -> int:
        count = min(len(self._rest), len(view))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def request(path: str, members: dict[str, object]) -> Request:
    body = msgpack.packb(members)
    headers = {"host": "gateway", "content-length": str(len(body)), "content-type": MSGPACK, "accept": MSGPACK}
    headers |= sign(
        CREDENTIAL, "POST", path, "", headers, region="us-east-1", now=time.time(),
        payload_hash=hashlib.sha256(body).hexdigest(),
    )  # fmt: skip
    return Request("POST", path, "", Headers(headers.items()), Body(body))


async def fill(store: Store, tenants: Tenants, chunks: int) -> list[bytes]:
    (tenant,) = tenants
    start = root(SPACE.digest, tenant.salt)
    hashes = list(chain_hashes(start, list(range(chunks)), 1))

    async def put(key: str, body: bytes) -> None:
        async with await store.open_write(tenant, "bucket", key, len(body)) as write:
            (view,) = await write.views()
            view[: len(body)] = body
            write.digest(view[: len(body)])
            write.advance()
            await write.commit({})

    await put(str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    for index, chunk_hash in enumerate(hashes):
        parent = hashes[index - 1] if index else start
        header = ChunkHeader.encode(SPACE, chunk_hash, parent, index)
        await put(str(ChunkKey(SPACE.id, chunk_hash.hex())), header + bytes(SPACE.layout.nbytes))
    return hashes


async def rate(api: KVApi, requests: list[Request], hashes: int) -> tuple[float, float]:
    """Hashes a second by wall clock and by CPU time, over all of `requests` and the release of what they lease."""
    wall, cpu = time.perf_counter(), time.process_time()
    answers = [await api.handle(each, "request-id") for each in requests]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    leases = []
    for answer in answers:
        assert isinstance(answer.body, bytes)
        members = msgpack.unpackb(answer.body)
        assert members["matched"] == hashes, members
        leases.append(request("/_kv/v1/release", {"lease": members["lease"]}))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for lease in leases:
        assert (await api.handle(lease, "request-id")).status == 200
    total = hashes * len(requests)
    return total / (time.perf_counter() - wall), total / (time.process_time() - cpu)


def floor(table: dict[bytes, object], runs: list[bytes]) -> tuple[float, float]:
    """The same for a loop over a dict."""
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    for run in runs:
        for start in range(0, len(run), HASH_NBYTES):
            if table.get(run[start : start + HASH_NBYTES]) is None:
                raise SystemExit("a hash is missing")
            count += 1
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


async def measure(options: argparse.Namespace) -> None:
    key = AccessKeyConfig(CREDENTIAL.access_key, Secret(CREDENTIAL.secret_key))
    tenants = Tenants({"load": TenantConfig((key,), ("bucket",))})
    memory = HostTier(HostConfig(capacity=Size(options.chunks * 8192 + 64 * MiB)))
    metrics = Metrics()
    async with open_store(memory, [], tenants, config=StoreConfig(), metrics=metrics, catalog=None) as store:
        api = KVApi(store, Authenticator(tenants, time.time), KVApiConfig(max_hashes=options.hashes), Local(bytes(16)))
        hashes = await fill(store, tenants, options.chunks)
        table: dict[bytes, object] = dict.fromkeys(hashes, store)
        rng = random.Random(1)
        calls: list[tuple[float, float]] = []
        bare: list[tuple[float, float]] = []
        end = time.monotonic() + options.seconds
        while time.monotonic() < end or not calls:
            starts = [rng.randrange(options.chunks - options.hashes + 1) for _ in range(4)]
            runs = [b"".join(hashes[start : start + options.hashes]) for start in starts]
            question = {"bucket": "bucket", "space": SPACE.id, "lease_s": 10}
            requests = [request("/_kv/v1/match", {**question, "hashes": run}) for run in runs]
            calls.append(await rate(api, requests, options.hashes))
            bare.append(floor(table, runs))
    print(f"{options.chunks} chunks, {options.hashes} hashes a call, {len(calls)} rounds of 4 calls: M hashes/s")
    for name, column in (("wall", 0), ("CPU", 1)):
        called, looped = (sorted(row[column] / 1e6 for row in rows) for rows in (calls, bare))
        ratio = statistics.median(called) / statistics.median(looped)
        print(
            f"{name:>5}: match median {statistics.median(called):.2f}, best {called[-1]:.2f}   "
            f"dict loop median {statistics.median(looped):.2f}, best {looped[-1]:.2f}   ratio of medians {ratio:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--hashes", type=int, default=16_384)
    parser.add_argument("--seconds", type=float, default=3.0)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
