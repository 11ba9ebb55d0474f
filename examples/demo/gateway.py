"""The gateway of the demo, in a process of its own."""

# ruff: noqa: S603  (it runs kvgate)
from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import yaml

from kvgate.client.sync import Client

_START_S = 30.0
_STOP_S = 30.0


class Gateway:
    """`kvgate serve` on free ports of 127.0.0.1, with memory and disk tiers in `folder`."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.port, self.admin_port = _free_ports(2)
        self.access_key, self.secret_key = "DEMOKEY00000", secrets.token_hex(20)
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = folder / "kvgate.yaml"
        self._log = folder / "kvgate.log"
        key_pair = {"access_key": self.access_key, "secret_key": self.secret_key}
        config = {
            "listen": {"host": "127.0.0.1", "port": self.port, "admin_port": self.admin_port},
            "tenants": {"demo": {"access_keys": [key_pair], "buckets": [bucket]}},
            "tiers": {"host": {"capacity": "1GiB"}, "disk": {"path": str(folder / "disk"), "capacity": "4GiB"}},
        }
        self._config.write_text(yaml.safe_dump(config))
        self._config.chmod(0o600)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client needs to know."""
        return os.environ | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_PAGER": "",
        }

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(self._config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end_s = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end_s:
                sys.exit(f"the gateway did not start:\n{self._log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Let it write down what is only in memory, and end. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def held(self) -> str:
        """What lies in each tier, in words."""
        with Client(self.url, self.access_key, self.secret_key) as client:
            tiers = client.stats().tiers
        return ", ".join(f"{name}: {usage.objects} objects" for name, usage in tiers.items())

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]
