"""The file that holds one object on disk: the body from byte 0, then the footer that says what it is (`footer.py`).

The body lies as it is, or encoded.

The index can be rebuilt from the files alone. Everything here blocks; it runs in a tier's threads.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from kvgate.errors import CorruptCopy, NotInTier
from kvgate.tiers.base import Record
from kvgate.tiers.footer import Description, Encoding, describe, footer_nbytes

_FIRST_READ_NBYTES = 8192
_IOV_MAX = 1024


class OpenFile(NamedTuple):
    """A descriptor of a file that holds an object, the crc64nvme of its blocks, and how it lies, if encoded."""

    fd: int
    blocks: array[int]
    encoding: Encoding | None = None


def describe_file(fd: int) -> Description:
    """What the file says that it holds. Raises CorruptCopy unless all is consistent."""
    size = os.fstat(fd).st_size
    end = os.pread(fd, min(size, _FIRST_READ_NBYTES), max(0, size - _FIRST_READ_NBYTES))
    length = footer_nbytes(end, size)
    footer = os.pread(fd, length, size - length) if length > len(end) else end[-length:]
    return describe(footer, size)


def read_footer(fd: int) -> tuple[Record, array[int]]:
    """As `describe_file`, of a file whose body lies as it is: what it holds, and the crc64nvme of its blocks."""
    record, blocks, encoding = describe_file(fd)
    if encoding is not None:
        raise CorruptCopy("the body is encoded, which it never is here")
    return record, blocks


def open_verified(path: str, record: Record) -> OpenFile:
    """The file at `path`, which claims to hold exactly `record`.

    Raises NotInTier when there is no such file, CorruptCopy when it is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotInTier("the file is gone") from error
    try:
        found, blocks, encoding = describe_file(fd)
        if found != record:
            raise CorruptCopy("the file holds another object, or another version of it")
    except BaseException:
        os.close(fd)
        raise
    return OpenFile(fd, blocks, encoding)


def write_all(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write every byte of `views` at `offset`. Raises OSError."""
    pending = [view for view in views if len(view)]
    while pending:
        done = os.pwritev(fd, pending[:_IOV_MAX], offset)
        offset += done
        pending = _rest(pending, done)


def read_all(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Fill every byte of `views` from `offset`. Raises CorruptCopy when the file ends before."""
    pending = [view for view in views if len(view)]
    while pending:
        done = os.preadv(fd, pending[:_IOV_MAX], offset)
        if done == 0:
            raise CorruptCopy("the file is shorter than its object")
        offset += done
        pending = _rest(pending, done)


def _rest(views: list[memoryview], done: int) -> list[memoryview]:
    for position, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[position + 1 :]]
        done -= len(view)
    return []
