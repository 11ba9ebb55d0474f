"""Frames: how many chunks, or slices of them, follow one another in one stream.

A frame is a header of 32 bytes, all numbers little-endian, and then `nbytes` bytes of payload:

    offset  bytes  what
         0      4  "KVF1"
         4      1  status: 0 present, 1 missing, 2 corrupt, 3 late, 4 unavailable, 5 no slices
         5      3  zero
         8      4  index of the chunk among those that were asked for, from 0
        12      4  zero
        16      8  nbytes: of the payload that follows; 0 unless the status is present
        24      8  crc64nvme of the payload; 0 unless the status is present

The frames of a stream have the indices 0, 1, 2, …, one for each chunk that was asked for.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from kvgate.errors import InvalidFrame

FRAME_NBYTES = 32
MAGIC = b"KVF1"
_HEADER = struct.Struct("<4sB3sI4sQQ")
assert _HEADER.size == FRAME_NBYTES


class Status(enum.IntEnum):
    """What became of one chunk."""

    PRESENT = 0
    MISSING = 1
    """It is not there."""
    CORRUPT = 2
    """It was there, and no good copy of it is left."""
    LATE = 3
    """It could not be had before the deadline."""
    UNAVAILABLE = 4
    """A tier failed, or memory was full of what is in use: it may be had later."""
    NO_SLICES = 5
    """Layers or heads were asked for, and a lossless codec has made one block of them: it can be read whole."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The header of one frame."""

    index: int
    status: Status
    nbytes: int = 0
    crc64nvme: int = 0

    def encode(self) -> bytes:
        """Its 32 bytes."""
        return _HEADER.pack(MAGIC, self.status, bytes(3), self.index, bytes(4), self.nbytes, self.crc64nvme)


def decode_frame(header: bytes | memoryview) -> Frame:
    """What 32 bytes say. Raises InvalidFrame, and nothing else."""
    if len(header) != FRAME_NBYTES:
        raise InvalidFrame(f"the header of a frame has {FRAME_NBYTES} bytes, got {len(header)}")
    magic, status, zeros, index, more_zeros, nbytes, crc64nvme = _HEADER.unpack(header)
    if magic != MAGIC:
        raise InvalidFrame(f"a frame begins with {MAGIC!r}, got {magic!r}")
    if any(zeros) or any(more_zeros):
        raise InvalidFrame("the reserved bytes of a frame are not zero")
    if status not in Status._value2member_map_:
        raise InvalidFrame(f"no frame has the status {status}")
    if status != Status.PRESENT and (nbytes or crc64nvme):
        raise InvalidFrame(f"a frame of status {Status(status).name.lower()} has no payload, this one claims {nbytes}")
    return Frame(index, Status(status), nbytes, crc64nvme)
