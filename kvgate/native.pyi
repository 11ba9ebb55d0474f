"""What Python is too slow for: a shared library, built of csrc/native where there is a C compiler at installation.

Who imports this does the same without it, slower.
"""

from typing_extensions import Buffer

CRC64NVME_PATHS: tuple[str, ...]
"""The ways that this processor has to take a crc64nvme, the fastest, which is taken, first."""

def crc64nvme(view: Buffer, value: int = 0, path: int = 0, /) -> int:
    """The crc64nvme of the bytes that `value` is of, and those of `view` behind them.

    path: which of CRC64NVME_PATHS to take
    """

def combine_crc64nvme(first: int, second: int, second_nbytes: int, /) -> int:
    """The crc64nvme of two runs of bytes, one behind the other, from their own."""
