"""The Range header, as S3 reads it: one range of bytes, or the whole object.

RFC 9110, section 14. What is malformed, of another unit or of several ranges is ignored, as the RFC allows and S3 does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvgate.errors import InvalidRange

_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,19})\s*-\s*([0-9]{0,19})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`first` to `last`, both included; from `first` to the end; or, with `first` None, the `last` bytes at the end."""

    first: int | None
    last: int | None

    def resolve(self, nbytes: int, *, exact: bool = False) -> tuple[int, int]:
        """The bytes [start, stop) of an object of `nbytes` that are meant.

        exact: all of them must be there
        Raises InvalidRange when there are none, or not all.
        """
        if self.first is None:
            start, stop = max(0, nbytes - (self.last or 0)), nbytes
        else:
            start, stop = self.first, nbytes if self.last is None else min(self.last + 1, nbytes)
        if start >= stop or (exact and self.last is not None and self.last >= nbytes and self.first is not None):
            raise InvalidRange(nbytes)
        return start, stop


def parse_range(header: str) -> ByteRange | None:
    """The range that a Range header asks for; None for the whole object."""
    match = _RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return ByteRange(None, int(match[2]))
    first, last = int(match[1]), int(match[2]) if match[2] else None
    if last is not None and last < first:
        return None
    return ByteRange(first, last)
