"""The caller's memory as plain bytes, without copying it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from kvgate.errors import InvalidArgument
from kvgate.memory.digest import extend_crc64nvme

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview


def readable(views: ReadableBuffer | Sequence[ReadableBuffer]) -> tuple[memoryview, ...]:
    """Each view as bytes, the empty ones left out. Raises InvalidArgument for one that is not C-contiguous."""
    given = (views,) if isinstance(views, ReadableBuffer) else views
    return tuple(_as_bytes(view) for view in [memoryview(buffer) for buffer in given] if view.nbytes)


def writable(into: memoryview | bytearray) -> memoryview:
    """A buffer as bytes to fill. Raises InvalidArgument for one that is read-only or not C-contiguous."""
    view = memoryview(into)
    if view.readonly:
        raise InvalidArgument("the buffer to read into is read-only")
    return _as_bytes(view) if view.nbytes else memoryview(bytearray())


def writable_each(into: Sequence[memoryview], count: int) -> list[memoryview]:
    """`count` buffers as bytes to fill. Raises InvalidArgument."""
    if len(into) != count:
        raise InvalidArgument(f"{count} chunks for {len(into)} buffers")
    return [writable(view) for view in into]


def pieces(views: Iterable[memoryview], nbytes: int) -> Iterable[memoryview]:
    """The bytes of `views` in order, in views of at most `nbytes`."""
    return (view[start : start + nbytes] for view in views for start in range(0, len(view), nbytes))


def checksum(views: Iterable[memoryview]) -> int:
    """The crc64nvme of all views together, at memory speed."""
    crc = 0
    for view in views:
        crc = extend_crc64nvme(view, crc)
    return crc


def _as_bytes(view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise InvalidArgument(f"a buffer must be C-contiguous; this one has shape {view.shape}, strides {view.strides}")
    return view.cast("B")
