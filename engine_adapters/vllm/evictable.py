"""Chunks that are saved only when vLLM is about to give their blocks to somebody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine_adapters.vllm.job import SavedChunk


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that is in vLLM's blocks and nowhere else. block_hashes: vLLM's, of each block, when it was noted."""

    lora: str
    chunk: SavedChunk
    block_hashes: tuple[Any, ...]


class Evictable:
    """The chunks that could still be saved, by block. Only from the scheduler's thread.

    There are never more than vLLM has blocks: a block stands for the last chunk that was noted with it.
    """

    def __init__(self, target: int) -> None:
        """target: how many free blocks vLLM may use up in one step"""
        self._target = target
        self._by_block: dict[tuple[int, int], Candidate] = {}
        """By group and first block."""
        self._first_of: dict[tuple[int, int], tuple[int, int]] = {}
        """By group and any of its blocks, the key above."""

    def note(self, lora: str, chunk: SavedChunk, pool: Any) -> bool:
        """Remember a chunk; False when vLLM does not cache one of its blocks, so that it cannot be found again."""
        hashes = tuple(pool.blocks[block].block_hash for block in chunk.blocks)
        if any(block_hash is None for block_hash in hashes):
            return False
        candidate = Candidate(lora, chunk, hashes)
        key = (chunk.group, chunk.blocks[0])
        self._by_block[key] = candidate
        for block in chunk.blocks:
            self._first_of[chunk.group, block] = key
        return True

    def about_to_go(self, pool: Any, groups: int) -> list[Candidate]:
        """Those with a block among the next that vLLM takes, and all blocks as they were; they are forgotten here."""
        going: list[Candidate] = []
        for seen, block in enumerate(pool.free_block_queue.iter_blocks_after(None)):
            if seen >= self._target:
                break
            for group in range(groups):
                key = self._first_of.pop((group, block.block_id), None)
                candidate = self._by_block.pop(key, None) if key is not None else None
                if candidate is not None and self._is_unchanged(candidate, pool):
                    going.append(candidate)
        return going

    @staticmethod
    def _is_unchanged(candidate: Candidate, pool: Any) -> bool:
        return all(
            pool.blocks[block].block_hash == block_hash
            for block, block_hash in zip(candidate.chunk.blocks, candidate.block_hashes, strict=True)
        )
