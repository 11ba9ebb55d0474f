"""The footer of a file on disk: whatever lies there, it is read as what was written or as a corrupt copy.

An input's first byte says whether the others are a whole file, or a footer, which then gets the length, checksum and
magic that belong to it.
"""

from __future__ import annotations

import os
import struct
from array import array
from typing import Any

import msgpack
from awscrt import checksums

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import CorruptCopy
from kvgate.s3.representation import checksum_headers, description
from kvgate.tiers.base import Record
from kvgate.tiers.disk_file import open_verified, read_footer
from kvgate.tiers.footer import MAGIC, encode_footer

_RECORD = Record("tenant", "bucket", "key", 5, 7, 1_770_000_000_000, {"content-type": "a/b"})
_BLOCKS = array("Q", [7])
_FOOTER = encode_footer(_RECORD, _BLOCKS)
_TAIL = struct.Struct("<IQ8s")
_FIELDS = msgpack.unpackb(_FOOTER[: -_TAIL.size])
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 63, 1.5, "", "x", b"", b"x" * 7, [], ["x"], {}, {"a": 1}, {"a": b"b"}),
    *({1: "a"}, float("nan")),
)


def check(data: bytes) -> None:
    draw = Draw(data)
    kind = draw.below(3)
    if kind == 0:
        file = draw.rest()
    elif kind == 1:
        file = b"12345" + _sealed(draw.rest())
    else:
        fields = dict(_FIELDS)
        for _ in range(1 + draw.below(2)):
            fields[draw.pick((*_FIELDS, "other"))] = draw.pick(_ODD)
        file = b"12345" + _sealed(msgpack.packb(fields))
    fd = os.memfd_create("footer")
    try:
        os.write(fd, file)
        _read(fd)
    finally:
        os.close(fd)


def _read(fd: int) -> None:
    path = f"/proc/self/fd/{fd}"
    try:
        record, blocks = read_footer(fd)
    except CorruptCopy:
        return
    must(record.nbytes <= os.fstat(fd).st_size, "a body that is longer than its file")
    hash(record[:6])  # indexes have it as a key
    description(record)
    checksum_headers(record)
    again, _ = open_verified(path, record)
    os.close(again)
    with_footer = encode_footer(record, blocks)
    must(len(with_footer) > _TAIL.size, "a footer that cannot be written again")


def _sealed(footer: bytes) -> bytes:
    length = struct.pack("<I", len(footer))
    return footer + _TAIL.pack(len(footer), checksums.crc64nvme(footer + length), MAGIC)


TARGETS = (
    Target(
        "disk-files",
        40_000,
        check,
        (b"\x00" + b"12345" + _FOOTER, b"\x01" + _FOOTER[: -_TAIL.size], b"\x02\x00"),
        (
            MAGIC,
            b"\xc0",
            b"\xcf" + b"\xff" * 8,
            b"\xd3" + b"\xff" * 8,
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 600,
            b"\xa0",
            b"\xc4\x00",
        ),
    ),
)
