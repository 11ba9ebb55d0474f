"""What one gateway tells another of an object: its record, and the crc64nvme of its blocks. Both ends use this.

The blocks combine to the crc64nvme of the whole, and a checksum covers the rest, so that an answer is consistent in
itself, and every MiB that comes later is held against it.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Mapping, Sequence

import msgpack

from kvgate.errors import CorruptCopy
from kvgate.memory.digest import BLOCK_NBYTES, combine_blocks, extend_crc64nvme
from kvgate.tiers.base import NO_ATTRIBUTES, Name, Record

RECORDS = "/_kv/v1/peer/records"
OBJECT = "/_kv/v1/peer/object"

MAX_KEYS = 1024
"""Of one call for records."""

MAX_ANSWER_NBYTES = 8 << 20
"""Of the records in one answer; those that would not fit are left out, as if they were not there."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_MAX_TIME_MS = 253_402_300_799_999


def pack_record(record: Record, blocks: array[int]) -> dict[str, object]:
    """The members that tell of an object: numbers, text, bytes, and a map of text."""
    return {
        "key": record.key,
        "nbytes": record.nbytes,
        "crc64nvme": record.crc64nvme.to_bytes(8, "big"),
        "mtime_ms": record.mtime_ms,
        "attributes": dict(record.attributes),
        "blocks": struct.pack(f"<{len(blocks)}Q", *blocks),
        "check": _check(record, blocks),
    }


def packed_nbytes(record: Record, blocks: array[int]) -> int:
    """About how much of an answer `pack_record` takes."""
    attributes = sum(len(name) + len(value) for name, value in record.attributes.items())
    return 200 + 4 * (len(record.key) + attributes) + 8 * len(blocks)


def unpack_records(answer: bytes, names: Sequence[Name]) -> list[tuple[Record, array[int]] | None]:
    """What an answer in msgpack says of some objects, in their order. Raises CorruptCopy unless all is consistent."""
    try:
        members = msgpack.unpackb(answer, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise CorruptCopy("the peer sent no records") from error
    records = members.get("records") if isinstance(members, dict) else None
    if not isinstance(records, list) or len(records) != len(names):
        raise CorruptCopy(f"the peer sent no record, or null, for each of {len(names)} names")
    return [
        None if members is None else unpack_record(members, name) for members, name in zip(records, names, strict=True)
    ]


def unpack_record(members: object, name: Name) -> tuple[Record, array[int]]:
    """The record of the object called `name`, and its blocks. Raises CorruptCopy unless all is consistent."""
    if not isinstance(members, Mapping):
        raise CorruptCopy("the peer's record is no map")
    if members.get("key") != name.key:
        raise CorruptCopy("the peer's record is of another object")
    nbytes, mtime_ms = _count(members.get("nbytes")), _count(members.get("mtime_ms"))
    if nbytes is None or mtime_ms is None or mtime_ms > _MAX_TIME_MS:
        raise CorruptCopy("a number of the peer's record is out of range")
    crc64nvme, packed = members.get("crc64nvme"), members.get("blocks")
    if not (isinstance(crc64nvme, bytes) and len(crc64nvme) == 8 and isinstance(packed, bytes)):
        raise CorruptCopy("the peer's record has no digests")
    attributes = members.get("attributes")
    if not isinstance(attributes, dict) or not all(_is_text(text) for pair in attributes.items() for text in pair):
        raise CorruptCopy("an attribute in the peer's record is not text that a header can have")
    if len(packed) != 8 * -(-nbytes // BLOCK_NBYTES):
        raise CorruptCopy("the peer's record has digests of another length")
    blocks = array("Q", struct.unpack(f"<{len(packed) // 8}Q", packed))
    crc = int.from_bytes(crc64nvme, "big")
    if combine_blocks(blocks, nbytes) != crc:
        raise CorruptCopy("the digests of the peer's record do not agree")
    record = Record(*name, nbytes, crc, mtime_ms, attributes or NO_ATTRIBUTES)
    if members.get("check") != _check(record, blocks):
        raise CorruptCopy("the peer's record does not match its checksum")
    return record, blocks


def _check(record: Record, blocks: array[int]) -> bytes:
    """The crc64nvme of all that is said of an object: a bit that turned in an attribute would be noticed by nothing."""
    packed = struct.pack(f"<{len(blocks)}Q", *blocks)
    said = (record.key, record.nbytes, record.crc64nvme, record.mtime_ms, dict(record.attributes), packed)
    value: int = extend_crc64nvme(msgpack.packb(said))
    return value.to_bytes(8, "big")


def _is_text(value: object) -> bool:
    return type(value) is str and _CONTROL.search(value) is None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
