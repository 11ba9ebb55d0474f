"""What blocks are verified by: a crc64nvme of each, over its bytes in all regions of its group, in order."""

from __future__ import annotations

from collections.abc import Sequence

from engine_adapters.nixl.layout import HostBlocks
from kvgate.memory.digest import crc64nvme


class BlockDigests:
    """Digests of the blocks of one transfer, taken step by step so that a large one does not keep its thread."""

    def __init__(self, memory: HostBlocks, blocks: Sequence[Sequence[int]]) -> None:
        self._memory = memory
        self._left = [(group, block) for group, ids in enumerate(blocks) for block in ids]
        self._left.reverse()  # the next one is the last
        self._digests: list[int] = []

    def step(self, nbytes: int) -> bool:
        """Take the digests of about `nbytes` more, of one block at least; whether all are taken."""
        while self._left and nbytes > 0:
            views = list(self._memory.views(*self._left.pop()))
            self._digests.append(crc64nvme(views))
            nbytes -= sum(map(len, views))
        return not self._left

    @property
    def digests(self) -> tuple[int, ...]:
        """Of the blocks so far, group after group."""
        return tuple(self._digests)
