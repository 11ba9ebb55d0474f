"""A body that lies encoded in a file: its blocks are read one by one. Everything here blocks; in a tier's threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kvgate.codec.base import Codec
from kvgate.codec.installed import codec_named
from kvgate.errors import ConfigError, CorruptCopy, TierError
from kvgate.memory.digest import BLOCK_NBYTES
from kvgate.tiers.disk_file import read_all
from kvgate.tiers.footer import Encoding


def read_blocks(fd: int, encoding: Encoding, views: Sequence[memoryview], start: int) -> None:
    """Fill `views` from byte `start` of the plain body, which begins a block; they end with one, or with the body.

    What they hold then is still to be held against the digests. Raises CorruptCopy, TierError, OSError.
    """
    number = start // BLOCK_NBYTES
    for block in _cut(views):
        offset, stored = encoding.offsets[number], encoding.offsets[number + 1] - encoding.offsets[number]
        nbytes = sum(map(len, block))
        if stored == nbytes:
            read_all(fd, block, offset)
        else:
            _scatter(read_block(fd, encoding, number, nbytes), block)
        number += 1


def read_block(fd: int, encoding: Encoding, number: int, nbytes: int) -> bytes | bytearray:
    """One plain block, of `nbytes`, not verified. Raises CorruptCopy, TierError, OSError."""
    offset, stop = encoding.offsets[number], encoding.offsets[number + 1]
    stored = os.pread(fd, stop - offset, offset)
    if len(stored) != stop - offset:
        raise CorruptCopy("the file is shorter than its object")
    if len(stored) == nbytes:
        return stored
    try:
        block = _codec(encoding.codec).decode(stored, nbytes)
    except ValueError as error:
        raise CorruptCopy(f"a block cannot be decoded: {error}") from error
    if len(block) != nbytes:
        raise CorruptCopy("a block is decoded to another length")
    return block


def _codec(name: str) -> Codec:
    """Raises TierError: the file is good, and can be read where the codec is installed."""
    try:
        return codec_named(name)
    except ConfigError as error:
        raise TierError(f"the file is encoded by a codec that is not here: {error}") from error


def _cut(views: Sequence[memoryview]) -> list[list[memoryview]]:
    """The same memory in blocks; the last one may be shorter."""
    blocks: list[list[memoryview]] = []
    room = 0
    for view in views:
        at = 0
        while at < len(view):
            if not room:
                blocks.append([])
                room = BLOCK_NBYTES
            piece = view[at : at + room]
            blocks[-1].append(piece)
            at += len(piece)
            room -= len(piece)
    return blocks


def _scatter(block: bytes | bytearray, views: Sequence[memoryview]) -> None:
    at, content = 0, memoryview(block)
    for view in views:
        view[:] = content[at : at + len(view)]
        at += len(view)
