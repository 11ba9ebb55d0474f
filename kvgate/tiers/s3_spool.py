"""An unnamed file for a body that is nowhere whole in memory, until it can be sent."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from pathlib import Path

from kvgate.errors import TierError, TierFull
from kvgate.tiers.disk_file import write_all


class Spool:
    """Bytes appended by one thread at a time. It ends with `close`, and at the death of the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._fd = -1
        self._nbytes = 0
        self._closed = False
        self._lock = threading.Lock()  # held by whichever thread uses the descriptor

    def append(self, views: list[memoryview]) -> None:
        """Write `views` at the end. Blocks. Raises TierError, TierFull."""
        with self._lock:
            if self._closed:  # whoever waited was cancelled, and has closed before this thread came to work
                raise TierError("the upload was aborted")
            try:
                if self._fd < 0:
                    self._fd, path = tempfile.mkstemp(prefix="kvgate-s3-", dir=self._folder)
                    os.unlink(path)
                write_all(self._fd, views, self._nbytes)
            except OSError as error:
                raise TierFull(f"a body for the S3 tier cannot be kept on disk: {error.strerror}") from error
            self._nbytes += sum(map(len, views))

    def view(self) -> memoryview:
        """All bytes so far. They stay readable as long as the view, also after `close`."""
        with self._lock:
            return memoryview(mmap.mmap(self._fd, self._nbytes, prot=mmap.PROT_READ) if self._nbytes else b"")

    def close(self) -> None:
        """Let the file go. Blocks while a thread appends. Idempotent."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
