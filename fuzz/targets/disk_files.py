"""The footer of a file on disk: whatever lies there, it is read as what was written or as a corrupt copy.

An input's first byte says whether the others are a whole file, or a footer, which then gets the length, checksum and
magic that belong to it. Of a body that says it is encoded, its only block is decoded too.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from typing import Any

import msgpack
from awscrt import checksums

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import CorruptCopy, TierError
from kvgate.s3.representation import checksum_headers, description
from kvgate.tiers.base import Record
from kvgate.tiers.disk_file import describe_file, open_verified
from kvgate.tiers.encoded_body import read_block
from kvgate.tiers.footer import MAGIC, Encoding, encode_footer

_RECORD = Record("tenant", "bucket", "key", 5, 7, 1_770_000_000_000, {"content-type": "a/b"})
_BLOCKS = array("Q", [7])
_FOOTER = encode_footer(_RECORD, _BLOCKS)
_TAIL = struct.Struct("<IQ8s")
_FIELDS = msgpack.unpackb(_FOOTER[: -_TAIL.size])
_ENCODED_FOOTER = encode_footer(_RECORD._replace(nbytes=100), _BLOCKS, Encoding("zstd", array("Q", [0, 5])))
_ENCODED_FIELDS = msgpack.unpackb(_ENCODED_FOOTER[: -_TAIL.size])
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 63, 1.5, "", "x", b"", b"x" * 7, [], ["x"], {}, {"a": 1}, {"a": b"b"}),
    *({1: "a"}, float("nan")),
)


def check(data: bytes) -> None:
    draw = Draw(data)
    kind = draw.below(4)
    if kind == 0:
        file = draw.rest()
    elif kind == 1:
        file = b"12345" + _sealed(draw.rest())
    else:
        fields, body = (dict(_FIELDS), b"12345") if kind == 2 else (dict(_ENCODED_FIELDS), draw.take(5).ljust(5))
        for _ in range(draw.below(3) if kind == 3 else 1 + draw.below(2)):
            fields[draw.pick((*fields, "other"))] = draw.pick(_ODD)
        file = body + _sealed(msgpack.packb(fields))
    fd = os.memfd_create("footer")
    try:
        os.write(fd, file)
        _read(fd)
    finally:
        os.close(fd)


def _read(fd: int) -> None:
    path = f"/proc/self/fd/{fd}"
    try:
        record, blocks, encoding = describe_file(fd)
    except CorruptCopy:
        return
    if encoding is None:
        must(record.nbytes <= os.fstat(fd).st_size, "a body that is longer than its file")
    elif len(blocks) == 1:
        with contextlib.suppress(TierError):
            must(len(read_block(fd, encoding, 0, record.nbytes)) == record.nbytes, "a block of another length")
    hash(record[:6])  # indexes have it as a key
    description(record)
    checksum_headers(record)
    os.close(open_verified(path, record).fd)
    with_footer = encode_footer(record, blocks, encoding)
    must(len(with_footer) > _TAIL.size, "a footer that cannot be written again")


def _sealed(footer: bytes) -> bytes:
    length = struct.pack("<I", len(footer))
    return footer + _TAIL.pack(len(footer), checksums.crc64nvme(footer + length), MAGIC)


TARGETS = (
    Target(
        "disk-files",
        40_000,
        check,
        (b"\x00" + b"12345" + _FOOTER, b"\x01" + _FOOTER[: -_TAIL.size], b"\x02\x00", b"\x03(\xb5/\xfd "),
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
