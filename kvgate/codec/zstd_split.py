"""zstd-split: zstd for the high bytes of 16-bit numbers."""

from __future__ import annotations

from kvgate.codec.split import Split
from kvgate.codec.zstd import Zstd


class ZstdSplit(Split):
    """See Codec and kvgate.codec.split."""

    name = "zstd-split"

    def __init__(self) -> None:
        super().__init__(Zstd())
