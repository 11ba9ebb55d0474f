"""An engine whose LMCache is a server of its own, on the CPU and without a model.

    engine_with_server.py tcp://HOST:PORT LAYERS

Runs in the environment that `.ci/lmcache` makes. The scheduler's and the worker's side of LMCache are those that vLLM
loads. Only what every engine brings is here: its paged KV memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import zmq
from commands import answer_commands
from lmcache.integration.vllm.vllm_multi_process_adapter import (
    LMCacheMPSchedulerAdapter,
    LMCacheMPWorkerAdapter,
    LoadStoreOp,
    ParallelStrategy,
)
from prompts import chunk_kv, same_bits

MODEL = "acme/tiny-llama"
BLOCK_TOKENS, BLOCKS, KV_HEADS, HEAD_DIM = 16, 64, 8, 128
WAIT_S = 30.0


class Engine:
    """Its methods take a prompt and the salt that LMCache puts into the keys, if there is one."""

    def __init__(self, server_url: str, layers: int) -> None:
        context = zmq.Context.instance()
        alone = ParallelStrategy(mla_only=False, vllm_world_size=1, vllm_worker_id=0, tp_size=1, pp_size=1, n_servers=1)
        self.scheduler = LMCacheMPSchedulerAdapter([server_url], context, MODEL, BLOCK_TOKENS, alone)
        self.worker = LMCacheMPWorkerAdapter(server_url, context, MODEL, BLOCK_TOKENS, alone)
        self.chunk_tokens = self.worker.lmcache_tokens_per_chunk
        self.chunk_shape = (layers, 2, self.chunk_tokens, KV_HEADS, HEAD_DIM)
        # Of each layer (2, blocks, block_tokens, kv_heads, head_dim): vLLM's layout for flash attention.
        block_shape = (2, BLOCKS, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
        self.kv = {f"layers.{layer}": torch.zeros(block_shape, dtype=torch.bfloat16) for layer in range(layers)}
        self.worker.register_kv_caches(self.kv, layout_hints={"kv_layout": "NHD"})
        self.requests = 0

    def store(self, tokens: list[int], salt: str) -> str:
        """Store the KV of all whole chunks in LMCache's server, which uploads it afterwards."""
        for start, end in self.chunks(tokens):
            blocks = self.blocks(start, end)
            for layer, kv in zip(self.kv.values(), chunk_kv(tokens[:end], self.chunk_shape), strict=True):
                layer[:, blocks] = kv.view(2, len(blocks), BLOCK_TOKENS, KV_HEADS, HEAD_DIM)
        request = self.new_request()
        operation = self.whole_chunks(tokens, len(self.chunks(tokens)))
        self.worker.submit_store_request(request, operation, self.worker.create_recorded_event(), cache_salt=salt)
        wait_until(lambda: request in (self.worker.get_finished({request})[0] or ()))
        self.scheduler.end_session(request)
        return "stored"

    def load(self, tokens: list[int], salt: str) -> dict[str, int]:
        """How many tokens LMCache found and loaded, and of how many the KV is, bit by bit, that of this prompt."""
        for layer in self.kv.values():
            layer.zero_()
        request = self.new_request()
        self.scheduler.maybe_submit_lookup_request(request, tokens, cache_salt=salt)
        wait_until(lambda: self.scheduler.check_lookup_result(request) is not None)
        found = self.scheduler.check_lookup_result(request) or 0
        if found:
            operation = self.whole_chunks(tokens, found // self.chunk_tokens)
            event = self.worker.create_recorded_event()
            self.worker.submit_retrieve_request(request, operation, event, cache_salt=salt)
            wait_until(lambda: request in (self.worker.get_finished(set())[1] or ()))
        self.scheduler.cleanup_lookup_result(request)
        self.scheduler.end_session(request)
        right = [same_bits(self.loaded(a, b), chunk_kv(tokens[:b], self.chunk_shape)) for a, b in self.chunks(tokens)]
        return {"loaded": found, "right": sum(right) * self.chunk_tokens}

    def loaded(self, start: int, end: int) -> torch.Tensor:
        blocks = self.blocks(start, end)
        return torch.stack([layer[:, blocks].flatten(1, 2) for layer in self.kv.values()])

    def whole_chunks(self, tokens: list[int], chunks: int) -> LoadStoreOp:
        end = chunks * self.chunk_tokens
        return LoadStoreOp(token_ids=tokens, block_ids=[self.blocks(0, end)], start=0, end=end)

    def chunks(self, tokens: list[int]) -> list[tuple[int, int]]:
        ends = range(self.chunk_tokens, len(tokens) + 1, self.chunk_tokens)
        return [(end - self.chunk_tokens, end) for end in ends]

    def blocks(self, start: int, end: int) -> list[int]:
        """Where these tokens lie: neighbours in the prompt lie apart in memory."""
        return [block * 7 % BLOCKS for block in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS)]

    def new_request(self) -> str:
        self.requests += 1
        return f"request-{self.requests}"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"LMCache's server took more than {WAIT_S} s")
        time.sleep(0.005)


if __name__ == "__main__":
    answer_commands(lambda: Engine(sys.argv[1], int(sys.argv[2])))
