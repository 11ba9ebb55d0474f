"""What a codec is: one block of a body, written in fewer bytes, and read back exactly.

A codec knows nothing of objects, files or digests. It is registered in the entry-point group `kvgate.codecs`; what is
stored names it, so that its name must mean the same bytes for ever.
"""

from __future__ import annotations

from typing import Protocol


class Codec(Protocol):
    """Blocks in and blocks out. Both methods block, need memory for a few blocks, and may run in several threads.

    name: as it is registered
    """

    name: str

    def encode(self, block: bytes) -> bytes:
        """The block in other bytes, which need not be fewer: whoever asks keeps the shorter ones."""

    def decode(self, encoded: bytes, nbytes: int) -> bytes | bytearray:
        """The block of `nbytes` that `encode` was given.

        Raises ValueError for anything else: `encoded` may be any bytes at all. Never makes more than `nbytes` of them.
        """
