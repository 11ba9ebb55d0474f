"""What another gateway says that it has: whatever comes, it is consistent in itself, or it is not believed.

An input's first byte says whether the others are an answer, or choose what is changed in a good one.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgpack

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import CorruptCopy
from kvgate.memory.digest import BlockDigest, combine_blocks
from kvgate.s3.representation import checksum_headers, description
from kvgate.tiers.base import Name, Record
from kvgate.tiers.peer_records import pack_record, unpack_records

_BODY = b"12345"
_DIGEST = BlockDigest()
_DIGEST.update(memoryview(_BODY))
_RECORD = Record("tenant", "bucket", "key", len(_BODY), _DIGEST.value, 1_770_000_000_000, {"content-type": "a/b"})
_NAME = Name(*_RECORD[:3])
_MEMBERS = pack_record(_RECORD, _DIGEST.blocks)
_GOOD = msgpack.packb({"records": [_MEMBERS]})
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1 << 20, (1 << 63) - 1, 1.5, "", "x", b"", bytes(8), b"x" * 7, [], ["x"], {}),
    *({"a": 1}, {"a": b"b"}, {1: "a"}, {"a\r\nb": "c"}, {"a": "b\n"}, float("nan")),
)


def check(data: bytes) -> None:
    draw = Draw(data)
    if draw.below(2) == 0:
        answer = draw.rest()
    else:
        members = dict(_MEMBERS)
        for _ in range(1 + draw.below(2)):
            members[draw.pick((*_MEMBERS, "other"))] = draw.pick(_ODD)
        answer = msgpack.packb({"records": [members]})
    try:
        (found,) = unpack_records(answer, [_NAME])
    except CorruptCopy:
        return
    if found is None:
        return
    record, blocks = found
    must(record[:3] == _NAME, "a record of another object")
    must(combine_blocks(blocks, record.nbytes) == record.crc64nvme, "digests that do not agree")
    must(type(blocks) is array, "digests that are no array")
    headers = {**description(record), **checksum_headers(record)}
    must(not any(mark in text for pair in headers.items() for text in pair for mark in "\r\n\0"), "a header that ends")


TARGETS = (
    Target(
        "peer-records",
        40_000,
        check,
        (b"\x00" + _GOOD, b"\x01\x00"),
        (b"\xc0", b"\xcf" + b"\xff" * 8, b"\xdd\xff\xff\xff\xff", b"\x91" * 600, b"\xa0", b"\xc4\x00", b"records"),
    ),
)
