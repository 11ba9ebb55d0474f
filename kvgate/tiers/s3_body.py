"""What is stored of an object: its body and the footer, as views of where they lie, with the checksum of any part."""

from __future__ import annotations

from array import array

from kvgate.memory.digest import combine_blocks, combine_crc64nvme, extend_crc64nvme, span_of_blocks
from kvgate.memory.lease import slice_views
from kvgate.tiers.base import Name, Record
from kvgate.tiers.footer import encode_footer


class Body:
    """See the module. Nothing is copied, and no byte of the body is hashed again."""

    def __init__(self, record: Record, blocks: array[int], views: list[memoryview]) -> None:
        """blocks: the crc64nvme of each block of what `views` hold"""
        self.record = record
        self.blocks = blocks
        self._footer = encode_footer(record, blocks)
        self._views = [*views, memoryview(self._footer)]
        self.total_nbytes = record.nbytes + len(self._footer)

    @property
    def name(self) -> Name:
        return Name(*self.record[:3])

    def views(self, start: int, stop: int) -> list[memoryview]:
        """The bytes [start, stop) of body and footer."""
        return slice_views(self._views, start, stop)

    def crc(self, start: int, stop: int) -> int:
        """The crc64nvme of these bytes; `start` begins a block, and `stop` ends one or everything."""
        nbytes = self.record.nbytes
        end = min(stop, nbytes)
        value = combine_blocks(self.blocks[span_of_blocks(start, end)], end - start)
        if stop > nbytes:
            value = combine_crc64nvme(value, extend_crc64nvme(self._footer), len(self._footer))
        return value

    def parts(self, part_nbytes: int, most: int) -> list[tuple[int, int]]:
        """The body in at most `most` parts of whole blocks, by default of `part_nbytes`; the last has the footer."""
        nbytes = self.record.nbytes
        while -(-nbytes // part_nbytes) > most:
            part_nbytes *= 2
        starts = list(range(0, max(nbytes, 1), part_nbytes))
        return list(zip(starts, [*starts[1:], self.total_nbytes], strict=True))
