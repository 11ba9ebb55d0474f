"""The tests of what is in C again, on a build in which every access and every operation without a meaning is caught."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = [
    "tests/memory/test_digest.py",
    "tests/native/test_crc64nvme.py",
    "tests/native/test_receive.py",
]

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g"]

RUN = """
import importlib.util, sys, pytest
spec = importlib.util.spec_from_file_location("kvgate.native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
sys.modules["kvgate.native"] = native
import kvgate
kvgate.native = native
sys.exit(pytest.main(sys.argv[2:]))
"""

ONE_BYTE_TOO_MANY = """
#include <stdlib.h>
#include "crc64nvme.h"
int main(void)
{
    kvgate_crc64nvme_begin();
    return (int)kvgate_crc64nvme(0, calloc(1, 1000), 1000 + EXTRA) & 0;
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kvgate.native, built as pyproject.toml says and with sanitizers."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("needs Python's headers")
    extension = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"][0]
    path = tmp_path_factory.mktemp("native") / "native.so"
    flags = [flag for flag in extension["extra-compile-args"] if not flag.startswith("-O")]
    include = f"-I{sysconfig.get_path('include')}"
    _cc(*flags, *SANITIZE, "-Werror", "-fPIC", "-shared", include, *extension["sources"], "-o", str(path))
    return path


@pytest.mark.timeout(300)
def test_nothing_in_c_touches_a_byte_that_is_not_its_own(build: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(build), "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS],
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(_cc(f"-print-file-name={name}") for name in ("libasan.so", "libubsan.so")),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize(("extra", "noticed"), [(0, False), (1, True)])
def test_an_access_out_of_bounds_would_be_noticed(tmp_path: Path, extra: int, noticed: bool) -> None:
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text(ONE_BYTE_TOO_MANY.replace("EXTRA", str(extra)))
    _cc(*SANITIZE, "-Icsrc/native", str(source), "csrc/native/crc64nvme.c", "-o", str(program))
    done = subprocess.run(
        [str(program)], env={"ASAN_OPTIONS": "detect_leaks=0"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode != 0) is noticed, done.stderr
    assert ("AddressSanitizer: heap-buffer-overflow" in done.stderr) is noticed


def _cc(*arguments: str) -> str:
    done = subprocess.run(["cc", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
