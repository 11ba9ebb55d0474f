"""Real vLLM for the tests: its engine, or its server, in processes of the environment that `.ci/vllm` makes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateways import ALPHA, Credential, RunningGateway, free_port

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
ENVIRONMENT = REPOSITORY / ".cache" / "vllm"
MODELS = REPOSITORY / ".cache" / "models"

SMOLLM2 = MODELS / "smollm2-135m-instruct-bf16"
LLAMA, MLA, SLIDING = MODELS / "tiny-llama", MODELS / "tiny-mla", MODELS / "tiny-sliding"
LORA_ONE, LORA_TWO = MODELS / "lora" / "one" / "style", MODELS / "lora" / "two" / "style"

BLOCK_TOKENS = 32
START_S, ANSWER_S, REQUESTS_S = 600.0, 120.0, 600.0


def why_unavailable() -> str | None:
    """Why vLLM cannot run here, or None if it can."""
    if (ENVIRONMENT / "installed").exists() and (MODELS / "made").exists():
        return None
    reason = ENVIRONMENT.with_suffix(".unavailable")
    return reason.read_text() if reason.exists() else "vLLM is not installed: run .ci/vllm"


def engine_arguments(model: Path, **changes: Any) -> dict[str, Any]:
    """vLLM's arguments for a start that is quick, memory that is small and KV that other processes can use.

    With an explicit size of the cache and without compilation, vLLM runs nothing before the first request. With MLA,
    vLLM 0.32.0's kernel for RoPE on CPUs rotates the first token of every step twice, so that what a model says depends
    on where its steps begin: it does without that kernel here.
    """
    native = {"compilation_config": {"custom_ops": ["none"]}} if model == MLA else {}
    return {
        "model": str(model),
        "max_model_len": 4096,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 128 << 20,
        "block_size": BLOCK_TOKENS,
        "prefix_caching_hash_algo": "sha256_cbor",
        "enforce_eager": True,
    } | (native | changes)


def connector(
    gateway: RunningGateway, credential: Credential = ALPHA, bucket: str = "alpha-bucket", **extra: Any
) -> dict[str, Any]:
    """The `kv_transfer_config` with which vLLM keeps its KV in this gateway."""
    credentials = gateway.folder / f"{credential.access_key}.yaml"
    with os.fdopen(os.open(credentials, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"url": gateway.url} | credential.as_config(), file)
    return {
        "kv_connector": "KVGateConnector",
        "kv_connector_module_path": "engine_adapters.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"bucket": bucket, "credentials": str(credentials)} | extra,
    }


@dataclass(frozen=True)
class Request:
    """A prompt, as token ids or text, and what belongs to it; `abort_after` so many new tokens it is aborted."""

    prompt: list[int] | str
    max_tokens: int = 8
    lora: Path | None = None
    salt: str | None = None
    abort_after: int | None = None
    kv_transfer_params: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"lora": str(self.lora) if self.lora else None}


@dataclass(frozen=True)
class Result:
    """What became of a request. Its prompt's tokens are local, external or computed: where their KV came from."""

    id: str
    tokens: list[int]
    text: str
    finish: str | None
    prompt_tokens: int
    local_tokens: int
    external_tokens: int
    computed_tokens: int
    total_s: float
    ttft_s: float | None = None
    kv_transfer_params: dict[str, Any] | None = None


