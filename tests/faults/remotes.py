"""Real servers of remote tiers, each behind a fault proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvgate.auth.sigv4 import Credential
from kvgate.client.sync import Client
from kvgate.tiers.base import Name, SharedTier
from kvgate.tiers.peer import PeerConfig, PeerTier
from kvgate.tiers.redis import RedisConfig, RedisTier
from kvgate.tiers.s3 import S3Tier
from tests.faults.proxy import (
    Bandwidth,
    Blackhole,
    Corrupt,
    Cut,
    Delay,
    Fault,
    FaultProxy,
    Refuse,
    Reply,
    Status,
    Truncate,
)
from tests.gateways import ALPHA, RunningGateway, default_config
from tests.stores import Seaweed
from tests.tiers.redis_servers import Server

FAULTS: dict[str, Fault] = {
    "delay 200 ms": Delay(0.2),
    "delay 5 s": Delay(5.0),
    "bandwidth 200 kB/s": Bandwidth(200_000),
    "cut at once": Cut(0),
    "cut in the head": Cut(150),
    "cut in the body": Cut(300_000),
    "cut in an upload": Cut(100_000, direction="request"),
    "RST at once": Cut(0, how="reset"),
    "RST in the body": Cut(300_000, how="reset"),
    "truncate the head": Truncate(40, 3),
    "truncate the body": Truncate(300_000, 1000),
    "corrupt answers": Corrupt(every=20_000),
    "corrupt heads": Corrupt(every=300),
    "corrupt requests": Corrupt(every=20_000, direction="request"),
    "503": Status(503),
    "blackhole": Blackhole(),
    "refuse": Refuse(),
}
"""By what an operator would call them."""

ON_THEIR_PROTOCOL: dict[str, dict[str, Fault]] = {
    "redis": {"503": Reply(b"-LOADING Redis is loading the dataset in memory\r\n")},
}
"""What a server that is not ready answers in another protocol than HTTP."""


@dataclass
class Remote:
    """A server, a proxy before it, and how a tier on either is made.

    make:    a tier that reaches the server at this port
    options: of the tier in a gateway's configuration, the same way
    put:     puts an object where the tier finds it, if the tier itself is only read
    """

    kind: str
    port: int
    proxy: FaultProxy
    make: Callable[[int], SharedTier]
    options: Callable[[int], dict[str, Any]] = field(repr=False)
    put: Callable[[str, bytes], Name] | None = field(default=None, repr=False)

    def fault(self, name: str) -> Fault:
        fault = ON_THEIR_PROTOCOL.get(self.kind, {}).get(name, FAULTS[name])
        return replace(fault)  # one of its own, so that offsets count from now


@contextmanager
def redis_remote(folder: Path) -> Iterator[Remote]:
    server = Server(folder, "redis-server")
    try:
        with FaultProxy(server.port) as proxy:
            yield Remote(
                "redis",
                server.port,
                proxy,
                lambda port: RedisTier(RedisConfig(url=f"redis://127.0.0.1:{port}")),
                lambda port: {"kind": "redis", "url": f"redis://127.0.0.1:{port}"},
            )
    finally:
        server.kill()


@contextmanager
def s3_remote(folder: Path) -> Iterator[Remote]:
    server = Seaweed(folder)
    server.start()
    try:
        port = int(server.store.endpoint.rpartition(":")[2])
        store = server.store
        with FaultProxy(port) as proxy:
            yield Remote(
                "s3",
                port,
                proxy,
                lambda port: S3Tier(replace(store, endpoint=f"http://127.0.0.1:{port}").config()),
                lambda port: {
                    "kind": "s3",
                    "endpoint": f"http://127.0.0.1:{port}",
                    "bucket": store.bucket,
                    "access_key": store.access_key,
                    "secret_key": store.secret_key,
                },
            )
    finally:
        server.kill()


@contextmanager
def peer_remote(folder: Path) -> Iterator[Remote]:
    cluster = Credential("CLUSTERKEY000", "cluster-secret-0123456789abcdef")
    bucket = "alpha-bucket"
    config = default_config(folder) | {"cluster": vars_of(cluster)}
    gateway = RunningGateway(folder, config).start()

    def make(port: int) -> SharedTier:
        tier = PeerTier(PeerConfig(urls=(f"http://127.0.0.1:{port}",)))
        tier.join(cluster)
        return tier

    def put(key: str, body: bytes) -> Name:
        with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, local=False) as client:
            client.put(bucket, key, body)
        return Name("alpha", bucket, key)

    try:
        with FaultProxy(gateway.port) as proxy:
            yield Remote("peer", gateway.port, proxy, make, lambda port: {"urls": [f"http://127.0.0.1:{port}"]}, put)
    finally:
        gateway.kill()


def vars_of(credential: Credential) -> dict[str, str]:
    """As the configuration has it."""
    return {"access_key": credential.access_key, "secret_key": credential.secret_key}


REMOTES = {"redis": redis_remote, "s3": s3_remote, "peer": peer_remote}
