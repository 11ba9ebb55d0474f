"""Host memory: the one arena that every byte of a chunk lives in, the leases on it, and the digests of its bytes."""

from kvgate.memory.allocator import PAGE_NBYTES, Extent
from kvgate.memory.arena import Arena
from kvgate.memory.digest import BLOCK_NBYTES, BlockDigest, block_span, combine_blocks, crc64nvme, verify_blocks
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.segment import Segment

__all__ = [
    "BLOCK_NBYTES",
    "PAGE_NBYTES",
    "Arena",
    "BlockDigest",
    "Extent",
    "Lease",
    "Segment",
    "block_span",
    "combine_blocks",
    "crc64nvme",
    "run_holding",
    "verify_blocks",
]
