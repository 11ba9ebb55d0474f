"""Division by a number that a whole launch shares, as one multiplication and a shift."""

from __future__ import annotations

import ctypes

LIMIT = 1 << 31
"""Dividends lie below this, and so does every count of a launch."""


class Divider(ctypes.Structure):
    """What `divide` in csrc/platform.cuh needs: exact for every dividend below LIMIT."""

    _fields_ = (("divisor", ctypes.c_uint32), ("multiplier", ctypes.c_uint32), ("shift", ctypes.c_uint32))

    @classmethod
    def by(cls, divisor: int) -> Divider:
        """The divider by `divisor`. Raises ValueError outside [1, LIMIT)."""
        if not 1 <= divisor < LIMIT:
            raise ValueError(f"cannot divide by {divisor}: expected a number from 1 to {LIMIT - 1}")
        shift = (divisor - 1).bit_length()
        multiplier = (((1 << shift) - divisor) << 32) // divisor + 1
        return cls(divisor, multiplier, shift)
