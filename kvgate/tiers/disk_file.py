"""The file that holds one object on disk: the body from byte 0, then a footer that says what it is.

    body | footer: msgpack map | footer length: u32 LE | crc64nvme of footer and length: u64 LE | magic: 8 bytes

The body lies as it is, so that it can be sent, mapped or read with O_DIRECT. The footer names the object and holds the
crc64nvme of every block of the body: a file proves by itself that it holds exactly the bytes of exactly this object,
and the index can be rebuilt from the files alone. Everything here blocks; it runs in a tier's threads.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import msgpack
from awscrt import checksums

from kvgate.errors import CorruptCopy, NotInTier
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.base import NO_ATTRIBUTES, Record

MAGIC = b"KVGATE\x00\x01"
_TAIL = struct.Struct("<IQ8s")
_FIRST_READ_NBYTES = 8192
_MAX_FOOTER_NBYTES = 16 << 20
_IOV_MAX = 1024
_MAX_TIME_MS = 253_402_300_799_999  # the end of the year 9999: no date is written later
_KINDS = {
    "tenant": str,
    "bucket": str,
    "key": str,
    "nbytes": int,
    "crc64nvme": int,
    "mtime_ms": int,
    "attributes": dict,
    "block_nbytes": int,
    "blocks": bytes,
}
"""The fields of a footer, each of exactly this type."""


def encode_footer(record: Record, blocks: array[int]) -> bytes:
    """The bytes that follow the body of a file."""
    footer: bytes = msgpack.packb(
        {
            "tenant": record.tenant,
            "bucket": record.bucket,
            "key": record.key,
            "nbytes": record.nbytes,
            "crc64nvme": record.crc64nvme,
            "mtime_ms": record.mtime_ms,
            "attributes": dict(record.attributes),
            "block_nbytes": BLOCK_NBYTES,
            "blocks": struct.pack(f"<{len(blocks)}Q", *blocks),
        }
    )
    length = struct.pack("<I", len(footer))
    return footer + _TAIL.pack(len(footer), checksums.crc64nvme(footer + length), MAGIC)


def read_footer(fd: int) -> tuple[Record, array[int]]:
    """What the file says it holds, and the crc64nvme of its blocks. Raises CorruptCopy unless all is consistent."""
    size = os.fstat(fd).st_size
    end = os.pread(fd, min(size, _FIRST_READ_NBYTES), max(0, size - _FIRST_READ_NBYTES))
    if len(end) < _TAIL.size:
        raise CorruptCopy(f"the file has {size} bytes and no footer")
    length, crc, magic = _TAIL.unpack_from(end, len(end) - _TAIL.size)
    if magic != MAGIC or length > min(size - _TAIL.size, _MAX_FOOTER_NBYTES):
        raise CorruptCopy("the file does not end in a footer")
    begin = size - _TAIL.size - length
    footer = os.pread(fd, length, begin) if length + _TAIL.size > len(end) else end[-_TAIL.size - length : -_TAIL.size]
    if checksums.crc64nvme(footer + struct.pack("<I", length)) != crc:
        raise CorruptCopy("the footer does not match its checksum")
    return _decode(footer, begin)


def _decode(footer: bytes, body_nbytes: int) -> tuple[Record, array[int]]:
    try:
        values: dict[str, Any] = msgpack.unpackb(footer)
        _check_kinds(values)
        packed: bytes = values["blocks"]
        record = Record(
            values["tenant"],
            values["bucket"],
            values["key"],
            values["nbytes"],
            values["crc64nvme"],
            values["mtime_ms"],
            values["attributes"] or NO_ATTRIBUTES,
        )
        blocks = array("Q", struct.unpack(f"<{len(packed) // 8}Q", packed))
        block_nbytes = values["block_nbytes"]
    except (KeyError, TypeError, ValueError, struct.error, msgpack.UnpackException) as error:
        raise CorruptCopy(f"the footer cannot be read: {error}") from error
    expected = -(-record.nbytes // BLOCK_NBYTES)
    if record.nbytes != body_nbytes or block_nbytes != BLOCK_NBYTES or len(blocks) != expected:
        raise CorruptCopy("the footer describes a body of another length")
    return record, blocks


def _check_kinds(values: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError."""
    for name, kind in _KINDS.items():
        if type(values[name]) is not kind:
            raise TypeError(f"{name} is not {kind.__name__}")
    if not all(type(text) is str for pair in values["attributes"].items() for text in pair):
        raise TypeError("an attribute is not text")
    if values["crc64nvme"] < 0 or not 0 <= values["mtime_ms"] <= _MAX_TIME_MS:
        raise ValueError("a number is out of range")


def open_verified(path: str, record: Record) -> tuple[int, array[int]]:
    """An open descriptor of the file at `path`, which claims to hold exactly `record`, and the digests of its blocks.

    Raises NotInTier when there is no such file, CorruptCopy when it is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotInTier("the file is gone") from error
    try:
        found, blocks = read_footer(fd)
        if found != record:
            raise CorruptCopy("the file holds another object, or another version of it")
    except BaseException:
        os.close(fd)
        raise
    return fd, blocks


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
