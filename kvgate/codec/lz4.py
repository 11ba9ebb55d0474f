"""lz4: for bytes of any kind, where time counts more than bytes. A raw LZ4 block, whose length is known elsewhere."""

from __future__ import annotations

import lz4.block


class LZ4:
    """See Codec. The library leaves the GIL to other threads."""

    name = "lz4"

    def encode(self, block: bytes) -> bytes:
        """See Codec."""
        encoded: bytes = lz4.block.compress(block, store_size=False)
        return encoded

    def decode(self, encoded: bytes, nbytes: int) -> bytes:
        """See Codec."""
        try:
            block: bytes = lz4.block.decompress(encoded, uncompressed_size=nbytes)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise ValueError(f"the block cannot be read: {error}") from error
        if len(block) != nbytes:
            raise ValueError("the block holds another number of bytes")
        return block
