"""A piece of shared memory behind a file descriptor, which another process can be handed and map."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_DISCARD_STEP_NBYTES = 2 << 20


class Segment:
    """`nbytes` of zeroed memory in a memfd, mapped here, and mappable wherever its descriptor goes.

    Its size is sealed, so that no holder of the descriptor can truncate it under another's mapping (SIGBUS). Takes two
    descriptors of this process: the memfd, and the one that `mmap` keeps. Raises OSError where the system refuses.
    """

    def __init__(self, segment_id: int, nbytes: int) -> None:
        self.id = segment_id
        self.nbytes = nbytes
        fd = os.memfd_create(f"kvgate-{segment_id}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._file = os.fdopen(fd, "r+b", buffering=0)
        try:
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(fd, nbytes)
        except BaseException:
            self._file.close()
            raise
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP):
            with contextlib.suppress(OSError):  # a kernel without it: slower, or a larger core dump
                self._map.madvise(advice)
        self.view = memoryview(self._map)
        """All of the segment, writable."""

    @property
    def fd(self) -> int:
        """The memfd, owned by this object: duplicate it (or send it over a socket) to keep it."""
        return self._file.fileno()

    def close(self) -> None:
        """Give up the descriptor and the mapping. May be called twice.

        Views of the memory that are still alive stay valid, and the mapping ends with the last of them.
        """
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        self._file.close()

    def discard(self) -> None:
        """Close, and return the memory to the system even while other processes map it: from now on they read zeros.

        Takes some 0.2 ms a MiB in small steps, between which other threads can run.
        """
        for offset in range(0, self.nbytes, _DISCARD_STEP_NBYTES):
            with contextlib.suppress(OSError):  # then the memory goes with its last mapping
                self._map.madvise(mmap.MADV_REMOVE, offset, min(_DISCARD_STEP_NBYTES, self.nbytes - offset))
        self.close()
