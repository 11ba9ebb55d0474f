"""vLLM's tiered offloading on its CPU build: the one part of it that needs a GPU, done with memcpy.

vLLM copies KV between the accelerator and the CPU tier with CUDA streams, and its `get_worker` refuses any other
platform. Everything else, the scheduler's side, the tiers and the region that they read and write, is vLLM's own.
Name it as `spec_name` and `spec_module_path` instead of `TieringOffloadingSpec`.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.gpu_worker import compute_sub_block_ptrs
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CPUTieringOffloadingSpec(TieringOffloadingSpec):
    """`TieringOffloadingSpec` with a worker that copies where it is called."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyingWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker


class CopyingWorker(OffloadingWorker):
    """Copies the pages of a job, in vLLM's direct layout: a row has tensor after tensor, each block after block."""

    def __init__(self, kv_caches: Any, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._groups = kv_caches.group_data_refs
        self._device = [each.tensor for each in kv_caches.tensors]
        self._host = [
            region.create_next_worker_view(each.page_size_bytes * blocks_per_chunk) for each in kv_caches.tensors
        ]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, src_spec, dst_spec, store=True)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, dst_spec, src_spec, store=False)
        return True

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        pass

    def shutdown(self) -> None:
        self._host.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, device: Any, host: Any, *, store: bool) -> None:
        start_s, nbytes, device_at, host_at = time.monotonic(), 0, 0, 0
        for refs, count, first in zip(self._groups, device.group_sizes, device.block_indices, strict=True):
            if not count:
                continue
            skip = first % self._blocks_per_chunk
            rows = -(-(count + skip) // self._blocks_per_chunk)
            blocks, chunks = device.block_ids[device_at:][:count], host.block_ids[host_at:][:rows]
            device_at, host_at = device_at + count, host_at + rows
            for ref in refs:
                here, there = np.empty(count, np.uint64), np.empty(count, np.uint64)
                compute_sub_block_ptrs(blocks, 1, here, self._device[ref.tensor_idx])
                compute_sub_block_ptrs(
                    chunks, self._blocks_per_chunk, there, self._host[ref.tensor_idx], skip_count=skip
                )
                for from_, to in zip(*((here, there) if store else (there, here)), strict=True):
                    ctypes.memmove(int(to), int(from_), ref.page_size_bytes)
                    nbytes += ref.page_size_bytes
        self._finished.append(TransferResult(job_id, True, nbytes, time.monotonic() - start_s))
