"""A gateway to load: `kvgate serve` in a process of its own, with one tenant and one bucket."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import signed
import yaml
from processes import end, free_port, wait_until

from kvgate.auth.sigv4 import Credential

ACCESS_KEY, SECRET_KEY = "LOADTESTKEY", "loadtest-secret-0123456789"
CREDENTIAL = Credential(ACCESS_KEY, SECRET_KEY)
BUCKET = "bucket"


class Gateway:
    """One gateway on a folder. It can be started again after a stop, on what its disk tier has kept."""

    def __init__(
        self,
        folder: Path,
        tiers: dict[str, Any],
        store: dict[str, Any] | None = None,
        listen: dict[str, Any] | None = None,
    ) -> None:
        """tiers, store, listen: those parts of the configuration, `listen` beside its ports. Nothing runs yet."""
        self.port, self.admin_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self.config = {
            "listen": {"port": self.port, "admin_port": self.admin_port, **(listen or {})},
            "tenants": {
                "load": {"access_keys": [{"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}], "buckets": [BUCKET]}
            },
            "tiers": tiers,
            "store": store or {},
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it is ready. Raises RuntimeError when it does not come up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path, log = self._folder / "kvgate.yaml", self._folder / "kvgate.log"
        path.write_text(yaml.safe_dump(self.config))
        command = [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(path), "--log-level", "warning"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_until(lambda: ready(self.admin_port), self.process, log)

    def stop(self) -> None:
        """End it. Idempotent."""
        end(self.process)

    def ask(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of a KV call, in JSON both ways. Raises RuntimeError when it is refused."""
        more = {"content-type": "application/json"}
        headers = signed.headers(CREDENTIAL, self.port, "POST", path, more)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps(question).encode(), headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"POST {path} was answered {answer.status}: {body.decode(errors='replace')[:200]}")
        found = json.loads(body)
        assert isinstance(found, dict)
        return found

    def metric(self, name: str) -> float:
        """A sample of /metrics, by its name and labels as they are written there; 0 when there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def ready(admin_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
