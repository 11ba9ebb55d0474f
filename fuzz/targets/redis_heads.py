"""What lies under an object's name in Redis: whatever it is, it is the head of that object, or it is no hit.

An input's first byte says whether the others are a whole value, or stand before or behind a footer that is sound.
"""

from __future__ import annotations

from array import array

from fuzz.draw import Draw
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate.errors import CorruptCopy
from kvgate.tiers.base import Name, Record
from kvgate.tiers.footer import encode_footer
from kvgate.tiers.redis_head import BODY_ID_NBYTES, Head, decode_head

_RECORD = Record("tenant", "bucket", "key", 3 << 20, 7, 1_770_000_000_000, {"content-type": "a/b"})
_NAME = Name(*_RECORD[:3])
_BLOCKS = array("Q", [1, 2, 3])
_HEAD = Head(_RECORD, _BLOCKS, bytes(BODY_ID_NBYTES), 1 << 20).encode()
_FOOTER = encode_footer(_RECORD, _BLOCKS)


def check(data: bytes) -> None:
    draw = Draw(data)
    kind = draw.below(4)
    rest = draw.rest()
    value = (rest, rest + _FOOTER, _HEAD[: -len(_FOOTER)] + rest, _HEAD[: len(rest)] + rest + _HEAD[2 * len(rest) :])[
        kind
    ]
    try:
        head = decode_head(value, _NAME)
    except CorruptCopy:
        return
    must(head.record[:3] == _NAME, "the head of another object")
    must(head.piece_nbytes > 0 and len(head.body) == BODY_ID_NBYTES, "a body that cannot be read")
    must((head.pieces - 1) * head.piece_nbytes < max(1, head.record.nbytes), "more pieces than the body has bytes")
    must(decode_head(head.encode(), _NAME) == head, "a head that cannot be written again")


TARGETS = (
    Target(
        "redis-heads",
        20_000,
        check,
        (b"\x00" + _HEAD, b"\x01" + _HEAD[: -len(_FOOTER)], b"\x02" + _FOOTER, b"\x03\x00"),
        (b"KVR\x01", b"\x00" * 8, b"\xff" * 4),
    ),
)
