"""Real gateways for the tests: `kvgate serve` in a process of its own, on ports and a folder of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

START_S = 240.0


@dataclass(frozen=True, slots=True)
class Credential:
    access_key: str
    secret_key: str

    def as_config(self) -> dict[str, str]:
        """An entry of `access_keys`, which a test may change."""
        return {"access_key": self.access_key, "secret_key": self.secret_key}


ALPHA = Credential("ALPHAKEY0000", "alpha-secret-0123456789abcdef")
BETA = Credential("BETAKEY00000", "beta-secret-0123456789abcdef")


def default_config(folder: Path) -> dict[str, Any]:
    """Two tenants, 256 MiB of memory, 2 GiB of disk."""
    return {
        "listen": {"host": "127.0.0.1", "port": free_port(), "admin_port": free_port()},
        "tenants": {
            "alpha": {"access_keys": [ALPHA.as_config()], "buckets": ["alpha-bucket", "shared-name"]},
            "beta": {"access_keys": [BETA.as_config()], "buckets": ["beta-bucket", "shared-name"]},
        },
        "tiers": {
            "host": {"capacity": "256MiB", "prefault": "32MiB"},
            "disk": {"path": str(folder / "disk"), "capacity": "2GiB"},
        },
        "store": {},
    }


@dataclass
class RunningGateway:
    """One gateway. `config` may be changed between `stop` and `start`."""

    folder: Path
    config: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config['listen']['port']}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.config['listen']['admin_port']}"

    @property
    def port(self) -> int:
        return int(self.config["listen"]["port"])

    @property
    def disk(self) -> Path:
        return Path(self.config["tiers"]["disk"]["path"])

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def start(self) -> RunningGateway:
        path = self.folder / "kvgate.yaml"
        path.write_text(yaml.safe_dump(self.config))
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(path)],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log}")
            if self.is_ready():
                return self
            time.sleep(0.02)
        raise AssertionError(f"the gateway was not ready in {START_S} s:\n{self.log}")

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.admin_url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> int:
        """SIGTERM and wait: the gateway drains. Its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def kill(self) -> None:
        """SIGKILL and wait."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, by name and labels as they are written there."""
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def answered(self, operation: str) -> float:
        """How many calls of this name it has answered."""

        def count() -> float:
            return sum(
                value
                for name, value in self.metrics().items()
                if name.startswith("kvgate_requests_total") and f'operation="{operation}"' in name
            )

        counts = [-1.0, count()]
        while counts[-1] != counts[-2]:  # an answer is counted when its last byte has left
            time.sleep(0.05)
            counts.append(count())
        return counts[-1]

    def descriptors(self) -> int:
        """How many descriptors the gateway has open, without those of memory segments that it keeps for later."""
        assert self.process is not None
        count = 0
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += not str(path.readlink()).startswith("/memfd:")
        return count


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 11
PORTS = (10_000 + 2000 * _WORKER, 12_000 + 2000 * _WORKER)
"""Each process that runs tests has ports of its own, so that none takes what another has just found free."""


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, outside of the range from which the kernel takes those of connections."""
    while True:
        port = random.randrange(*PORTS)
        if port in _given and len(_given) < (PORTS[1] - PORTS[0]) // 2:
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            _given.add(port)
            return port
