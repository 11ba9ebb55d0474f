"""sha256 of large files, computed once: weights of many gigabytes are read when they change, not at every start.

A file is taken to be unchanged while its path, inode, size, mtime and ctime are. The digests are remembered in
$XDG_CACHE_HOME/kvgate/digests.json, which only its owner may write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kvgate.errors import UnsupportedModel

_MAX_REMEMBERED = 4096
_MAX_NBYTES = 4 << 20


def files_digest(files: Iterable[Path]) -> str:
    """sha256 over the names and contents of files, as 64 hex digits, whatever order they come in.

    Processes that ask at the same time for the same files read them once, one after the other. Raises UnsupportedModel
    for a file that cannot be read.
    """
    whole = hashlib.sha256()
    with _remembered() as digests:
        for path in sorted(files, key=lambda path: path.name):
            try:
                whole.update(f"{path.name}\0{_digest(path, digests)}\n".encode())
            except OSError as error:
                raise UnsupportedModel(f"{path} cannot be read: {error.strerror}") from error
    return whole.hexdigest()


def _digest(path: Path, digests: dict[str, Any]) -> str:
    real = path.resolve(strict=True)
    stat = real.stat()
    seen = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    known = digests.pop(str(real), None)
    if not (isinstance(known, list) and known[:-1] == seen and isinstance(known[-1], str)):
        with real.open("rb") as file:
            known = [*seen, hashlib.file_digest(file, "sha256").hexdigest()]
    digests[str(real)] = known  # the last one used comes last
    return str(known[-1])


@contextlib.contextmanager
def _remembered() -> Iterator[dict[str, Any]]:
    """What is remembered, for one process at a time; kept when it is left. Without a place for it, nothing is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (cache if cache.is_absolute() else Path.home() / ".cache") / "kvgate"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "digests.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield {}
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "digests.json"
        before = _read(path)
        digests = dict(before)
        yield digests
        if digests != before:
            with contextlib.suppress(OSError):
                _write(path, dict(list(digests.items())[-_MAX_REMEMBERED:]))
    finally:
        os.close(lock)


def _read(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o022 or stat.st_size > _MAX_NBYTES:
            return {}  # somebody else may have put digests there
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, digests: dict[str, Any]) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(digests, file)
    new.replace(path)
