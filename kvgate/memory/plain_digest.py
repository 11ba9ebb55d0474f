"""The digests of memory/digest.py in Python: taken where kvgate.native is not there, and what that is held to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from awscrt import checksums

from kvgate.memory.block_span import BLOCK_NBYTES, block_span, span_of_blocks


def extend_crc64nvme(view: bytes | memoryview, value: int = 0) -> int:
    """The crc64nvme of the bytes that `value` is of, and those of `view` behind them."""
    extended: int = checksums.crc64nvme(view, value)
    return extended


def combine_crc64nvme(first: int, second: int, second_nbytes: int) -> int:
    """The crc64nvme of two runs of bytes, one behind the other, from their own."""
    value: int = checksums.combine_crc64nvme(first, second, second_nbytes)
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
            self._rest = extend_crc64nvme(piece, self._rest)
            self.nbytes += len(piece)
            done += len(piece)
            if self.nbytes % BLOCK_NBYTES == 0:
                self._complete.append(self._rest)
                self._complete_value = combine_crc64nvme(self._complete_value, self._rest, BLOCK_NBYTES)
                self._rest = 0

    def __call__(self, view: memoryview) -> None:
        """`update`, so that a digest is what a body is shown to (kvgate.messages.Consume)."""
        self.update(view)

    @property
    def blocks(self) -> array[int]:
        """The crc64nvme of each block of BLOCK_NBYTES so far, the incomplete one at the end included."""
        return self._complete + array("Q", [self._rest] if self.nbytes % BLOCK_NBYTES else [])

    @property
    def value(self) -> int:
        """The crc64nvme of all bytes so far."""
        return combine_crc64nvme(self._complete_value, self._rest, self.nbytes % BLOCK_NBYTES)


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
