"""The directory of gateways, in a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvgate.auth.sigv4 import Credential
from kvgate.config import Seconds, Secret
from kvgate.errors import ConfigError, TierAway
from kvgate.tiers.peer import PeerConfig, PeerTier
from kvgate.tiers.peer_directory import Directory

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
A, B, C = (f"http://127.0.0.1:{number}" for number in (1, 2, 3))

pytestmark = pytest.mark.skipif(SERVER is None, reason="no Redis server is installed")


class RedisServer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert SERVER is not None
        socket = self._folder / "redis.sock"
        self.process = subprocess.Popen(
            [SERVER, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 30
        while not socket.exists():
            assert time.monotonic() < end, "the Redis server does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
        (self._folder / "redis.sock").unlink(missing_ok=True)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


async def test_gateways_find_each_other_and_not_themselves(redis: RedisServer) -> None:
    first, second, reader = (Directory(redis.url, "k", 60, mine) for mine in (A, B, None))
    assert await first.beat() == []
    assert await second.beat() == [A]
    assert await first.beat() == [B]
    assert sorted(await reader.beat()) == [A, B]
    await first.leave()
    assert await reader.beat() == [B]
    await second.leave()
    await reader.leave()


async def test_each_key_is_a_directory_of_its_own(redis: RedisServer) -> None:
    first, second = Directory(redis.url, "one", 60, A), Directory(redis.url, "two", 60, B)
    await first.beat()
    assert await second.beat() == []
    await first.leave()
    await second.leave()


async def test_gateway_that_died_vanishes(redis: RedisServer) -> None:
    dead, alive = Directory(redis.url, "k", 0.5, A), Directory(redis.url, "k", 60, B)
    await dead.beat()
    async with asyncio.timeout(30):
        while await alive.beat():
            await asyncio.sleep(0.05)
    await dead.leave()
    await alive.leave()


async def test_what_is_no_url_of_a_gateway_is_passed_over(redis: RedisServer) -> None:
    reader = Directory(redis.url, "k", 60, None)
    junk = ["", "ftp://x", "http://a/b", "http://user:pass@a:1", "http://a:9000/", "é" * 10, "http://" + "a" * 600, C]
    await reader._redis.zadd("k", dict.fromkeys(junk, time.time() + 60))
    assert await reader.beat() == [C]
    await reader.leave()


async def test_directory_that_is_away_is_said_to_be(redis: RedisServer) -> None:
    directory = Directory(redis.url, "k", 3, A)
    await directory.beat()
    redis.stop()
    with pytest.raises(TierAway):
        await directory.beat()
    await directory.leave()


def test_url_that_is_none_of_a_redis() -> None:
    with pytest.raises(ConfigError) as raised:
        Directory("http://:hush@10.0.0.1", "k", 1, None)
    assert "hush" not in str(raised.value)


async def test_tier_keeps_up_with_who_is_there(redis: RedisServer) -> None:
    first, second = tier(redis, A, ttl_s=0.6), tier(redis, B, ttl_s=0.6)
    await first.start(lambda _: None)
    await second.start(lambda _: None)
    await until(lambda: list(first._peers) == [B] and list(second._peers) == [A])
    redis.stop()
    await asyncio.sleep(1.5)  # several times as long as an entry lasts
    assert (list(first._peers), list(second._peers)) == ([B], [A])  # who was there when the directory went
    redis.start()
    await second.close()
    await until(lambda: not first._peers)
    await first.close()


async def test_gateway_starts_without_its_directory(redis: RedisServer) -> None:
    redis.stop()
    peers = tier(redis, A, ttl_s=0.6)
    await peers.start(lambda _: None)
    assert await peers.lookup([]) == []
    redis.start()
    other = Directory(redis.url, "kvgate:gateways", 60, B)
    await other.beat()
    await until(lambda: list(peers._peers) == [B])
    await peers.close()
    await other.leave()


def tier(redis: RedisServer, mine: str, *, ttl_s: float) -> PeerTier:
    made = PeerTier(PeerConfig(directory=Secret(redis.url), advertise=mine, directory_ttl=Seconds(ttl_s)))
    made.join(Credential("CLUSTERKEY", "cluster-secret-0123456789"))
    return made


async def until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)
