"""An engine with LMCache inside of its process, on the CPU and without a model.

    engine_in_process.py CONFIG.yaml LAYERS

Runs in the environment that `.ci/lmcache` makes. LMCache's manager, engine, token database, storage manager, remote
backend and S3 connector are its own. Only what every engine brings is here: the memory that its KV lies in, and a
connector that copies between that and LMCache's buffers, as those of LMCache's own connectors are on a GPU.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from commands import answer_commands
from lmcache.utils import mock_up_broadcast_fn, mock_up_broadcast_object_fn
from lmcache.v1.check.utils import find_remote_backend
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector import GPUConnectorInterface
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.standalone.manager import StandaloneLMCacheManager
from prompts import chunk_kv, same_bits

MODEL = "acme/tiny-llama"
KV_HEADS, HEAD_DIM = 8, 128
UPLOADS_S = 30.0


class HostConnector(GPUConnectorInterface):
    """Copies to and from `kv`, the KV of one prompt: (2, layers, tokens, hidden), in host memory."""

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, **options: Any) -> None:
        memory_obj.tensor.copy_(options["kv"][:, :, start:end])

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, **options: Any) -> None:
        options["kv"][:, :, start:end] = memory_obj.tensor

    def batched_from_gpu(self, memory_objs: Any, starts: list[int], ends: list[int], **options: Any) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(memory_obj, start, end, **options)

    def batched_to_gpu(self, memory_objs: Any = None, starts: Any = None, ends: Any = None, **options: Any) -> None:
        for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(memory_obj, start, end, **options)

    def get_shape(self, num_tokens: int) -> torch.Size:
        return torch.Size([2, self.layers, num_tokens, KV_HEADS * HEAD_DIM])


class Engine:
    """Its methods take a prompt and the tag that LMCache puts into the keys, if there is one."""

    def __init__(self, config_path: str, layers: int) -> None:
        config = LMCacheEngineConfig.from_file(config_path)
        self.chunk_tokens = config.chunk_size
        self.chunk_shape = (2, layers, config.chunk_size, KV_HEADS * HEAD_DIM)
        metadata = LMCacheMetadata(
            model_name=MODEL,
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(layers, 2, config.chunk_size, KV_HEADS, HEAD_DIM),
            chunk_size=config.chunk_size,
            role="worker",
        )
        manager = StandaloneLMCacheManager(
            config, metadata, HostConnector(layers), mock_up_broadcast_fn, mock_up_broadcast_object_fn
        )
        manager.post_init()
        manager.start_services()
        self.lmcache = manager.lmcache_engine

    def keys(self, tokens: list[int], tag: str) -> list[str]:
        """The keys of the prompt's whole chunks, as LMCache writes them."""
        found = self.lmcache.token_database.process_tokens(tokens=tokens, request_configs=tagged(tag))
        return [key.to_string() for _, _, key in found]

    def store(self, tokens: list[int], tag: str) -> dict[str, Any]:
        """Store the KV of all whole chunks and wait until LMCache has no upload under way."""
        kv = self.empty_kv(len(tokens))
        for start, end in self.chunks(tokens):
            kv[:, :, start:end] = chunk_kv(tokens[:end], self.chunk_shape)
        self.lmcache.store(tokens, kv=kv, request_configs=tagged(tag))
        remote = find_remote_backend(self.lmcache.storage_manager)
        deadline = time.monotonic() + UPLOADS_S
        while remote.put_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        return {"under_way": len(remote.put_tasks), "failed": remote.put_failed_count}

    def lookup(self, tokens: list[int], tag: str) -> int:
        """How many tokens of the prompt's beginning LMCache says that it has."""
        return int(self.lmcache.lookup(tokens, request_configs=tagged(tag)))

    def load(self, tokens: list[int], tag: str) -> dict[str, int]:
        """How many tokens LMCache loaded, and of how many the KV is, bit by bit, that of this prompt."""
        kv = self.empty_kv(len(tokens))
        loaded = self.lmcache.retrieve(tokens, kv=kv, request_configs=tagged(tag), req_id="load")
        right = [same_bits(kv[:, :, a:b], chunk_kv(tokens[:b], self.chunk_shape)) for a, b in self.chunks(tokens)]
        return {"loaded": int(loaded.sum()), "right": sum(right) * self.chunk_tokens}

    def chunks(self, tokens: list[int]) -> list[tuple[int, int]]:
        ends = range(self.chunk_tokens, len(tokens) + 1, self.chunk_tokens)
        return [(end - self.chunk_tokens, end) for end in ends]

    def empty_kv(self, tokens: int) -> torch.Tensor:
        return torch.zeros(2, self.chunk_shape[1], tokens, KV_HEADS * HEAD_DIM, dtype=torch.bfloat16)


def tagged(tag: str) -> dict[str, str] | None:
    return {"lmcache.tag.team": tag} if tag else None


if __name__ == "__main__":
    answer_commands(lambda: Engine(sys.argv[1], int(sys.argv[2])))
