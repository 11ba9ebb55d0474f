"""A piece of shared memory behind a file descriptor, which another process can be handed and map."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_DISCARD_STEP_NBYTES = 2 << 20
_MADV_POPULATE_WRITE = 23
_madvise = ctypes.CDLL(None, use_errno=True).madvise  # unlike `mmap.madvise`, without the GIL
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Segment:
    """`nbytes` of zeroed memory in a memfd, mapped here, and mappable wherever its descriptor goes.

    Its size is sealed, so that no holder of the descriptor can truncate it under another's mapping (SIGBUS), and its
    mode lets nobody but root open it anew for writing who is given a descriptor for reading. Takes two descriptors of
    this process: the memfd, and the one that `mmap` keeps. Raises OSError where the system refuses.
    """

    def __init__(self, segment_id: int, nbytes: int) -> None:
        self.id = segment_id
        self.nbytes = nbytes
        fd = os.memfd_create("kvgate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._file = os.fdopen(fd, "r+b", buffering=0)
        try:
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            os.fchmod(fd, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            self._map = mmap.mmap(fd, nbytes)
        except BaseException:
            self._file.close()
            raise
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP):
            with contextlib.suppress(OSError):  # a kernel without it: slower, or a larger core dump
                self._map.madvise(advice)
        self.view = memoryview(self._map)
        """All of the segment, writable."""
        self.before_close: list[Callable[[], None]] = []
        """Called once, before the mapping ends: by whoever has told a device of these addresses. Must not raise."""

    @property
    def fd(self) -> int:
        """The memfd, owned by this object: duplicate it (or send it over a socket) to keep it."""
        return self._file.fileno()

    def populate(self, offset: int, nbytes: int) -> None:
        """Have the system find, clear and map the pages of [offset, offset + nbytes); what they hold stays.

        Leaves the GIL to others. May go on while another thread closes the segment. Raises OSError, EINVAL before
        Linux 5.14.
        """
        try:
            start = (ctypes.c_char * nbytes).from_buffer(self._map, offset)
        except ValueError:  # closed
            return
        if _madvise(ctypes.addressof(start), nbytes, _MADV_POPULATE_WRITE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def reader_fd(self) -> int:
        """A new descriptor, the caller's to close, that can be mapped for reading only."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give up the descriptor and the mapping. May be called twice.

        Views of the memory that are still alive stay valid, and the mapping ends with the last of them.
        """
        self._tell()
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        self._file.close()

    def discard(self) -> None:
        """Close, and return the memory to the system even while other processes map it: from now on they read zeros.

        Takes some 0.2 ms a MiB in small steps, between which other threads can run.
        """
        self._tell()
        for offset in range(0, self.nbytes, _DISCARD_STEP_NBYTES):
            with contextlib.suppress(OSError):  # then the memory goes with its last mapping
                self._map.madvise(mmap.MADV_REMOVE, offset, min(_DISCARD_STEP_NBYTES, self.nbytes - offset))
        self.close()

    def _tell(self) -> None:
        while self.before_close:
            self.before_close.pop()()


def can_populate() -> bool:
    """Whether the system can populate memory: Linux 5.14 or later."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        start = (ctypes.c_char * len(page)).from_buffer(page)
        unknown = _madvise(ctypes.addressof(start), len(page), _MADV_POPULATE_WRITE) and (
            ctypes.get_errno() == errno.EINVAL
        )
        del start  # else the page could not be unmapped
    return not unknown


def huge_pages() -> bool:
    """Whether the system backs segments with huge pages, as it is asked to."""
    try:
        choice = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    except OSError:
        return False
    return "[never]" not in choice and "[deny]" not in choice
