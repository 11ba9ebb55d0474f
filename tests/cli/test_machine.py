"""What is read from the machine, where its words can be chosen."""

from __future__ import annotations

import ctypes.util
import resource
import shutil
from pathlib import Path

import pytest

from kvgate.cli.machine import devices, disk, memory
from kvgate.config import GiB, MiB

MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_free_memory_is_what_the_kernel_calls_available(meminfo: Path, tmp_path: Path) -> None:
    assert memory.free_memory(meminfo, tmp_path / "no-cgroup") == 8 * GiB


@pytest.mark.parametrize(
    ("limit", "used", "free"), [("max", "0", 8 * GiB), (str(3 * GiB), str(GiB), 2 * GiB), (str(GiB), str(2 * GiB), 0)]
)
def test_free_memory_heeds_the_limit_of_a_container(
    meminfo: Path, tmp_path: Path, limit: str, used: str, free: int
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert memory.free_memory(meminfo, tmp_path) == free


def test_a_small_lock_limit_is_a_warning_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 * MiB, 8 * MiB))
    monkeypatch.setattr(memory, "_has_capability", lambda _: False)
    (finding,) = [finding for finding in memory.findings() if finding.name == "locked memory"]
    assert finding.state == "warn"
    assert finding.value == "8MiB"
    assert "LimitMEMLOCK=infinity" in finding.mend


def test_a_folder_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    finding = disk.findings(tmp_path)[-1]
    assert (finding.state, finding.value) == ("warn", "cannot be written: Permission denied")


def test_the_nearest_folder_that_exists_stands_for_one_that_does_not(tmp_path: Path) -> None:
    assert disk.existing_ancestor(tmp_path / "a" / "b") == tmp_path
    assert disk.free_disk(tmp_path / "a" / "b") <= disk.total_disk(tmp_path)


@pytest.mark.parametrize(
    ("script", "state", "value"),
    [
        ("echo 'NVIDIA X, 1 MiB, 9'; echo 'NVIDIA Y, 2 MiB, 9'", "ok", "NVIDIA X, 1 MiB, 9; NVIDIA Y, 2 MiB, 9"),
        ("exit 9", "warn", "nvidia-smi fails"),
    ],
)
def test_a_gpu_is_named_by_its_own_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, state: str, value: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(tool))
    gpu = devices.findings()[0]
    assert (gpu.state, gpu.value) == (state, value)


def test_no_gpu_is_absent_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    assert devices.findings()[0].state == "absent"
