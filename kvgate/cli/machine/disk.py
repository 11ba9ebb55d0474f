"""The disk under a folder: how much is free, how fast it is, and what a flush costs."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from kvgate.cli.machine.finding import Finding
from kvgate.config import GiB, MiB, Size

SAMPLE_NBYTES = 128 * MiB
"""The most that a measurement writes. Its file has no name, so nothing is left behind whatever happens."""

_BLOCK_NBYTES = 4 * MiB
_FLUSHES = 20
_LIMIT_S = 3.0


def findings(folder: Path) -> list[Finding]:
    """What the disk tier would find in `folder`, which need not exist yet."""
    folder = existing_ancestor(folder)
    free = shutil.disk_usage(folder).free
    name, meaning = f"free disk in {folder}", "the disk tier keeps chunks here"
    enough = free >= 10 * GiB
    mend = "" if enough else "choose a larger disk with --data, or a smaller disk tier"
    return [Finding(name, "ok" if enough else "warn", f"{free / GiB:.1f} GiB", meaning, mend), *_speed(folder)]


def free_disk(folder: Path) -> Size:
    """Bytes that this user can still write under `folder`, which need not exist yet."""
    return Size(shutil.disk_usage(existing_ancestor(folder)).free)


def total_disk(folder: Path) -> Size:
    """Bytes of the whole disk under `folder`, which need not exist yet."""
    return Size(shutil.disk_usage(existing_ancestor(folder)).total)


def existing_ancestor(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _speed(folder: Path) -> list[Finding]:
    mend = "choose a folder on a faster disk, such as a local NVMe, with --data"
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            written, write_s = _write(file.fileno(), min(SAMPLE_NBYTES, shutil.disk_usage(folder).free // 4))
            read, read_s = _read(file.fileno(), written)
            flush_s = _flush(file.fileno())
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        return [Finding("disk", "warn", problem, "the disk tier", "choose another folder with --data")]
    write_rate, read_rate = written / write_s / MiB, read / read_s / MiB
    return [
        Finding(
            "disk write",
            "ok" if write_rate >= 200 else "warn",
            f"{write_rate:.0f} MiB/s with one flush at the end",
            "how fast chunks can be demoted to disk",
            "" if write_rate >= 200 else mend,
        ),
        Finding(
            "disk read",
            "ok" if read_rate >= 400 else "warn",
            f"{read_rate:.0f} MiB/s",
            "how fast a chunk comes back from disk; 32 MiB should take less than computing 256 tokens",
            "" if read_rate >= 400 else mend,
        ),
        Finding(
            "disk flush",
            "ok" if flush_s <= 0.01 else "warn",
            f"{flush_s * 1e3:.2f} ms (median fsync of 4 KiB)",
            "what making one small write durable costs",
            "" if flush_s <= 0.01 else mend,
        ),
    ]


def _write(fd: int, nbytes: int) -> tuple[int, float]:
    block = os.urandom(_BLOCK_NBYTES)  # a file system that compresses must not flatter itself
    started, written = time.perf_counter(), 0
    while written < nbytes and time.perf_counter() - started < _LIMIT_S:
        written += os.write(fd, block)
    os.fsync(fd)
    return written, time.perf_counter() - started


def _read(fd: int, nbytes: int) -> tuple[int, float]:
    """Read back past the page cache, as far as the file system lets its pages be dropped."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(_BLOCK_NBYTES)
    started, read = time.perf_counter(), 0
    while read < nbytes and time.perf_counter() - started < _LIMIT_S:
        read += os.preadv(fd, [buffer], read)
    return read, time.perf_counter() - started


def _flush(fd: int) -> float:
    block = bytes(4096)
    times: list[float] = []
    deadline = time.perf_counter() + _LIMIT_S
    while len(times) < _FLUSHES and time.perf_counter() < deadline:
        started = time.perf_counter()
        os.pwrite(fd, block, 0)
        os.fsync(fd)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
