"""The footer that makes a body self-describing, wherever it lies outside memory.

    body | footer: msgpack map | footer length: u32 LE | crc64nvme of footer and length: u64 LE | magic: 8 bytes

The body lies as it is, so that it can be sent, mapped or read with O_DIRECT. The footer names the object and holds the
crc64nvme of every block of the body: what ends in one proves by itself that it holds exactly the bytes of exactly this
object, and any part of it can be verified alone.

In a file the body may lie encoded instead: block by block, each in the bytes that a codec made of it, or as it is where
they would not be fewer. The footer then names the codec and has the stored length of every block; all else in it is of
the plain body, against which a block is held once it is decoded.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import msgpack

from kvgate.errors import CorruptCopy
from kvgate.memory.digest import BLOCK_NBYTES, extend_crc64nvme
from kvgate.tiers.base import NO_ATTRIBUTES, Record

MAGIC = b"KVGATE\x00\x01"
MAX_FOOTER_NBYTES = 16 << 20
_TAIL = struct.Struct("<IQ8s")
TAIL_NBYTES = _TAIL.size
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

_ROOM_OF_A_BLOCK_NBYTES = 12
"""What the footer of an encoded body has for each block: its digest and its stored length."""


class Encoding(NamedTuple):
    """How a body lies encoded: by which codec, and where each block begins, and at last where the body ends."""

    codec: str
    offsets: array[int]

    @property
    def stored_nbytes(self) -> int:
        """What the body takes with what the footer has of its blocks: what room is counted for."""
        return self.offsets[-1] + (len(self.offsets) - 1) * _ROOM_OF_A_BLOCK_NBYTES


class Description(NamedTuple):
    """What a footer says: the object, the crc64nvme of the blocks of its plain body, and how it lies, if encoded."""

    record: Record
    blocks: array[int]
    encoding: Encoding | None


def encode_footer(record: Record, blocks: array[int], encoding: Encoding | None = None) -> bytes:
    """The bytes that follow the body of a file."""
    fields: dict[str, Any] = {
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
    if encoding is not None:
        lengths = [stop - start for start, stop in pairwise(encoding.offsets)]
        fields |= {"codec": encoding.codec, "stored": struct.pack(f"<{len(lengths)}I", *lengths)}
    footer: bytes = msgpack.packb(fields)
    length = struct.pack("<I", len(footer))
    return footer + _TAIL.pack(len(footer), extend_crc64nvme(footer + length), MAGIC)


def footer_nbytes(end: bytes, nbytes: int) -> int:
    """How long the footer is, its tail of TAIL_NBYTES included, of something that is `nbytes` long.

    end: at least its last TAIL_NBYTES bytes, unless it is shorter
    Raises CorruptCopy when it does not end in a footer.
    """
    if len(end) < TAIL_NBYTES:
        raise CorruptCopy(f"it has {nbytes} bytes and no footer")
    length, _, magic = _TAIL.unpack_from(end, len(end) - TAIL_NBYTES)
    if magic != MAGIC or length > min(nbytes - TAIL_NBYTES, MAX_FOOTER_NBYTES):
        raise CorruptCopy("it does not end in a footer")
    return int(length) + TAIL_NBYTES


def decode_footer(footer: bytes, nbytes: int) -> tuple[Record, array[int]]:
    """What a footer, tail included, says of the `nbytes` that it and its body have; and the blocks' crc64nvme.

    Raises CorruptCopy unless all is consistent, and the body lies as it is.
    """
    record, blocks, encoding = describe(footer, nbytes)
    if encoding is not None:
        raise CorruptCopy("the body is encoded, which it never is here")
    return record, blocks


def describe(footer: bytes, nbytes: int) -> Description:
    """As `decode_footer`, where the body may be encoded."""
    length, crc, _ = _TAIL.unpack_from(footer, len(footer) - TAIL_NBYTES)
    content = footer[:-TAIL_NBYTES]
    if length != len(content) or extend_crc64nvme(content + struct.pack("<I", length)) != crc:
        raise CorruptCopy("the footer does not match its checksum")
    return _decode(content, nbytes - len(footer))


def _decode(footer: bytes, body_nbytes: int) -> Description:
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
        encoding = _encoding(values, record.nbytes) if "codec" in values else None
    except (KeyError, TypeError, ValueError, struct.error, msgpack.UnpackException) as error:
        raise CorruptCopy(f"the footer cannot be read: {error}") from error
    expected = -(-record.nbytes // BLOCK_NBYTES)
    lies_nbytes = record.nbytes if encoding is None else encoding.offsets[-1]
    if lies_nbytes != body_nbytes or block_nbytes != BLOCK_NBYTES or len(blocks) != expected:
        raise CorruptCopy("the footer describes a body of another length")
    return Description(record, blocks, encoding)


def _encoding(values: dict[str, Any], nbytes: int) -> Encoding:
    """Raises KeyError, TypeError, ValueError or struct.error."""
    codec, packed = values["codec"], values["stored"]
    if type(codec) is not str or type(packed) is not bytes:
        raise TypeError("the encoding is not described as it should be")
    lengths = struct.unpack(f"<{len(packed) // 4}I", packed)
    if len(lengths) != -(-nbytes // BLOCK_NBYTES):
        raise ValueError("it has lengths of another number of blocks")
    for number, length in enumerate(lengths):
        if not 0 < length <= min(BLOCK_NBYTES, nbytes - number * BLOCK_NBYTES):
            raise ValueError("a block is stored in more bytes than it has, or in none")
    return Encoding(codec, array("Q", accumulate(lengths, initial=0)))


def _check_kinds(values: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError."""
    for name, kind in _KINDS.items():
        if type(values[name]) is not kind:
            raise TypeError(f"{name} is not {kind.__name__}")
    if not all(type(text) is str for pair in values["attributes"].items() for text in pair):
        raise TypeError("an attribute is not text")
    if values["crc64nvme"] < 0 or not 0 <= values["mtime_ms"] <= _MAX_TIME_MS:
        raise ValueError("a number is out of range")