def process_environment() -> dict[str, str]:
    return {
        "PYTHONPATH": str(REPOSITORY),  # the adapters of this tree, wherever the environment was made
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines that run at the same time would all take the same core
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class VLLMProcess:
    """A Python process in vLLM's environment. What it writes goes to a log of its own."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / "python"), *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env=os.environ | process_environment() | environment,
                start_new_session=True,  # so that `kill` also ends what it starts
            )

    def kill(self) -> None:
        """SIGKILL for it and what it started."""
        kill_group(self.process.pid)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def failure(self, what: str) -> AssertionError:
        return failure(what, self.log)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def failure(what: str, log: Path) -> AssertionError:
    return AssertionError(f"{what}:\n{log.read_text(errors='replace')[-6000:]}" if log.exists() else what)


class Importer(VLLMProcess):
    """The process that has imported vLLM and forks the engines; see driver.py."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="vllm-")
        self.socket = Path(self.folder.name, "engines")
        super().__init__(Path(self.folder.name, "log"), str(HERE / "driver.py"), str(self.socket))
        atexit.register(self.kill)

    def connect(self) -> socket.socket:
        """A connection that is going to be an engine."""
        deadline = time.monotonic() + START_S
        connection = socket.socket(socket.AF_UNIX)
        while True:
            try:
                connection.connect(str(self.socket))
                return connection
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self.failure("vLLM could not be imported") from None
                time.sleep(0.05)


@functools.cache
def importer() -> Importer:
    """The one of this process, which ends with it."""
    return Importer()


class Forked:
    """A process that has vLLM from the importer, and does what a test asks it to: see driver.py."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self._connection = importer().connect()
        self._answers = self._connection.makefile("rb")
        self._write({"log": str(log), "environment": environment or {}})
        self.pid: int = self._answer(ANSWER_S)

    @property
    def is_running(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def kill(self) -> None:
        """SIGKILL for it and what it started."""
        kill_group(self.pid)
        self._wait_for_end()
        self._answers.close()
        self._connection.close()

    def _wait_for_end(self) -> None:
        while self.is_running:
            time.sleep(0.01)

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the command of that name answers."""
        self._send(do, **arguments)
        return self._answer(ANSWER_S)

    def _send(self, do: str, **arguments: Any) -> None:
        self._write({"do": do} | arguments)

    def _write(self, line: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(line).encode() + b"\n")

    def _answer(self, within_s: float) -> Any:
        line = self._answers.readline() if select.select([self._connection], [], [], within_s)[0] else b""
        if not line:
            raise failure(f"no answer from the engine within {within_s} s", self.log)
        answer = json.loads(line)
        if "error" in answer:
            raise failure(answer["error"], self.log)
        return answer["answer"]


class Engine(Forked):
    """vLLM's engine in a process of its own. It starts in the background; the first command waits for it."""

    def __init__(self, log: Path, model: Path, environment: dict[str, str] | None = None, **arguments: Any) -> None:
        super().__init__(log, environment)
        self.arguments = engine_arguments(model, **arguments)
        self._write({"do": "start", "arguments": self.arguments})
        self._is_ready = False

    def wait_until_ready(self) -> None:
        if not self._is_ready:
            self._answer(START_S)
            self._is_ready = True

    def close(self) -> None:
        """End it in good order, with all that its connector has to do at the end."""
        self.wait_until_ready()
        self._connection.shutdown(socket.SHUT_WR)
        self._answer(ANSWER_S)
        self._wait_for_end()

    def generate(self, requests: Sequence[Request], concurrency: int = 1, limit_s: float = REQUESTS_S) -> list[Result]:
        """What the requests give, in their order, once the engine has nothing more to do for them."""
        self.begin(requests, concurrency, limit_s)
        return self.end(limit_s)

    def begin(
        self, requests: Sequence[Request], concurrency: int = 1, limit_s: float = REQUESTS_S, drain: bool = True
    ) -> None:
        """Let the requests run while the test does something else; `end` waits for them.

        drain: whether the engine then goes on until its connector, too, has nothing more to do
        """
        told = [request.as_json() for request in requests]
        self._send("generate", requests=told, concurrency=concurrency, limit_s=limit_s, drain=drain)

    def end(self, limit_s: float = REQUESTS_S) -> list[Result]:
        return [Result(**result) for result in self._answer(limit_s + ANSWER_S)]

    def tell(self, prompt: list[int] | str, **options: Any) -> Result:
        """The result of one request."""
        (result,) = self.generate([Request(prompt, **options)])
        return result

    def tokenize(self, text: str) -> list[int]:
        return self.ask("tokenize", text=text)

    def idle(self, seconds: float) -> None:
        """Let the engine step without requests."""
        self.ask("idle", seconds=seconds)

    def blocks(self) -> dict[str, int]:
        return self.ask("blocks")

    def groups(self) -> list[dict[str, Any]]:
        return self.ask("groups")

    def metrics(self) -> dict[str, float]:
        return self.ask("metrics")

    def by_outcome(self, name: str) -> dict[str, float]:
        return self.ask("by_outcome", name=name)

    def reset_prefix_cache(self, connector: bool = False) -> None:
        """Forget the KV in the engine itself, so that what is asked next comes from elsewhere.

        connector: have the connector forget its own, too
        """
        assert self.ask("reset_prefix_cache", connector=connector) is True

    def _send(self, do: str, **arguments: Any) -> None:
        self.wait_until_ready()
        super()._send(do, **arguments)


class Server(VLLMProcess):
    """vLLM's server: the same engine behind OpenAI's API. It starts in the background."""

    def __init__(self, log: Path, model: Path, environment: dict[str, str] | None = None, **arguments: Any) -> None:
        self.model, self.port = str(model), free_port()
        options = []
        for name, value in engine_arguments(model, **arguments).items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                options.append(flag)
            else:
                options += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
        super().__init__(
            log,
            *("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(self.port)),
            *options,
            **(environment or {}),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=ANSWER_S).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self.failure("vLLM's server did not start") from None
                time.sleep(0.1)

    def complete(self, prompt: list[int] | str, max_tokens: int = 8, **options: Any) -> dict[str, Any]:
        """The server's answer to a completion."""
        return complete(self.url, self.model, prompt, max_tokens, **options)


def complete(url: str, model: str, prompt: list[int] | str, max_tokens: int = 8, **options: Any) -> dict[str, Any]:
    """What an OpenAI server answers to a greedy completion; the new tokens are in `choices[0].token_ids`."""
    values = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(values | {"return_token_ids": True} | options).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=REQUESTS_S) as answer:
        return json.load(answer)
