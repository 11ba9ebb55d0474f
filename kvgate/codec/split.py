"""For numbers of two bytes, little-endian: their high bytes go through another codec, their low ones stay.

The high byte of a 16-bit float has its exponent, of which few values are frequent; the low byte is as good as noise.

    encoded bytes 1, 3, 5, … | the bytes 0, 2, 4, …
"""

from __future__ import annotations

from kvgate.codec.base import Codec


class Split:
    """See Codec. For subclasses, which give it a name. high: the codec of the high bytes"""

    name: str

    def __init__(self, high: Codec) -> None:
        self.high = high

    def encode(self, block: bytes) -> bytes:
        """See Codec."""
        return self.high.encode(block[1::2]) + block[::2]

    def decode(self, encoded: bytes, nbytes: int) -> bytearray:
        """See Codec."""
        low = nbytes - nbytes // 2
        if len(encoded) < low:
            raise ValueError("it is shorter than its low bytes")
        block = bytearray(nbytes)
        block[1::2] = self.high.decode(encoded[: len(encoded) - low], nbytes // 2)
        block[::2] = encoded[len(encoded) - low :]
        return block
