"""Engines in processes of their own, to be killed and stopped, and what they say."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time

from tests.gateways import ALPHA, RunningGateway


class Engine:
    """A module that attaches to a gateway as alpha, in a process of its own."""

    def __init__(self, module: str, gateway: RunningGateway, *arguments: object) -> None:
        who = [gateway.config["listen"]["shm_socket"], ALPHA.access_key, ALPHA.secret_key]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *who, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self.arrived: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            self.arrived.put(line.strip())

    def wait_for(self, word: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.arrived.get(timeout=max(0.01, deadline - time.monotonic())).startswith(word):
            pass

    def kill(self) -> list[str]:
        self.process.kill()
        self.process.wait()
        self.thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not [line for line in self.lines if line.startswith("WRONG")]
        return self.lines
