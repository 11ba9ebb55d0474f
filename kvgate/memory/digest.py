"""The digests that every copy of a chunk is checked by: crc64nvme, of the whole and of each block.

The block digests let a read of a byte range check what it read without the rest of the body. The digest of the whole is
the value that S3 carries, in base64 of its big-endian bytes, as x-amz-checksum-crc64nvme.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from awscrt import checksums

BLOCK_NBYTES = 1 << 20


def crc64nvme(views: Iterable[memoryview]) -> int:
    """The crc64nvme of the bytes of all views in order; 0 for no bytes."""
    value = 0
    for view in views:
        value = checksums.crc64nvme(view, value)
    return value


class BlockDigest:
    """The digests of a body that arrives piecewise, each byte read once.

    For one thread at a time. Calls of more than a few pages leave the GIL to other threads.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        """The bytes seen so far."""
        self._complete: array[int] = array("Q")
        self._complete_value = 0  # of all complete blocks together
        self._rest = 0  # of the incomplete block at the end

    def update(self, view: memoryview) -> None:
        """Add the next bytes of the body, any number of them."""
        done = 0
        while done < len(view):
            piece = view[done : done + BLOCK_NBYTES - self.nbytes % BLOCK_NBYTES]
            self._rest = checksums.crc64nvme(piece, self._rest)
            self.nbytes += len(piece)
            done += len(piece)
            if self.nbytes % BLOCK_NBYTES == 0:
                self._complete.append(self._rest)
                self._complete_value = checksums.combine_crc64nvme(self._complete_value, self._rest, BLOCK_NBYTES)
                self._rest = 0

    @property
    def blocks(self) -> array[int]:
        """The crc64nvme of each block of BLOCK_NBYTES so far, the incomplete one at the end included."""
        return self._complete + array("Q", [self._rest] if self.nbytes % BLOCK_NBYTES else [])

    @property
    def value(self) -> int:
        """The crc64nvme of all bytes so far."""
        value: int = checksums.combine_crc64nvme(self._complete_value, self._rest, self.nbytes % BLOCK_NBYTES)
        return value


def combine_blocks(blocks: Sequence[int], nbytes: int) -> int:
    """The crc64nvme of a body of `nbytes`, from those of its blocks as `BlockDigest.blocks` gives them."""
    value, left = 0, nbytes
    for block in blocks:
        value = checksums.combine_crc64nvme(value, block, min(BLOCK_NBYTES, left))
        left -= BLOCK_NBYTES
    return value


def span_of_blocks(start: int, stop: int) -> slice:
    """Which blocks hold the bytes [start, stop)."""
    return slice(start // BLOCK_NBYTES, -(-stop // BLOCK_NBYTES))


def block_span(start: int, stop: int, nbytes: int) -> tuple[int, int]:
    """The bytes to read for [start, stop) of a body of `nbytes`, so that whole blocks can be verified."""
    return start - start % BLOCK_NBYTES, min(-(-stop // BLOCK_NBYTES) * BLOCK_NBYTES, nbytes)


def verify_blocks(views: Iterable[memoryview], start: int, stop: int, nbytes: int, blocks: Sequence[int]) -> bool:
    """Whether the bytes [start, stop) of a body, as `views` hold them, are those that `blocks` was taken of.

    nbytes, blocks: the length of the whole body, and `BlockDigest.blocks` of it.
    False too when the views do not hold stop - start bytes, or `blocks` is not of a body of that length.
    Raises ValueError when the span does not begin and end with a block (see block_span).
    """
    if not 0 <= start <= stop <= nbytes or block_span(start, stop, nbytes) != (start, stop):
        raise ValueError(f"the bytes [{start}, {stop}) are not whole blocks of a body of {nbytes} bytes")
    digest = BlockDigest()
    for view in views:
        digest.update(view)
    return (
        digest.nbytes == stop - start
        and len(blocks) == -(-nbytes // BLOCK_NBYTES)
        and digest.blocks == array("Q", blocks[span_of_blocks(start, stop)])
    )
