"""The digests that every copy of a chunk is checked by: crc64nvme, of the whole and of each block.

The block digests let a read of a byte range check what it read without the rest of the body. The digest of the whole is
the value that S3 carries, in base64 of its big-endian bytes, as x-amz-checksum-crc64nvme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvgate.memory.block_span import BLOCK_NBYTES, block_span, span_of_blocks

try:
    from kvgate.native import CRC64NVME_PATHS, BlockDigest, combine_crc64nvme, verify_blocks
    from kvgate.native import crc64nvme as extend_crc64nvme

    NATIVE = True
except ImportError:  # it was not built: slower, and all else the same
    from kvgate.memory.plain_digest import (  # type: ignore[assignment]
        BlockDigest,
        combine_crc64nvme,
        extend_crc64nvme,
        verify_blocks,
    )

    CRC64NVME_PATHS, NATIVE = ("awscrt",), False

__all__ = [
    "BLOCK_NBYTES",
    "CRC64NVME_PATHS",
    "NATIVE",
    "NATIVE_MEND",
    "BlockDigest",
    "block_span",
    "combine_blocks",
    "combine_crc64nvme",
    "crc64nvme",
    "extend_crc64nvme",
    "span_of_blocks",
    "verify_blocks",
]

NATIVE_MEND = "install a C compiler and Python's headers (Debian, Ubuntu: gcc and python3-dev), then kvgate again"
"""What to do where kvgate.native was not built."""


def crc64nvme(views: Iterable[memoryview]) -> int:
    """The crc64nvme of the bytes of all views in order; 0 for no bytes."""
    value = 0
    for view in views:
        value = extend_crc64nvme(view, value)
    return value


def combine_blocks(blocks: Sequence[int], nbytes: int) -> int:
    """The crc64nvme of a body of `nbytes`, from those of its blocks as `BlockDigest.blocks` gives them."""
    value, left = 0, nbytes
    for block in blocks:
        value = combine_crc64nvme(value, block, min(BLOCK_NBYTES, left))
        left -= BLOCK_NBYTES
    return value
