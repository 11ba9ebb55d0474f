"""The kernels' tests again, in a process where every access of a kernel is checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

OUT_OF_BOUNDS = """
import numpy as np
from dataclasses import replace
from kvgate.chunk.layout import Layout
from kvgate.kernels.paged_copy import PagedCopies, Placed, Selection, plan
from kvgate.kernels.pages import Table
from kvgate.kernels.pieces import Extent
from tests.kernels.on_cpu import CpuDevice
from tests.kernels.paged import make_pages
layout = Layout(1, 2, 1, 8, 8, "BF16")
paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 2, "H": 1, "T": 8}, 16)
tensor = np.zeros(layout.nbytes, np.uint8)
chunk = Placed([Extent(tensor.ctypes.data, layout.nbytes)], Table([BLOCK]))
pages = replace(paged.pages, blocks=1 << 20)
PagedCopies(CpuDevice()).gather(plan(layout, pages, [chunk], Selection.all_of(layout)), 0)
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("test_each_kernel", ""),
        ("test_paged_copy", "engine_layout or any_affine or latents"),
        ("test_quantised_copy", "any_shape or engine_layout or poisons or Damage"),
        ("test_rotated_scatter", "any_shape or every_engine"),
        ("test_transfer", "fill"),
    ],
)
def test_no_kernel_touches_a_byte_that_is_not_its_own(name: str, which: str) -> None:
    done = _sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, str(HERE / f"{name}.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_an_access_out_of_bounds_would_be_noticed() -> None:
    assert _sanitized("-c", OUT_OF_BOUNDS.replace("BLOCK", "1")).returncode == 0
    done = _sanitized("-c", OUT_OF_BOUNDS.replace("BLOCK", "40"))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def _sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "KVGATE_SANITIZE": "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
