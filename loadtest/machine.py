"""The machine of a run, in the words of its report."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe(congestion: str, load: float) -> dict[str, str]:
    """What figures depend on, by name. `load` is the load average of the minute before the run."""
    return {
        "processor": f"{_line('/proc/cpuinfo', 'model name') or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int((_line('/proc/meminfo', 'MemTotal') or '0 kB').split()[0]) / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "TCP congestion control": congestion,
        "load before the run": f"{load:.1f}",
    }


def _line(path: str, name: str) -> str:
    """The value of `name: value` in a file of such lines."""
    if not Path(path).exists():
        return ""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
