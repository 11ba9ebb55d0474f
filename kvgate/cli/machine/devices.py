"""The GPU and the transfer library, looked for without loading either."""

from __future__ import annotations

import ctypes.util
import importlib.util
import shutil
import subprocess

from kvgate.cli.machine.finding import Finding


def findings() -> list[Finding]:
    """What an engine beside the gateway could use; the gateway itself needs none of it."""
    return [_gpu(), _nixl()]


def _gpu() -> Finding:
    name, meaning = "GPU", "engines and the GPU tier use it; the gateway alone needs none"
    driver = ctypes.util.find_library("cuda")
    tool = shutil.which("nvidia-smi")
    if driver is None and tool is None:
        return Finding(name, "absent", "neither libcuda nor nvidia-smi", meaning)
    if tool is None:
        return Finding(name, "ok", f"{driver}, without nvidia-smi", meaning)
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return Finding(name, "warn", "nvidia-smi fails", meaning, "reload the driver: `nvidia-smi` must list the GPU")
    return Finding(name, "ok", "; ".join(answer.strip().splitlines()) or "none listed", meaning)


def _nixl() -> Finding:
    name, meaning = "NIXL", "moves chunks between machines by RDMA; without it they move by HTTP"
    if importlib.util.find_spec("nixl") is None:
        return Finding(name, "absent", "not installed", meaning)
    return Finding(name, "ok", "importable", meaning)
