"""The table of layouts agrees with the functions of the vLLM that `.ci/vllm` installs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".cache" / "vllm" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: run .ci/vllm")
def test_what_vllm_writes_is_gathered_and_what_is_scattered_is_what_vllm_reads() -> None:
    script = Path(__file__).with_name("vllm_layouts.py")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    run = subprocess.run(
        [PYTHON, script], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert int(run.stdout.split()[0]) >= 80
