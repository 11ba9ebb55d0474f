"""vLLM's engine in processes that a test commands: a JSON object a line, one command or one answer.

    driver.py SOCKET

Runs in the environment that `.ci/vllm` makes; `engine.py` is the other end. It imports vLLM, which takes most of an
engine's start, and then forks an engine for every connection to SOCKET, until stdin ends. The first line of a
connection says where its process belongs, and the engine ends with the connection. Its core and its scheduler are in
that process, so that the answers can tell how many blocks are free and what each request found in which cache.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from vllm import EngineArgs, SamplingParams
from vllm.distributed import utils as waiting
from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

IDLE_S = 0.001
IMPORTED_LATER = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.gemma3",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.distributed.kv_transfer.kv_connector.v1",
    "vllm.distributed.kv_transfer.kv_connector.factory",
)
"""What vLLM would import when an engine starts."""


class Driver:
    """Its public methods are the commands."""

    def start(self, arguments: dict[str, Any]) -> None:
        """The first of them. The arguments are those of vLLM's `EngineArgs`."""
        config = EngineArgs(**arguments).create_engine_config()
        if arguments.get("enable_prefix_caching"):
            # vLLM turns it off for MLA on CPUs, as what is computed after a prefix is rounded otherwise than what is
            # computed in one go. A test that wants it compares loaded KV with KV that was there, to the last bit.
            config.cache_config.enable_prefix_caching = True
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # so that ranks need not import vLLM either
        self.engine = LLMEngine.from_vllm_config(config)
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.loras: dict[str, LoRARequest] = {}
        self.count = 0
        self.prefills: dict[str, Any] = {}
        get_output = self.engine.engine_core.get_output

        def get_and_note() -> Any:
            outputs = get_output()
            for output in outputs.outputs:
                if output.prefill_stats is not None:
                    self.prefills[output.request_id] = output.prefill_stats
            return outputs

        self.engine.engine_core.get_output = get_and_note

    def generate(
        self, requests: list[dict[str, Any]], concurrency: int, limit_s: float, drain: bool
    ) -> list[dict[str, Any]]:
        """Run the requests greedily, at most `concurrency` at a time, and with `drain` until there is nothing to do."""
        deadline = time.monotonic() + limit_s
        waiting = list(enumerate(requests))[::-1]
        running: dict[str, dict[str, Any]] = {}
        results: list[dict[str, Any]] = [{} for _ in requests]
        while waiting or running:
            while waiting and len(running) < concurrency:
                index, request = waiting.pop()
                result = results[index] = {"start_s": time.monotonic(), "abort_after": request.get("abort_after")}
                result["id"] = str(self.count)
                running[str(self.count)] = result
                result["internal"] = self._add(request)
                self.count += 1
            outputs = self.engine.step()
            now_s = time.monotonic()
            if now_s > deadline:
                raise TimeoutError(f"{len(waiting)} requests waited and {len(running)} ran after {limit_s} s")
            for output in outputs:
                result = running[output.request_id]
                (completion,) = output.outputs
                if completion.token_ids:
                    result.setdefault("ttft_s", now_s - result["start_s"])
                aborted = result["abort_after"] is not None and len(completion.token_ids) >= result["abort_after"]
                if aborted and not output.finished:
                    self.engine.abort_request([output.request_id])
                if output.finished or aborted:
                    del running[output.request_id]
                    self._finish(result, output, now_s)
            if not outputs:
                time.sleep(IDLE_S)
        if drain:
            self._drain(deadline)
        return results

    def _add(self, request: dict[str, Any]) -> str:
        """Give the engine one request; the id by which it knows it."""
        prompt = request["prompt"]
        values = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}
        if request.get("salt"):
            values["cache_salt"] = request["salt"]
        extra = {"kv_transfer_params": request["kv_transfer_params"]} if request.get("kv_transfer_params") else None
        sampling = SamplingParams(
            temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=True, detokenize=True, extra_args=extra
        )
        return self.engine.add_request(str(self.count), values, sampling, lora_request=self._lora(request.get("lora")))

    def _lora(self, folder: str | None) -> LoRARequest | None:
        """The adapter in this folder; its name is that of the folder, whatever lies in other folders of that name."""
        if folder is None:
            return None
        if folder not in self.loras:
            self.loras[folder] = LoRARequest(os.path.basename(folder), len(self.loras) + 1, folder)
        return self.loras[folder]

    def _finish(self, result: dict[str, Any], output: Any, now_s: float) -> None:
        (completion,) = output.outputs
        prefill = self.prefills.pop(result.pop("internal"), None)
        result.pop("abort_after")
        result["total_s"] = now_s - result.pop("start_s")
        result["tokens"] = list(completion.token_ids)
        result["text"] = completion.text
        result["prompt_tokens"] = len(output.prompt_token_ids)
        result["finish"] = completion.finish_reason
        result["kv_transfer_params"] = output.kv_transfer_params
        result["local_tokens"] = prefill.num_local_cached_tokens if prefill else 0
        result["external_tokens"] = prefill.num_external_cached_tokens if prefill else 0
        result["computed_tokens"] = prefill.num_computed_tokens if prefill else 0

    def _drain(self, deadline: float) -> None:
        """Step until the scheduler keeps no request: a connector may hold the blocks of one that has ended."""
        while self.scheduler.has_requests():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduler keeps {list(self.scheduler.requests)} for ever")
            if not self.engine.step():
                time.sleep(IDLE_S)

    def idle(self, seconds: float) -> None:
        """Step for this long without requests, as an engine that serves others would."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.engine.step()
            time.sleep(IDLE_S)

    def tokenize(self, text: str) -> list[int]:
        return list(self.engine.get_tokenizer().encode(text))

    def blocks(self) -> dict[str, int]:
        """Blocks of the pool (one is never used), those that are free, and the requests that the scheduler keeps."""
        pool = self.scheduler.kv_cache_manager.block_pool
        return {
            "total": pool.num_gpu_blocks,
            "free": pool.get_num_free_blocks(),
            "requests": len(self.scheduler.requests),
        }

    def groups(self) -> list[dict[str, Any]]:
        """The groups of KV caches, with their layers."""
        return [
            {
                "kind": type(group.kv_cache_spec).__name__,
                "block_tokens": group.kv_cache_spec.block_size,
                "layers": list(group.layer_names),
            }
            for group in self.scheduler.kv_cache_config.kv_cache_groups
        ]

    def metrics(self) -> dict[str, float]:
        """vLLM's counters and gauges, each summed over its labels."""
        values: dict[str, float] = {}
        for metric in self.engine.get_metrics():
            if hasattr(metric, "value"):
                values[metric.name] = values.get(metric.name, 0.0) + metric.value
        return values

    def by_outcome(self, name: str) -> dict[str, float]:
        """A counter's value for each value of its label `outcome`."""
        found = [metric for metric in self.engine.get_metrics() if metric.name == name and hasattr(metric, "value")]
        return {metric.labels["outcome"]: metric.value for metric in found}

    def reset_prefix_cache(self, connector: bool) -> bool:
        return bool(self.engine.reset_prefix_cache(reset_connector=connector))

    def ranks(self, **case: Any) -> Any:
        """See ranks.py. For a process without an engine."""
        from tests.engine_adapters.vllm.ranks import answer

        return answer(**case)

    def shutdown(self) -> None:
        self.engine.engine_core.shutdown()


def run_engine(connection: socket.socket) -> None:
    """Be the engine of this connection until it ends."""
    lines = connection.makefile("rb")
    place = json.loads(lines.readline())
    log = os.open(place["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(os.path.dirname(place["log"]))
    os.environ.update(place["environment"])
    driver = Driver()
    _answer(connection, os.getpid)
    for line in lines:
        command = json.loads(line)
        _answer(connection, getattr(driver, command.pop("do")), **command)
    _answer(connection, driver.shutdown)


def _answer(connection: socket.socket, work: Callable[..., Any], **arguments: Any) -> None:
    """Send what the work returns, or what it raises: the test decides what that means."""
    try:
        answer = {"answer": work(**arguments)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    connection.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    for name in IMPORTED_LATER:
        importlib.import_module(name)
    # Ranks wait for each other by sched_yield. Where they share two busy cores with the gateway, Linux 6.18 leaves that
    # without a core for up to 17 s at a time; with sleep(0), as vLLM does it on old versions of Python, for 0.6 s.
    waiting.USE_SCHED_YIELD = False
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the engines
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                try:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.setsid()  # so that the test can end it with all that it starts
                    listener.close()
                    run_engine(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
