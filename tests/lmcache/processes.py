"""Processes of LMCache, of the environment that `.ci/lmcache` makes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from tests.gateways import ALPHA, RunningGateway, free_port

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".cache" / "lmcache"
START_S, ANSWER_S, UPLOADS_S = 60.0, 60.0, 30.0


def why_unavailable() -> str | None:
    """Why LMCache cannot run here, or None if it can."""
    if (ENVIRONMENT / "installed").exists():
        return None
    reason = ENVIRONMENT.with_suffix(".unavailable")
    return reason.read_text() if reason.exists() else "LMCache is not installed: run .ci/lmcache"


class LMCacheProcess:
    """A Python process in LMCache's environment. What it writes goes to a log of its own."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        environment = os.environ | {
            "PYTHONHASHSEED": "0",  # LMCache's keys depend on it
            "LMCACHE_TRACK_USAGE": "false",
            "LMCACHE_DISABLE_BANNER": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("PYTHONPATH", None)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / "python"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # so that `close` also ends what it starts
            )

    def close(self) -> None:
        """Kill it and what it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def failure(self, what: str) -> AssertionError:
        return AssertionError(f"{what}:\n{self.log.read_text()[-4000:]}")


class Engine(LMCacheProcess):
    """One of the engines beside this file. It starts in the background; the first `ask` waits for it."""

    def __init__(self, log: Path, script: str, *arguments: str) -> None:
        super().__init__(log, str(HERE / script), *arguments)
        self.ready = False

    def ask(self, do: str, seed: int, tokens: int, **options: Any) -> Any:
        """The answer of the engine's method `do` about a prompt; see `prompts.prompt` for the options."""
        if not self.ready:
            assert self._answer(START_S) == "ready"
            self.ready = True
        command = json.dumps({"do": do, "seed": seed, "tokens": tokens} | options)
        self._pipe(self.process.stdin).write(command.encode() + b"\n")
        self._pipe(self.process.stdin).flush()
        return self._answer(ANSWER_S)

    def _answer(self, within_s: float) -> Any:
        answers = self._pipe(self.process.stdout)
        line = answers.readline() if select.select([answers], [], [], within_s)[0] else b""
        if not line:
            raise self.failure(f"no answer from {self.process.args!r}")
        return json.loads(line)

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


class LMCacheServer(LMCacheProcess):
    """LMCache's server of multiprocess mode, as `lmcache server` starts it, with S3 as its only second tier."""

    def __init__(self, log: Path, s3_port: int, chunk_tokens: int) -> None:
        self.port, self._http_port = free_port(), free_port()
        adapter = {"type": "s3", "s3_endpoint": f"s3://127.0.0.1:{s3_port}"} | s3_options()
        super().__init__(
            log,
            *("-m", "lmcache.cli.main", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--http-port", str(self._http_port), "--supported-transfer-mode", "auto", "--disable-observability"),
            *("--chunk-size", str(chunk_tokens), "--l1-size-gb", "0.25", "--no-l1-use-lazy"),
            *("--eviction-policy", "LRU", "--l2-adapter", json.dumps(adapter)),
        )

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def clear_memory(self) -> None:
        """Forget what is in the server's memory, so that loads come from S3."""
        self._call("POST", "/cache/clear")

    def objects(self, model: str) -> list[dict[str, Any]]:
        """What the server lists in S3, two objects a page."""
        entries, token = [], None
        while True:
            query = {"tier": "l2", "model_name": model, "page_size": 2} | ({"page_token": token} if token else {})
            page = self._call("GET", "/cache/objects?" + urllib.parse.urlencode(query))
            entries += page["entries"]
            token = page["next_page_token"]
            if not token:
                return entries

    def wait_for_objects(self, model: str, count: int) -> list[dict[str, Any]]:
        """The same, once there are `count` of them: uploads follow stores in the background."""
        deadline = time.monotonic() + UPLOADS_S
        while len(entries := self.objects(model)) < count:
            if time.monotonic() > deadline:
                raise self.failure(f"{len(entries)} of {count} objects were uploaded")
            time.sleep(0.05)
        return entries

    def delete(self, keys: list[dict[str, Any]]) -> int:
        """Delete objects in S3, by their keys as `objects` has them; returns how many."""
        answer = self._call("DELETE", "/cache/objects", {"tier": "l2", "keys": keys})
        return int(answer["deleted"])

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._call("GET", "/")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self.failure("LMCache's server did not start") from None
                time.sleep(0.05)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._http_port}{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.load(answer)


def s3_options() -> dict[str, Any]:
    """What both of LMCache's S3 clients are told."""
    return {
        "s3_region": "us-east-1",
        "s3_num_io_threads": 2,
        "disable_tls": True,
        "aws_access_key_id": ALPHA.access_key,
        "aws_secret_access_key": ALPHA.secret_key,
    }


def requests(gateway: RunningGateway) -> dict[str, int]:
    """How many requests the gateway has answered since its start, by operation and status, as `GetObject 206`."""
    counts = {}
    for name, value in gateway.metrics().items():
        if name.startswith("kvgate_requests_total{"):
            operation, status = name.split('"')[1::2]
            counts[f"{operation} {status}"] = int(value)
    return counts
