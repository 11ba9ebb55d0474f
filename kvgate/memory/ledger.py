"""The ledger: which grants of one engine still hold, in memory that the engine can look at without asking.

A grant has a word of its own, at its number modulo the size. The gateway writes the number there when it grants, and 0
before it lets the bytes go. Whoever has copied bytes looks at the word afterwards: where it still has the number, the
bytes were the granted ones for as long as the copy took.

The returns are the other way round: the engine writes a grant's number into its word when it does not need it any more,
and the gateway looks there now and then. What else an engine may write there means nothing.
"""

from __future__ import annotations

import fcntl
import mmap
import os

WORD_NBYTES = 8

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_FUTURE_WRITE = 0x0010  # F_SEAL_FUTURE_WRITE, Linux 5.1: mappings that come later cannot be written


class _Words:
    """The gateway's mapping of new memory of a word for each grant. Raises OSError where the system refuses it."""

    def __init__(self, name: str, grants: int, seals: int) -> None:
        nbytes = _nbytes(grants)
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, nbytes)
            self._map = mmap.mmap(self.fd, nbytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(self.fd)
            raise
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Give the memory up; an engine that maps it keeps what it says."""
        self._words.release()
        self._map.close()
        os.close(self.fd)


class Ledger(_Words):
    """The gateway's side: the only one that can write.

    grants: how many can be open at once
    """

    def __init__(self, grants: int) -> None:
        super().__init__("kvgate-ledger", grants, _SEALS | _FUTURE_WRITE)
        self.grants = grants
        self._next = 0
        self._free = list(range(grants - 1, -1, -1))

    @property
    def full(self) -> bool:
        """Whether no further grant can be opened."""
        return not self._free

    def open(self) -> int:
        """The number of a new grant, which holds from now on; never 0, and never one that was there before."""
        place = self._free.pop()
        self._next += 1
        number = self._next * self.grants + place
        self._words[place] = number
        return number

    def end(self, number: int) -> None:
        """End a grant. To be called before its bytes are let go."""
        place = number % self.grants
        self._words[place] = 0
        self._free.append(place)


class Returns(_Words):
    """What an engine has given back, as the gateway reads it."""

    def __init__(self, grants: int) -> None:
        super().__init__("kvgate-returns", grants, _SEALS)
        self._grants = grants

    def has(self, number: int) -> bool:
        """Whether the engine has given a grant back."""
        return self._words[number % self._grants] == number


class LedgerView:
    """The engine's side. Maps `fd`, which stays the caller's. Raises OSError, ValueError if it is too small."""

    def __init__(self, fd: int, grants: int) -> None:
        self._grants = grants
        self._words = memoryview(mmap.mmap(fd, _nbytes(grants), prot=mmap.PROT_READ)).cast("Q")

    def holds(self, number: int) -> bool:
        """Whether a grant has not ended so far."""
        return self._words[number % self._grants] == number


class ReturnsView:
    """The engine's side. Maps `fd` as `LedgerView` does."""

    def __init__(self, fd: int, grants: int) -> None:
        self._grants = grants
        self._words = memoryview(mmap.mmap(fd, _nbytes(grants))).cast("Q")

    def give_back(self, number: int) -> None:
        """Say that a grant is not needed any more."""
        self._words[number % self._grants] = number


def _nbytes(grants: int) -> int:
    return max(grants * WORD_NBYTES, mmap.PAGESIZE)
