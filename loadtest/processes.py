"""Processes under load: what they cost, from /proc, and the ports that they listen on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

START_S = 30.0

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port that nobody listens on, outside of the range from which the kernel takes those of connections."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, of a process and all below it, with those below that have ended."""
    ticks = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            ticks += sum(int(field) for field in _stat(one)[11:15])
    return ticks / _TICKS


def rss_nbytes(pid: int) -> int:
    """Resident memory of a process and all below it; pages that they share count for each."""
    nbytes = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            nbytes += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE_NBYTES
    return nbytes


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when `ready` says so. Raises RuntimeError when the process ends first, or takes long."""
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}: {_last_line(log)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"it was not ready within {START_S:.0f} s: {_last_line(log)}")
        time.sleep(0.005)


def accepts(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def end(process: subprocess.Popen[bytes] | None, patience_s: float = 10.0) -> None:
    """SIGTERM, after `patience_s` SIGKILL to the process and all below it, and the wait for it. None is fine."""
    if process is None or process.poll() is not None:
        return
    below = tree(process.pid)
    process.terminate()
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: its second may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
