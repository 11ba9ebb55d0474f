"""lz4-split: lz4 for the high bytes of 16-bit numbers."""

from __future__ import annotations

from kvgate.codec.lz4 import LZ4
from kvgate.codec.split import Split


class LZ4Split(Split):
    """See Codec and kvgate.codec.split."""

    name = "lz4-split"

    def __init__(self) -> None:
        super().__init__(LZ4())
