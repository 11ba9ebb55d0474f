"""zstd: for bytes of any kind. A frame a block, which says how long the block is."""

from __future__ import annotations

import zstandard

_LEVEL = 1
_MAX_WINDOW_NBYTES = 1 << 20


class Zstd:
    """See Codec. The library leaves the GIL to other threads."""

    name = "zstd"

    def encode(self, block: bytes) -> bytes:
        """See Codec."""
        return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(block)

    def decode(self, encoded: bytes, nbytes: int) -> bytes:
        """See Codec."""
        try:
            if zstandard.frame_content_size(encoded) != nbytes:  # looked at first: that much is allocated
                raise ValueError("the frame is not of a block of this length")
            block = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_NBYTES).decompress(
                encoded, max_output_size=nbytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise ValueError(f"the frame cannot be read: {error}") from error
        if len(block) != nbytes:
            raise ValueError("the frame holds another number of bytes than it says")
        return block
