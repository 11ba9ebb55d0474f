"""Workers in processes of their own, under an interpreter that has NIXL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
WAIT_S = 60.0


class PeerProcess:
    """A `peer.py`. Calls wait for the answer; events are gathered meanwhile."""

    def __init__(self, python: str, **options: Any) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NIXL_LOG_LEVEL": "FATAL", "UCX_LOG_LEVEL": "fatal"}
        self._process = subprocess.Popen(
            [python, "-m", "tests.engine_adapters.nixl.peer", json.dumps(options)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._changed = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._calls = 0
        self.events: list[tuple[str, str, str]] = []
        """(kind, request, reason), as they came."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address: tuple[str, int] = tuple(self._wait_for_answer(0))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if not text.startswith("{"):
                continue
            line = json.loads(text)
            with self._changed:
                if "event" in line:
                    self.events.append((line["event"], line["request"], line["reason"]))
                else:
                    self._answers[line["answer"]] = line
                self._changed.notify_all()

    def _wait_for_answer(self, number: int) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._answers, WAIT_S), "the peer does not answer"
            line = self._answers.pop(number)
        if "error" in line:
            raise RuntimeError(line["error"])
        return line["value"]

    def call(self, do: str, **arguments: Any) -> Any:
        """The value that a command gives. Raises RuntimeError with the words of what the command raised."""
        assert self._process.stdin is not None
        self._calls += 1
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._wait_for_answer(self._calls)

    def event_of(self, request: str, timeout_s: float = WAIT_S) -> tuple[str, str]:
        """The kind and the reason of the one event that a request gets."""
        self.until(lambda: any(event[1] == request for event in self.events), timeout_s)
        found = [event for event in self.events if event[1] == request]
        assert len(found) == 1, found
        return found[0][0], found[0][2]

    def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), self.events

    def until_stats(self, condition: Callable[[dict[str, int]], bool], timeout_s: float = WAIT_S) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition(stats := self.call("stats")):
            assert time.monotonic() < end_s, stats
            time.sleep(0.02)

    def stop(self) -> None:
        """Freeze the process until `go_on`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(WAIT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def python_with_nixl() -> str | None:
    """An interpreter that can load NIXL: the one of the engine's tests, else this one."""
    for python in (os.environ.get("KVGATE_NIXL_PYTHON", ""), str(ROOT / ".cache/vllm/bin/python"), sys.executable):
        if python and Path(python).exists():
            found = subprocess.run(
                [python, "-c", "import nixl, msgpack, awscrt, numpy"], capture_output=True, timeout=120, check=False
            )
            if found.returncode == 0:
                return python
    return None
