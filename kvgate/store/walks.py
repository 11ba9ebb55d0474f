"""The walks over the links of a chain that `match` makes for every hash: in C where that was built."""

from __future__ import annotations

try:
    from kvgate.native import add_leases, find_chain
except ImportError:  # it was not built: slower, and all else the same
    from kvgate.store.plain_walks import add_leases, find_chain

__all__ = ["add_leases", "find_chain"]
