"""Real vLLM for the tests: its engine, or its server, in processes of the environment that `.ci/vllm` makes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.gateways import ALPHA, Credential, RunningGateway, free_port

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
ENVIRONMENT = REPOSITORY / ".cache" / "vllm"
MODELS = REPOSITORY / ".cache" / "models"

SMOLLM2 = MODELS / "smollm2-135m-instruct-bf16"
LLAMA, MLA, SLIDING = MODELS / "tiny-llama", MODELS / "tiny-mla", MODELS / "tiny-sliding"
LORA_ONE, LORA_TWO = MODELS / "lora" / "one" / "style", MODELS / "lora" / "two" / "style"

BLOCK_TOKENS = 32
START_S, ANSWER_S, REQUESTS_S = 180.0, 60.0, 180.0


def why_unavailable() -> str | None:
    """Why vLLM cannot run here, or None if it can."""
    if (ENVIRONMENT / "installed").exists() and (MODELS / "made").exists():
        return None
    reason = ENVIRONMENT.with_suffix(".unavailable")
    return reason.read_text() if reason.exists() else "vLLM is not installed: run .ci/vllm"


def engine_arguments(model: Path, **changes: Any) -> dict[str, Any]:
    """vLLM's arguments for a start that is quick, memory that is small and KV that other processes can use.

    With an explicit size of the cache and without compilation, vLLM runs nothing before the first request.
    """
    return {
        "model": str(model),
        "max_model_len": 4096,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 128 << 20,
        "block_size": BLOCK_TOKENS,
        "prefix_caching_hash_algo": "sha256_cbor",
        "enforce_eager": True,
    } | changes


def connector(
    gateway: RunningGateway, credential: Credential = ALPHA, bucket: str = "alpha-bucket", **extra: Any
) -> dict[str, Any]:
    """The `kv_transfer_config` with which vLLM keeps its KV in this gateway."""
    return {
        "kv_connector": "KVGateConnector",
        "kv_connector_module_path": "engine_adapters.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"url": gateway.url, "bucket": bucket} | credential.as_config() | extra,
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


class VLLMProcess:
    """A process in vLLM's environment. What it writes goes to a log of its own."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(ENVIRONMENT / "bin" / "python"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if log.suffix != ".server" else output,
                stderr=output,
                cwd=log.parent,
                env=os.environ | process_environment() | environment,
                start_new_session=True,  # so that `kill` also ends what it starts
            )

    def kill(self) -> None:
        """SIGKILL for it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()

    def failure(self, what: str) -> AssertionError:
        return AssertionError(f"{what}:\n{self.log.read_text(errors='replace')[-6000:]}")


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


class Engine(VLLMProcess):
    """vLLM's engine. It starts in the background; the first command waits for it."""

    def __init__(self, log: Path, model: Path, **arguments: Any) -> None:
        self.arguments = engine_arguments(model, **arguments)
        self.ready = False
        super().__init__(log, str(HERE / "driver.py"), json.dumps(self.arguments))

    def wait_until_ready(self) -> None:
        if not self.ready:
            self._answer(START_S)
            self.ready = True

    def generate(self, requests: Sequence[Request], concurrency: int = 1, limit_s: float = REQUESTS_S) -> list[Result]:
        """What the requests give, in their order, once the engine has nothing more to do for them."""
        self.begin(requests, concurrency, limit_s)
        return self.end(limit_s)

    def begin(self, requests: Sequence[Request], concurrency: int = 1, limit_s: float = REQUESTS_S) -> None:
        """Let the requests run while the test does something else; `end` waits for them."""
        self._send("generate", requests=[r.as_json() for r in requests], concurrency=concurrency, limit_s=limit_s)

    def end(self, limit_s: float = REQUESTS_S) -> list[Result]:
        return [Result(**result) for result in self._answer(limit_s + ANSWER_S)]

    def tell(self, prompt: list[int] | str, **options: Any) -> Result:
        """The result of one request."""
        (result,) = self.generate([Request(prompt, **options)])
        return result

    def tokenize(self, text: str) -> list[int]:
        return self._ask("tokenize", text=text)

    def idle(self, seconds: float) -> None:
        """Let the engine step without requests."""
        self._ask("idle", seconds=seconds)

    def blocks(self) -> dict[str, int]:
        return self._ask("blocks")

    def groups(self) -> list[dict[str, Any]]:
        return self._ask("groups")

    def metrics(self) -> dict[str, float]:
        return self._ask("metrics")

    def reset_prefix_cache(self) -> None:
        """Forget the KV in the engine itself, so that what is asked next comes from elsewhere."""
        assert self._ask("reset_prefix_cache") is True

    def close(self) -> None:
        """End it in good order, with all that its connector has to do at the end."""
        self.wait_until_ready()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            status = self.process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            raise self.failure("the engine did not end") from None
        if status:
            raise self.failure(f"the engine ended with {status}")

    def _ask(self, do: str, **arguments: Any) -> Any:
        self._send(do, **arguments)
        return self._answer(ANSWER_S)

    def _send(self, do: str, **arguments: Any) -> None:
        self.wait_until_ready()
        self._pipe(self.process.stdin).write(json.dumps({"do": do} | arguments).encode() + b"\n")
        self._pipe(self.process.stdin).flush()

    def _answer(self, within_s: float) -> Any:
        answers = self._pipe(self.process.stdout)
        line = answers.readline() if select.select([answers], [], [], within_s)[0] else b""
        if not line:
            raise self.failure(f"no answer from the engine within {within_s} s (status {self.process.poll()})")
        answer = json.loads(line)
        if "error" in answer:
            raise self.failure(answer["error"])
        return answer["answer"]

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


class Server(VLLMProcess):
    """vLLM's server: the same engine behind OpenAI's API. It starts in the background."""

    def __init__(self, log: Path, model: Path, **arguments: Any) -> None:
        self.model, self.port = str(model), free_port()
        options = []
        for name, value in engine_arguments(model, **arguments).items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                options.append(flag)
            else:
                options += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
        super().__init__(
            log.with_suffix(".server"),
            *("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(self.port)),
            *options,
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
