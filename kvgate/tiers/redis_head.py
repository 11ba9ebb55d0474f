"""The head of an object in Redis: which body is its, and the footer that says what the body must be.

    magic: 4 bytes | length of a piece: u32 LE | length of the body: u64 LE | id of the body: 16 bytes | footer

The footer is that of `footer.py`.

The head is a string under the object's name; the body is a hash under an id that no other upload has, with one field a
piece. The footer vouches for name, length and every block. What stands before it needs no checksum: a wrong id finds
no body, and wrong pieces do not match the blocks.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from kvgate.errors import CorruptCopy
from kvgate.tiers.base import Name, Record
from kvgate.tiers.footer import decode_footer, encode_footer, footer_nbytes

BODY_ID_NBYTES = 16
MIN_PIECE_NBYTES = 64 << 10
MAX_PIECE_NBYTES = 16 << 20

_MAGIC = b"KVR\x01"
_FRONT = struct.Struct(f"<4sIQ{BODY_ID_NBYTES}s")


class Head(NamedTuple):
    """One object in Redis.

    blocks: the crc64nvme of each block of the body
    """

    record: Record
    blocks: array[int]
    body: bytes
    piece_nbytes: int

    @property
    def pieces(self) -> int:
        """How many pieces the body has."""
        return -(-self.record.nbytes // self.piece_nbytes)

    def encode(self) -> bytes:
        """The value that is stored."""
        return _FRONT.pack(_MAGIC, self.piece_nbytes, self.record.nbytes, self.body) + encode_footer(
            self.record, self.blocks
        )


def decode_head(value: bytes, name: Name) -> Head:
    """What a stored value says. Raises CorruptCopy unless it is whole and about `name`."""
    footer = value[_FRONT.size :]
    if len(value) < _FRONT.size or footer_nbytes(footer, len(footer)) != len(footer):
        raise CorruptCopy("it is not the head of an object")
    magic, piece_nbytes, nbytes, body = _FRONT.unpack_from(value)
    if magic != _MAGIC or not MIN_PIECE_NBYTES <= piece_nbytes <= MAX_PIECE_NBYTES:
        raise CorruptCopy("it is not the head of an object")
    record, blocks = decode_footer(footer, nbytes + len(footer))
    if record[:3] != name:
        raise CorruptCopy("it is the head of another object")
    return Head(record, blocks, body, piece_nbytes)
