"""Python, the kernel, the processor and the limits of a process."""

from __future__ import annotations

import os
import platform
import resource
import socket
import time

from kvgate.cli.machine.finding import Finding
from kvgate.config import GiB, MiB
from kvgate.memory.digest import CRC64NVME_PATHS, NATIVE, NATIVE_MEND, extend_crc64nvme


def findings() -> list[Finding]:
    """What the gateway runs on, apart from memory, disk and devices."""
    return [_python(), _native(), _kernel(), _checksum(), _open_files(), _congestion_control()]


def _python() -> Finding:
    value = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding("python", "ok", value, "3.11 or later runs the gateway")


def _native() -> Finding:
    name, meaning = "kvgate.native", "C for what Python is too slow for: digests, and requests for what lies in memory"
    if NATIVE:
        return Finding(name, "ok", "built", meaning)
    return Finding(name, "warn", "not built", meaning, NATIVE_MEND)


def _kernel() -> Finding:
    name, meaning = "kernel", "Linux gives memfd, sendfile and fd passing, which keep chunks uncopied"
    value = f"{platform.system()} {platform.release()}"
    if platform.system() != "Linux":
        return Finding(name, "warn", value, meaning, "run the gateway on Linux")
    return Finding(name, "ok", value, meaning)


def _checksum() -> Finding:
    sample = os.urandom(16 * MiB)
    rate = max(_rate(sample) for _ in range(4)) / GiB
    return Finding(
        "crc64nvme",
        "ok" if rate >= 2 else "warn",
        f"{rate:.1f} GiB/s on one core by {CRC64NVME_PATHS[0]}, {os.cpu_count()} cores",
        "every byte is checked on its way in and out of a tier",
        "" if rate >= 2 else "the processor, or the virtual machine's CPU model, lacks PCLMULQDQ or PMULL; expose it",
    )


def _rate(sample: bytes) -> float:
    started = time.perf_counter()
    extend_crc64nvme(sample)
    return len(sample) / (time.perf_counter() - started)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "open files",
        "ok" if soft >= 4096 else "warn",
        f"{soft}, may be raised to {hard}",
        "one for each connection, and one for each chunk being read from disk",
        "" if soft >= 4096 else "`ulimit -n 65536`, or LimitNOFILE=65536 in a systemd unit",
    )


def _congestion_control() -> Finding:
    name, meaning = "TCP congestion control", "how a connection from an engine on this machine is paced"
    try:
        with socket.socket() as probe:
            answer = probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    except (AttributeError, OSError):
        return Finding(name, "absent", "unknown", meaning)
    algorithm = answer.split(b"\0")[0].decode(errors="replace")
    if algorithm == "bbr":
        mend = "as root: sysctl net.ipv4.tcp_congestion_control=cubic; bbr slows a loopback connection down"
        return Finding(name, "warn", algorithm, meaning, mend)
    return Finding(name, "ok", algorithm, meaning)
