"""Memory: how much is free, what may be locked and shared, and how large its pages are."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path

from kvgate.cli.machine.finding import Finding
from kvgate.config import GiB, MiB, Size, format_size

_CAP_IPC_LOCK = 14
_CGROUP = Path("/sys/fs/cgroup")
_SHM = Path("/dev", "shm")


def findings() -> list[Finding]:
    """Everything about memory that a gateway or an engine beside it can feel."""
    return [_free_memory(), _memory_lock(), _shared_memory(), _sealed_memory(), _huge_pages()]


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> Size:
    """Bytes that a new process can take without swapping: the machine's, or what the container's limit leaves."""
    free = _available(meminfo)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return Size(free)


def _available(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _free_memory() -> Finding:
    free = free_memory()
    return Finding(
        "free memory",
        "ok" if free >= 2 * GiB else "warn",
        f"{free / GiB:.1f} GiB",
        "the host tier keeps chunks here; by default it takes a quarter",
        "" if free >= 2 * GiB else "free some memory, or set a small host tier: fewer chunks stay hot",
    )


def _memory_lock() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    name, meaning = "locked memory", "GPU and RDMA copies page-lock the arena, which counts against this limit"
    if limit == resource.RLIM_INFINITY:
        return Finding(name, "ok", "unlimited", meaning)
    if _has_capability(_CAP_IPC_LOCK):
        return Finding(name, "ok", f"{format_size(limit)}, not enforced for this process (CAP_IPC_LOCK)", meaning)
    return Finding(
        name,
        "ok" if limit >= GiB else "warn",
        format_size(limit),
        meaning,
        ""
        if limit >= GiB
        else "`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit, or --ulimit memlock=-1",
    )


def _has_capability(bit: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> bit & 1)


def _shared_memory() -> Finding:
    name, meaning = str(_SHM), "engines and NCCL share memory here; kvgate's own arena is memfd and needs none of it"
    try:
        stat = os.statvfs(_SHM)
    except OSError:
        return Finding(name, "absent", "none", meaning)
    nbytes = stat.f_blocks * stat.f_frsize
    return Finding(
        name,
        "ok" if nbytes >= GiB else "warn",
        f"{nbytes / GiB:.1f} GiB",
        meaning,
        "" if nbytes >= GiB else "start the engine's container with --shm-size=8g or --ipc=host",
    )


def _sealed_memory() -> Finding:
    name, meaning = (
        "memfd and seals",
        "chunks are handed to engines on this machine as sealed file descriptors, uncopied",
    )
    try:
        fd = os.memfd_create("kvgate-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError) as error:
        return Finding(name, "warn", f"no memfd: {error}", meaning, "use Linux 3.17 or later, and allow memfd_create")
    try:
        os.ftruncate(fd, MiB)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        return Finding(name, "warn", f"no seals: {error.strerror}", meaning, "allow fcntl F_ADD_SEALS (seccomp)")
    finally:
        os.close(fd)
    return Finding(name, "ok", "both work", meaning)


def _huge_pages() -> Finding:
    path = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    name, meaning = "huge pages for shared memory", "fewer page faults and TLB misses when chunks are copied"
    try:
        words = path.read_text().split()
    except OSError:
        return Finding(name, "absent", "the kernel has none", meaning)
    chosen = next((word.strip("[]") for word in words if word.startswith("[")), "unknown")
    if chosen in ("always", "within_size", "advise", "force"):
        return Finding(name, "ok", chosen, meaning)
    return Finding(name, "warn", chosen, meaning, f"as root: echo advise > {path}")
