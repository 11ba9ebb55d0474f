"""Memory of a gateway in the address space of another process."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_POPULATE_READ and MADV_POPULATE_WRITE, Linux 5.14
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """`nbytes` of the memory behind `fd`, which may be closed afterwards. Raises OSError.

    The mapping lasts as long as this object or any view of it. Unlike that of `mmap.mmap` it keeps no descriptor, and
    its address is known where it may only be read.
    """

    def __init__(self, fd: int, nbytes: int, *, write: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        address = _libc.mmap(None, nbytes, protection, mmap.MAP_SHARED, fd, 0)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        pages = (ctypes.c_char * nbytes).from_address(address)
        weakref.finalize(pages, _libc.munmap, address, nbytes).atexit = False
        self.address: int = address
        self.nbytes = nbytes
        view = memoryview(pages).cast("B")
        self.view = view if write else view.toreadonly()
        self._populate(write=write)

    def _populate(self, *, write: bool) -> None:
        """Enter every page now, so that nobody waits for page faults later; an old kernel does that as they come."""
        _libc.madvise(self.address, self.nbytes, _POPULATE_WRITE if write else _POPULATE_READ)


def move(target: int, source: int, nbytes: int) -> None:
    """Copy bytes from one address to another, without the interpreter's lock: other threads run meanwhile."""
    ctypes.memmove(target, source, nbytes)


def address_of(view: memoryview) -> int:
    """Where a writable, contiguous view begins. Whoever uses the address keeps the view alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
