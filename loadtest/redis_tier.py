"""The redis tier beside redis-py's own asyncio client: the same bytes, to and from the same server, in turns.

Puts are a whole object, from the arena: body, head and all. Gets end in the arena, every block verified. redis-py
sends the same bytes with one SET from memory that it joins and copies, and hands out new bytes from one GET, verified
by nobody; for pieces of the tier's length it is asked as well, in a pipeline. Lookups are of 512 names, half of them
there, beside redis-py's pipeline of as many GETs of the heads. Ratios above 1 mean that the tier is faster.

    python loadtest/redis_tier.py                        # redis-server, on loopback
    python loadtest/redis_tier.py --server valkey-server
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio
from peers.valkey import valkey_server
from processes import accepts, cpu_s, end, free_port, wait_until

from kvgate.config import MiB
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BlockDigest
from kvgate.tiers.base import HERE, Name, Record
from kvgate.tiers.redis import RedisConfig, RedisTier

SIZES = (1, 4, 32)
NAMES = 512
BUDGET_NBYTES = 256 * MiB
"""So much is moved in each direction by each client for each size."""


class Bench:
    """One tier, one plain client, and memory for both."""

    def __init__(self, tier: RedisTier, plain: redis.asyncio.Redis, arena: Arena) -> None:
        self.tier = tier
        self.plain = plain
        self.arena = arena

    async def size(self, mib: int) -> dict[str, float]:
        """Seconds an object of this size takes, the median over the rounds, by direction and client."""
        body = os.urandom(mib << 20)
        digest = BlockDigest()
        digest.update(memoryview(body))
        record = Record("tenant", "bucket", f"k{mib}", len(body), digest.value, 0)
        piece = self.tier.piece_nbytes
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
        source, target = self.arena.reserve("tenant", len(body)), self.arena.reserve("tenant", len(body))
        at = 0
        for view in source.views:
            view[:] = body[at : at + len(view)]
            at += len(view)

        async def put() -> None:
            upload = await self.tier.begin("tenant", record.nbytes)
            await upload.write(source, 0, record.nbytes)
            await upload.finish(record, digest.blocks)

        async def get() -> None:
            await self.tier.open(record, HERE).read_into(0, target, record.nbytes)

        async def plain_put() -> None:
            await self.plain.set("plain", body)

        async def plain_get() -> None:
            assert len(await self.plain.get("plain")) == len(body)

        async def plain_put_pieces() -> None:
            async with self.plain.pipeline(transaction=False) as pipeline:
                for number, part in enumerate(pieces):
                    pipeline.hset("pieces", str(number), part)
                await pipeline.execute()

        async def plain_get_pieces() -> None:
            async with self.plain.pipeline(transaction=False) as pipeline:
                for number in range(len(pieces)):
                    pipeline.hget("pieces", str(number))
                assert len(await pipeline.execute()) == len(pieces)

        async def delete() -> None:
            await self.tier.delete(record, HERE)

        taken: dict[str, list[float]] = {}
        for _ in range(max(3, BUDGET_NBYTES // len(body))):
            for name, work in (
                ("put", put),
                ("plain put", plain_put),
                ("pieces put", plain_put_pieces),
                ("get", get),
                ("plain get", plain_get),
                ("pieces get", plain_get_pieces),
            ):
                taken.setdefault(name, []).append(await timed(work))
            assert b"".join(bytes(view) for view in target.views) == body
            await delete()
        source.release()
        target.release()
        return {name: statistics.median(seconds) for name, seconds in taken.items()}

    async def lookups(self) -> dict[str, float]:
        """Seconds that a lookup of NAMES names takes, half of them there."""
        names = [Name("tenant", "bucket", f"kv/{'0' * 64}/{number:064x}") for number in range(NAMES)]
        with self.arena.reserve("tenant", 1000) as lease:
            digest = BlockDigest()
            for view in lease.views:
                digest.update(view)
            for name in names[::2]:
                upload = await self.tier.begin("tenant", 1000)
                await upload.write(lease, 0, 1000)
                await upload.finish(Record(*name, 1000, digest.value, 0), digest.blocks)

        async def look_up() -> None:
            found = await self.tier.lookup(names)
            assert len([record for record in found if record is not None]) == NAMES // 2

        async def plain() -> None:
            async with self.plain.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.get(self.tier.head_key(name))
                assert len(await pipeline.execute()) == NAMES

        taken: dict[str, list[float]] = {"tier": [], "plain": []}
        for _ in range(20):
            taken["tier"].append(await timed(look_up))
            taken["plain"].append(await timed(plain))
        return {name: statistics.median(seconds) for name, seconds in taken.items()}


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """How many seconds `work` takes."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def run(port: int) -> None:
    """Measure, and print one line a size."""
    tier = RedisTier(RedisConfig(url=f"redis://127.0.0.1:{port}"))
    await tier.start(lambda _: None)
    plain = redis.asyncio.Redis(port=port, protocol=2)
    arena = Arena(256 * MiB)
    bench = Bench(tier, plain, arena)
    print(f"{'':>8} {'tier':>9} {'SET, GET':>9} {'ratio':>6} {'pieces':>9} {'ratio':>6}   (MiB/s)")
    for mib in SIZES:
        taken = await bench.size(mib)
        for way in ("put", "get"):
            ours, plain_s, pieces_s = taken[way], taken[f"plain {way}"], taken[f"pieces {way}"]
            print(
                f"{mib:>4} {way} {mib / ours:>9.0f} {mib / plain_s:>9.0f} {plain_s / ours:>6.2f} "
                f"{mib / pieces_s:>9.0f} {pieces_s / ours:>6.2f}"
            )
    found = await bench.lookups()
    print(
        f"lookup of {NAMES}: {found['tier'] * 1e3:.1f} ms, "
        f"redis-py's pipeline of GETs {found['plain'] * 1e3:.1f} ms, ratio {found['plain'] / found['tier']:.2f}"
    )
    await plain.aclose()
    await tier.close()
    arena.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="redis-server", help="program to start (default: %(default)s)")
    arguments = parser.parse_args()
    program = valkey_server() if arguments.server == "valkey-server" else arguments.server
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with (log := Path(folder) / "log").open("wb") as output:
            process = subprocess.Popen(command, stdout=output)
        try:
            wait_until(lambda: accepts(port), process, log)
            began_s = time.process_time()
            asyncio.run(run(port))
            print(f"CPU: this process {time.process_time() - began_s:.1f} s, the server {cpu_s(process.pid):.1f} s")
        finally:
            end(process)


if __name__ == "__main__":
    main()
