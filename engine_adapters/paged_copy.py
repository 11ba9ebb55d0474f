"""Copies between an engine's pages and chunks: strided bytes, some pages of them named by their ids.

Two implementations of one thing: `HostCopy` for memory of the host, and `TorchCopy` for memory of any device, which
works in the order of the current stream. NumPy copies rows of head_dim at a third of the cost that they have for torch,
and lets go of the GIL in every copy of 500 rows or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import gcd
from typing import Any, Protocol

import numpy as np
import torch

SKIP = -1
"""The id of a page that scatter leaves alone."""

_WORTH_A_COPY = 16 << 10
"""Bytes of a run of pages from which a copy of its own costs less than the run's part of an indexed one."""
_UNITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

Run = tuple[int, int, int]
"""Position in the chunk, id of the first page, and how many pages that follow each other in both."""


@dataclass(frozen=True, slots=True)
class PageTable:
    """The pages of some chunks.

    ids:  (chunks, pages of a chunk) int64 on the CPU, SKIP for those that are left alone
    runs: those of each chunk
    """

    ids: Any
    runs: tuple[tuple[Run, ...], ...]

    @classmethod
    def of(cls, ids: Any) -> PageTable:
        """The table of these ids."""
        return cls(ids, tuple(tuple(_runs(chunk)) for chunk in ids.tolist()))


class PagedCopy(Protocol):
    """Copies memory (pages, ...) to and from rows (chunks, pages of a chunk, ...), each as `view` gives it."""

    def view(self, tensor: Any) -> Any:
        """A uint8 tensor with any strides, its last axis contiguous, in the form that this copies."""

    def gather(self, memory: Any, rows: Any, table: PageTable) -> None:
        """Copy the pages of each chunk to its row. No id is SKIP."""

    def scatter(self, memory: Any, rows: Any, table: PageTable) -> None:
        """Copy each row to its chunk's pages. No id comes twice, but SKIP."""


class HostCopy:
    """PagedCopy of host memory."""

    def view(self, tensor: Any) -> Any:
        return tensor.numpy().view(np.dtype((np.void, tensor.shape[-1])))[..., 0]

    def gather(self, memory: Any, rows: Any, table: PageTable) -> None:
        page_nbytes = memory[0].nbytes
        for row, ids, runs in zip(rows, table.ids.numpy(), table.runs, strict=True):
            if len(ids) * page_nbytes >= _WORTH_A_COPY * len(runs):
                for position, page, length in runs:
                    row[position : position + length] = memory[page : page + length]
            else:
                row[...] = memory[ids]

    def scatter(self, memory: Any, rows: Any, table: PageTable) -> None:
        page_nbytes = memory[0].nbytes
        for row, ids, runs in zip(rows, table.ids.numpy(), table.runs, strict=True):
            pages = sum(length for _, _, length in runs)
            if pages * page_nbytes >= _WORTH_A_COPY * len(runs):
                for position, page, length in runs:
                    memory[page : page + length] = row[position : position + length]
            elif pages == len(ids):
                memory[ids] = row
            else:
                kept = np.flatnonzero(ids != SKIP)
                memory[ids[kept]] = row[kept]


class TorchCopy:
    """PagedCopy of memory of any device."""

    def view(self, tensor: Any) -> Any:
        return tensor

    def gather(self, memory: Any, rows: Any, table: PageTable) -> None:
        for row, ids in zip(rows, table.ids.to(memory.device), strict=True):
            torch.index_select(memory, 0, ids, out=row)

    def scatter(self, memory: Any, rows: Any, table: PageTable) -> None:
        for row, ids in zip(rows, table.ids, strict=True):
            kept = ids != SKIP
            chosen = row if bool(kept.all()) else row.index_select(0, kept.nonzero().flatten().to(row.device))
            unit = _UNITS[_unit(memory, chosen)]  # an indexed copy takes its time by the element
            memory.view(unit).index_copy_(0, ids[kept].to(memory.device), chosen.view(unit))


def _runs(pages: list[int]) -> Iterator[Run]:
    start = 0
    for position in range(1, len(pages) + 1):
        if position < len(pages) and pages[start] != SKIP and pages[position] == pages[start] + position - start:
            continue
        if pages[start] != SKIP:
            yield start, pages[start], position - start
        start = position


def _unit(*tensors: Any) -> int:
    """The widest element, in bytes, in which all of them can be seen."""
    numbers = [(*each.stride()[:-1], each.shape[-1], each.storage_offset(), each.data_ptr()) for each in tensors]
    return gcd(8, *chain(*numbers))
