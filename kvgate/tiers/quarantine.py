"""A folder for files that have been found to be bad, for people to look at: bounded, the oldest go first.

A file keeps its bytes, its footer included, as they were. Everything here blocks; it runs in a tier's threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple


class Kept(NamedTuple):
    """What lies in a quarantine."""

    files: int
    nbytes: int


class Quarantine:
    """See the module. May be used from several threads.

    max_nbytes, max_files: of all together; with either 0 nothing is kept
    """

    def __init__(self, folder: Path, max_nbytes: int, max_files: int) -> None:
        self._folder = folder
        self._max_nbytes, self._max_files = max_nbytes, max_files
        self._lock = threading.Lock()
        self.kept = Kept(0, 0)

    def open(self) -> None:
        """Make the folder, and bring what an earlier run has left within the bounds of this one."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with self._lock:
            self._shorten()

    def take(self, path: Path) -> bool:
        """Move a file in, or remove it where it is larger than everything that may be kept; False when it is gone."""
        try:
            if not self._max_files or path.stat().st_size > self._max_nbytes:
                path.unlink()
                return True
            with self._lock:
                os.rename(path, self._folder / f"{time.time_ns():019d}-{path.name}")
                self._shorten()
        except FileNotFoundError:
            return False
        return True

    def _shorten(self) -> None:
        """Remove the oldest files until the rest is within bounds."""
        found = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(self._folder) if entry.is_file())
        nbytes = sum(size for _, size in found)
        while found and (len(found) > self._max_files or nbytes > self._max_nbytes):
            name, size = found.pop(0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / name)
            nbytes -= size
        self.kept = Kept(len(found), nbytes)
