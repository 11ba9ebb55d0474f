"""Where the parts of an object lie that was uploaded in parts: an attribute of it, which no header can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvgate.errors import InvalidPartNumber

PARTS = "_parts"


@dataclass(frozen=True, slots=True)
class PartSizes:
    """The sizes of an object's parts in order, as runs of (size in bytes, how many of it)."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> PartSizes:
        """Those of these parts."""
        return cls(tuple([(size, len(list(run))) for size, run in groupby(sizes)]))

    @classmethod
    def read(cls, attributes: Mapping[str, str]) -> PartSizes | None:
        """Those of an object with these attributes; None for one that was not uploaded in parts."""
        text = attributes.get(PARTS)
        if text is None:
            return None
        runs = [run.partition("*") for run in text.split(",")]
        return cls(tuple([(int(size), int(count or 1)) for size, _, count in runs]))

    @property
    def attributes(self) -> dict[str, str]:
        """What `read` gives this from: `8388608*12,1234`."""
        return {PARTS: ",".join([f"{size}*{count}" if count > 1 else f"{size}" for size, count in self.runs])}

    @property
    def count(self) -> int:
        """How many parts there are."""
        return sum(count for _, count in self.runs)

    def span(self, number: int) -> tuple[int, int]:
        """The bytes [start, stop) of part `number`, which counts from 1. Raises InvalidPartNumber."""
        start, left = 0, number - 1
        for size, count in self.runs:
            if left < count:
                return start + left * size, start + (left + 1) * size
            start += size * count
            left -= count
        raise InvalidPartNumber(f"the object has {self.count} parts, and no part {number}")

    def sizes(self, after: int = 0) -> Iterator[tuple[int, int]]:
        """The numbers and sizes of the parts behind part `after`."""
        number = 0
        for size, count in self.runs:
            for number_of_run in range(max(number, after), number + count):
                yield number_of_run + 1, size
            number += count
