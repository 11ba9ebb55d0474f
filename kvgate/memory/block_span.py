"""Which blocks of a body hold which of its bytes."""

from __future__ import annotations

BLOCK_NBYTES = 1 << 20


def span_of_blocks(start: int, stop: int) -> slice:
    """Which blocks hold the bytes [start, stop)."""
    return slice(start // BLOCK_NBYTES, -(-stop // BLOCK_NBYTES))


def block_span(start: int, stop: int, nbytes: int) -> tuple[int, int]:
    """The bytes to read for [start, stop) of a body of `nbytes`, so that whole blocks can be verified."""
    return start - start % BLOCK_NBYTES, min(-(-stop // BLOCK_NBYTES) * BLOCK_NBYTES, nbytes)
