from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import NoDevice
from loadtest import gpu
from tests.kernels.on_cpu import CpuDevice

SCRIPT = Path(gpu.__file__)


def test_all_that_is_timed_runs() -> None:
    """On the CPU: the figures say nothing, the work is the same."""
    device, said = CpuDevice(), []
    size = gpu.Size(layers=2, heads=2, head_dim=64, block_tokens=8, chunk_tokens=32, chunks=2, repeats=1)
    found = gpu.measure(device, size, said.append)
    assert not device.allocations
    assert found.load in (0, size.layout.nbytes // 2, size.layout.nbytes)
    assert len(said) == 1 + 2 * 2 * len(gpu.ORDERS) + 1 + 2 * 4 + 2 * 2
    assert {"gather_16", "scatter_16", "digest_blocks", "gather_int8_bf16", "scatter_int4_tokens_bf16"} <= set(
        device.launches
    )


@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_tables_name_each_block_once(chunks: int) -> None:
    size = gpu.Size(chunks=chunks)
    ids = [block for table in gpu.tables(size) for block in table.blocks]
    assert sorted(ids) == list(range(size.blocks))


def test_without_a_gpu_it_says_so_and_fails() -> None:
    try:
        CupyDevice()
        pytest.skip("there is a GPU")
    except NoDevice as error:
        reason = str(error)
    root = SCRIPT.parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == f"Nothing was run: {reason}\n"
    assert not done.stdout
